"""What a composed configuration must fulfil before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.compression.selection import Selection
from research.config.compose import choices_of_model, defaults_of, our_choices, resolved
from research.config.messages import bad_value, explain, no_key
from research.config.options import options
from research.config.schema import GROUPS, rule_for
from research.config.targets import check_targets
from research.utils.errors import UserError

Settings = Mapping[str, Any]
TRACKERS = "logging."  # a list of options makes each of them optional
RGB = ("red", "green", "blue")
BLOCK = 16  # pixels: an 8×8 block of subsampled chroma


def check(
    cfg: DictConfig,
    choices: Mapping[str, str | None],
    overrides: Sequence[str] | None = None,
    defaults: Settings | None = None,
    own: Collection[str] = (),
) -> None:
    """Refuse what cannot be trained.

    Args:
        cfg: the composed configuration.
        choices: the chosen option of each group, as in ``HydraConfig.get().runtime.choices``.
        overrides: the user's own overrides, as in ``HydraConfig.get().overrides.task``; they
            tell a combination that was asked for from one that came about, which is not
            judged when they are not given.
        defaults: what ``choices`` alone give, resolved; composed when not given.
        own: what ``_target_`` may name beside what ``conf/`` and ``trust=`` name.

    Raises:
        UserError: naming the key, what is allowed, the nearest match and the remedy.
    """
    ours = our_choices(choices)
    _check_choices(ours, cfg)
    try:
        settings = resolved(cfg)
    except OmegaConfBaseException as error:
        raise explain(error, list(overrides or ())) from error
    if defaults is None:
        defaults = defaults_of(frozenset(ours.items()))
    check_targets(settings, {*own, *settings["trust"]})
    _check_node("", settings, defaults, ours)
    for fault in _faults(settings, ours, overrides):
        raise fault


def _check_choices(choices: Mapping[str, str | None], cfg: DictConfig) -> None:
    for group in GROUPS:
        if OmegaConf.is_missing(cfg, group) or cfg.get(group) is None:
            raise UserError(group, f"{group} is required. Options: {', '.join(options(group))}")
    for group, option in choices.items():
        if option is not None and option.startswith("_"):
            raise UserError(
                group,
                f"no {group} {option!r}: it is a part of others. "
                f"Options: {', '.join(options(group))}",
            )


def _check_node(
    path: str, node: Settings, defaults: Settings, choices: Mapping[str, str | None]
) -> None:
    for name in defaults:
        if name not in node and path != TRACKERS:
            raise UserError(
                f"{path}{name}",
                f"{path}{name} was removed but is needed",
                "give it a value instead",
            )
    for name, value in node.items():
        key = f"{path}{name}"
        if name not in defaults:
            raise no_key(key, defaults_of(frozenset(choices.items())), choices)
        default = defaults[name]
        if isinstance(default, dict) and isinstance(value, dict) and (default or path == ""):
            if key != "tags":
                _check_node(f"{key}.", value, default, choices)
        else:
            check_value(key, value, default)


def check_value(key: str, value: Any, default: Any) -> None:
    """Refuse a value that its key may not have.

    Args:
        key: dotted.
        value: of any type.
        default: the key's default, which says what is right where there is no rule.

    Raises:
        UserError: naming the key and what is allowed.
    """
    rule = rule_for(key, default)
    nullable = default is None and not rule.holds(None)
    if not (rule.holds(value) or (value is None and nullable)):
        raise bad_value(key, value, rule, nullable=nullable)


def _faults(
    settings: Settings, choices: Mapping[str, str | None], overrides: Sequence[str] | None
) -> Iterator[UserError]:
    """Combinations of allowed values that cannot be trained, one line each."""
    compressed = settings["compression"]["variant"] != "none"
    yield from _option_faults(settings, choices)
    takes_coefficients = "coefficients" in settings["model"]
    if settings["model"].get("name", "") is None:
        yield (
            UserError(
                "model.name",
                f"model.name is required for model={choices.get('model')}: add model.name=NAME, a "
                "network of timm such as vit_tiny_patch16_224",
            )
        )
    yield from _model_faults(choices, compressed, takes_coefficients, overrides)
    if compressed:
        yield from _compression_faults(settings)
    yield from _dataset_faults(settings, choices)
    yield from _start_faults(settings)
    if settings["precision"] == "fp16" and settings["device"] == "cpu":
        yield UserError(
            "precision",
            "precision=fp16 with device=cpu: fp16 needs an accelerator",
            "use bf16 or fp32",
        )
    optimizer = settings["optimizer"]
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        yield (
            UserError(
                "optimizer.nesterov",
                "optimizer.nesterov=true with optimizer.momentum=0: nesterov needs a momentum, "
                "such as 0.9",
            )
        )
    if settings["ema_warmup"] and settings["ema"] is None:
        yield UserError(
            "ema_warmup", "ema_warmup=true without ema: add a decay, such as ema=0.9998"
        )
    pretrained = settings["model"].get("pretrained")
    local = pretrained not in (None, "timm", "torchvision")
    if local and settings["resume"] is None and not Path(pretrained).is_file():
        others = "or null" if "x_channels" in settings["model"] else "timm, torchvision or null"
        yield UserError(
            "model.pretrained",
            f"model.pretrained={pretrained}: no such file",
            f"give a weights file, {others}",
        )


def _option_faults(settings: Settings, choices: Mapping[str, str | None]) -> Iterator[UserError]:
    """Keys that say which option this is, and options that do not go together."""
    model, dataset = settings["model"], settings["dataset"]
    name, option = model.get("name"), choices.get("model")
    if "block_layers" in model and option in options("model") and name != option:
        yield UserError(
            "model.name",
            f"model.name={name} with model={option}: choose model={name} for another DenseNet",
        )
    published = {"cifar10": 10, "cifar100": 100}.get(str(choices.get("dataset")))
    if published is not None and dataset["classes"] != published:
        yield (
            UserError(
                "dataset.classes",
                f"dataset.classes={dataset['classes']} with dataset={choices['dataset']}: choose "
                f"dataset=cifar{dataset['classes']}",
                "dataset.num_classes checks a number",
            )
        )
    if settings["compile"] and model.get("memory_efficient"):
        yield (
            UserError(
                "compile",
                "compile=true with model.memory_efficient=true: a compiled network "
                "decides itself what "
                "it computes again",
                "leave one of them out",
            )
        )
    has, wants = _content(settings), _wish(settings)
    if has != wants and None not in (option, choices.get("dataset")):
        yield (
            UserError(
                "model",
                f"model={option} with dataset={choices['dataset']}: the data have {has}, "
                f"task={choices.get('task')} wants {wants}",
                "choose another dataset or another model",
            )
        )


def _content(settings: Settings) -> str:
    """What a data set's images come with."""
    dataset = settings["dataset"]
    if "x" in dataset:
        return "boxes in RGB + X"
    if "quick_experiment" in dataset:
        return "pairs of photos" if dataset["features"] is None else "pairs of features"
    stored = str(dataset["_target_"]).startswith("research.data.warehouse.")
    return "boxes" if stored and settings["compression"]["variant"] == "none" else "classes"


def _wish(settings: Settings) -> str:
    """What model and task want of a data set."""
    if str(settings["task"]["_target_"]).startswith("research.tasks.ranking."):
        return "pairs of features" if "feature_sizes" in settings["model"] else "pairs of photos"
    if not str(settings["task"]["_target_"]).startswith("research.tasks.detection."):
        return "classes"
    return "boxes in RGB + X" if "x_channels" in settings["model"] else "boxes"


def _model_faults(
    choices: Mapping[str, str | None],
    compressed: bool,
    takes_coefficients: bool,
    overrides: Sequence[str] | None,
) -> Iterator[UserError]:
    model, experiment = choices.get("model"), choices.get("experiment")
    chosen = choices.get("compression")
    if compressed and not takes_coefficients:
        yield (
            UserError(
                "model",
                f"model={model} takes pixels but compression={chosen} makes coefficients: "
                "add compression=none",
            )
        )
    if model is None or (compressed and experiment is None):
        return
    preset = choices_of_model(model).get("compression")
    if preset != "none" and not compressed:
        plain = model.removesuffix("_compressed")
        other = f" or use model={plain}" if plain in options("model") else ""
        yield (
            UserError(
                "model",
                f"model={model} reads coefficients but compression=none: "
                f"add compression={preset}{other}",
            )
        )
    if overrides is None or any(text.startswith("compression=") for text in overrides):
        return
    if preset == "none" and compressed:
        yield (
            UserError(
                "experiment",
                f"experiment={experiment} selects compression={chosen} but "
                f"model={model} is for RGB: "
                f"add compression=none, or compression={chosen} to have the model read "
                "coefficients",
            )
        )


def _compression_faults(settings: Settings) -> Iterator[UserError]:
    compression, size = settings["compression"], settings["dataset"]["image_size"]
    if size is not None and size % BLOCK:
        low = size - size % BLOCK
        nearby = f"{low} or {low + BLOCK}" if low >= 2 * BLOCK else f"{low + BLOCK}"
        yield (
            UserError(
                "dataset.image_size",
                f"dataset.image_size={size} with compression={compression['variant']}: expected a "
                f"multiple of {BLOCK} (the 8×8 blocks of 4:2:0 chroma)",
                f"use {nearby}",
            )
        )
    for plane in ("luma", "chroma"):
        window, count = compression[f"window_{plane}"], compression[f"count_{plane}"]
        if window is not None and count is not None:
            yield (
                UserError(
                    f"compression.window_{plane}",
                    f"compression.window_{plane}={window} with compression.count_{plane}={count}: "
                    "give one of them, the other null",
                )
            )
        if count is not None and compression["order"] != "zigzag":
            yield (
                UserError(
                    f"compression.count_{plane}",
                    f"compression.count_{plane}={count} with "
                    f"compression.order={compression['order']}: "
                    "a count needs compression.order=zigzag",
                )
            )
    try:
        Selection.from_settings(
            window=compression["window"],
            order=compression["order"],
            window_luma=compression["window_luma"],
            window_chroma=compression["window_chroma"],
            count_luma=compression["count_luma"],
            count_chroma=compression["count_chroma"],
        )
    except ValueError as error:
        yield UserError("compression", f"compression: {error}")


def _dataset_faults(settings: Settings, choices: Mapping[str, str | None]) -> Iterator[UserError]:
    dataset = settings["dataset"]
    if "manifest" in dataset and dataset["manifest"] is None:
        yield (
            UserError(
                "dataset.manifest",
                f"dataset.manifest is required for dataset={choices.get('dataset')}: add "
                "dataset.manifest=FOLDER, as python -m research.prepare wrote it",
            )
        )
    if "root" in dataset and dataset["root"] is None:
        yield (
            UserError(
                "dataset.root",
                f"dataset.root is required for dataset={choices.get('dataset')}: add "
                "dataset.root=FOLDER, which holds images/ and labels/",
            )
        )
    for key in ("mean", "std"):
        if "x" not in dataset and len(dataset.get(key) or RGB) != len(RGB):
            yield UserError(
                f"dataset.{key}",
                f"dataset.{key}={dataset[key]}: expected a list of 3, for red, green and blue",
            )
    folds, fold = dataset.get("folds"), dataset.get("fold")
    if folds is not None and fold >= folds:
        yield UserError(
            "dataset.fold",
            f"dataset.fold={fold} with dataset.folds={folds}: expected from 0 to {folds - 1}",
        )
    stored, size = dataset.get("stored_size"), dataset["image_size"]
    if stored is not None and settings["compression"].get("source") != "bitstream":
        yield (
            UserError(
                "dataset.stored_size",
                f"dataset.stored_size={stored} reads files as a store of coefficients would: "
                "add compression.source=bitstream, or leave it out",
            )
        )
    if stored is not None and size is None:
        yield UserError(
            "dataset.stored_size",
            f"dataset.stored_size={stored} needs a size to cut: add dataset.image_size",
        )
    elif stored is not None and (stored % BLOCK or stored < size):
        yield (
            UserError(
                "dataset.stored_size",
                f"dataset.stored_size={stored}: expected a multiple of {BLOCK}, at least "
                f"dataset.image_size={size}",
            )
        )
    yield from _bitstream_faults(settings, choices)
    if not dataset.get("train_dirs", True):
        yield (
            UserError(
                "dataset.train_dirs",
                f"dataset.train_dirs is required for dataset={choices.get('dataset')}: "
                "add 'dataset.train_dirs=[DIR,DIR]'",
            )
        )


def _bitstream_faults(settings: Settings, choices: Mapping[str, str | None]) -> Iterator[UserError]:
    """What needs pixels cannot be done to coefficients that come out of files."""
    compression, dataset = settings["compression"], settings["dataset"]
    if compression["variant"] == "none" or compression["source"] != "bitstream":
        return
    if "full_train" in dataset:
        yield (
            UserError(
                "compression.source",
                f"compression.source=bitstream with dataset={choices.get('dataset')}: these images "
                "are no JPEG files",
                "add compression.source=pixels",
            )
        )
    augmentation = dataset.get("augmentation") or {}
    for key in ("policy", "erasing"):
        if augmentation.get(key):
            yield (
                UserError(
                    f"dataset.augmentation.{key}",
                    f"dataset.augmentation.{key}={augmentation[key]} with "
                    "compression.source=bitstream"
                    ": it changes pixels, which are never made",
                    "leave it out, or add compression.source=pixels",
                )
            )


def _start_faults(settings: Settings) -> Iterator[UserError]:
    resume, init_from = settings["resume"], settings["init_from"]
    if resume not in (None, "auto") and init_from is not None:
        yield (
            UserError(
                "resume",
                f"resume={resume} with init_from={init_from}: resume goes on with a run, init_from "
                "starts a new one",
                "give one of them",
            )
        )
    if resume not in (None, "auto") and not Path(resume).is_dir():
        yield UserError(
            "resume",
            f"resume={resume}: no such run folder",
            "use resume=auto or a folder under runs/",
        )
    if resume is None and init_from is not None and not Path(init_from).exists():
        yield UserError(
            "init_from",
            f"init_from={init_from}: no such file or folder",
            "give a run folder or a weights file",
        )
