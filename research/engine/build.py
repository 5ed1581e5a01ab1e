"""Builds objects from a configuration; the only module that reads one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from research.compression.blocks import Blocks
from research.compression.rules import SELECTION
from research.compression.selection import Selection
from research.compression.stems import StemSpec
from research.config import targets
from research.config.arguments import FilledIn
from research.config.batch_sizes import batch_size
from research.data.block_samples import MCU
from research.data.coefficients import CoefficientSpec
from research.data.datamodule import DataModule, NetworkInput
from research.data.loader import EpochLoader
from research.data.rules import RGB
from research.engine import distributed, initial_weights, placement
from research.engine.loop import LoopConfig
from research.engine.optimizers import created, parameter_groups, scaled_lr
from research.engine.rng import seed_everything
from research.engine.state import TrainState
from research.models.inputs import input_spec
from research.models.pretrained import recorded
from research.tasks.task import Monitor, Task, check_methods
from research.tracking.tracker import Tracker
from research.utils.errors import UserError

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

Config = Mapping[str, Any]


@dataclass
class Experiment:
    """The objects of a configuration, ready for ``loop.fit``.

    Attributes:
        parameters: trainable parameters of the model.
        weights: from which the model starts, see ``pretrained.record``; empty for a random start.
    """

    state: TrainState
    task: Task
    train: EpochLoader
    val: EpochLoader
    monitor: Monitor
    cfg: LoopConfig
    device: torch.device
    data: DataModule
    parameters: int
    weights: list[dict[str, Any]]


def experiment(
    config: Config,
    weights: Mapping[str, Any] | None = None,
) -> Experiment:
    """Build everything that training needs.

    Args:
        config: resolved and checked, see ``research.config``.
        weights: from ``initial_weights.read``; None: read here.

    Raises:
        UserError: for errors that only the data, the device or a file can show.
    """
    targets.check_arguments(config, config["trust"])  # before data are read
    device = select_device(config["device"], config["precision"])
    if config["sync_batchnorm"] and device.type != "cuda":
        raise UserError(
            "sync_batchnorm", "sync_batchnorm=true needs GPUs", "set sync_batchnorm=false"
        )
    seed_everything(config["seed"], config["deterministic"])
    torch.backends.cudnn.benchmark = config["cudnn_benchmark"] and not config["deterministic"]
    data = data_module(config)
    data.prepare(config["seed"])
    _check_split(config, data, device)
    task = build_task(config, data.classes)
    check_methods(task, distributed.count(), device)
    with recorded() as loaded:
        network = model(config, data.metadata())
        weights = weights or initial_weights.read(config)
        if weights is not None:
            initial_weights.load(network, weights, config, data)
    if config["sync_batchnorm"] and distributed.count() > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    transform = data.transform()
    layout = placement.memory_format(config, device, network)
    placement.lay_out(network, transform, device, layout)
    train = loader(config, data, "train", device, train=True)
    solver = optimizer(config, network, train.global_batch)
    batches = min(len(train), config["max_train_batches"] or len(train))
    ema = _ema(config, network)
    state = TrainState(
        model=network,
        forward=placement.called(network, config["compile"]),
        transform=transform,
        optimizer=solver,
        scheduler=_scheduler(config, solver, math.ceil(batches / config["accumulate"])),
        scaler=torch.amp.GradScaler(device.type, enabled=config["precision"] == "fp16"),
        ema=ema,
        ema_forward=None if ema is None else placement.called(ema.module, config["compile"]),
        config=config,
        metadata=data.metadata(),
        global_batch=train.global_batch,
    )
    return Experiment(
        state,
        task,
        train,
        loader(config, data, "val", device, train=False),
        monitor(config, task),
        loop_config(config),
        device,
        data,
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        loaded,
    )


def _scheduler(config: Config, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """The schedule of the learning rates.

    Raises:
        UserError: for an option of the user's that cannot be stepped after each optimizer step, or
            that has no position to resume from.
    """
    built: Any = targets.build(config, "scheduler")
    built = built(optimizer, epochs=config["epochs"], steps_per_epoch=steps_per_epoch)
    needs_metric = isinstance(built, ReduceLROnPlateau)
    if needs_metric or not hasattr(built, "last_epoch"):
        kind = type(built).__name__
        why = "it needs a metric" if needs_metric else "it has no step to resume from (last_epoch)"
        raise UserError(
            "scheduler",
            f"scheduler={kind}: {why}; schedules are stepped after each optimizer step",
            "use a scheduler whose learning rates depend on the step alone",
        )
    scheduler: LRScheduler = built
    return scheduler


def _check_split(config: Config, data: DataModule, device: torch.device) -> None:
    """Check that the data have the split that ``evaluate_at_end`` names.

    Raises:
        UserError: if they have not.
    """
    split = config["evaluate_at_end"]
    try:
        if split is not None:
            data.dataset(split, seed=config["seed"], train=False, device=device)
    except UserError as error:
        what = error.message.removeprefix(f"split={split}: ")
        raise UserError("evaluate_at_end", f"evaluate_at_end={split}: {what}", error.hint) from None


def limits(config: Config) -> dict[str, Any]:
    """The settings on which the need for memory depends, for ``conditions.explained``."""
    dataset = config["dataset"]
    size = dataset.get("image_size") or network_input(config).size
    whole = config["global_batch_size"]
    batch = {"global_batch_size": whole} if whole else {"batch_size": config["batch_size"]}
    return {
        **batch,
        "accumulate": config["accumulate"],
        "precision": config["precision"],
        "dataset.image_size": size,
        "workers": config["workers"],
    }


def loop_config(config: Config) -> LoopConfig:
    return LoopConfig(**{name: config[name] for name in LoopConfig.__dataclass_fields__})


def data_module(config: Config) -> DataModule:
    """The data set; nothing is read from disk before ``DataModule.prepare``."""
    data: DataModule = targets.build(config, "dataset", network=network_input(config))
    return data


def model_name(config: Config) -> str:
    """The name of the model in the configuration, or of its class if it has none."""
    settings = config["model"]
    name = settings.get("name") or settings.get("backbone")
    return str(name or settings["_target_"].rpartition(".")[2])


def network_input(config: Config) -> NetworkInput:
    """The model's own input settings, used where those of the data set are None."""
    spec = input_spec(config["model"].get("name") or config["model"].get("backbone"))
    wanted = coefficients(config["compression"])
    return NetworkInput(spec.size, spec.mean, spec.std, spec.crop_pct, wanted)


def crop_pct(config: Config) -> float:
    """Side of the validation crop as a fraction of the short side; 1 for data without crops."""
    own: float | None = config["dataset"].get("crop_pct", 1.0)
    return own or network_input(config).crop_pct


def input_size(config: Config, metadata: Mapping[str, Any]) -> int:
    """Side of the network's square input, in pixels."""
    stored: int | None = metadata.get("transform", {}).get("image_size")
    size: int = config["dataset"]["image_size"] or stored or network_input(config).size
    if size % MCU and config["compression"]["variant"] != "none":
        raise UserError(
            "dataset.image_size",
            f"this model's own input size is {size}, but coefficients need a multiple of {MCU}",
            f"set dataset.image_size={size - size % MCU}",
        )
    return size


def build_task(config: Config, classes: list[str]) -> Task:
    task: Task = targets.build(config, "task", classes=classes)
    return task


def model(config: Config, metadata: Mapping[str, Any]) -> nn.Module:
    """The network.

    Settings of the model that are None and are among ``FilledIn`` are filled in.

    Args:
        config: resolved and checked.
        metadata: of the data set, see ``DataModule.metadata``.

    Raises:
        UserError: if a setting differs from that of the data set.
    """
    settings = config["model"]
    known: FilledIn = {
        "num_classes": len(metadata["classes"]),
        "max_boxes": metadata.get("transform", {}).get("max_boxes"),
        "x_channels": len(metadata["channels"]) - len(RGB) if "channels" in metadata else None,
        "feature_sizes": metadata.get("feature_sizes"),
        "image_size": input_size(config, metadata),
        "coefficients": stem_spec(config["compression"]),
    }
    for key, value in known.items():
        if settings.get(key) not in (None, value):
            raise UserError(
                f"model.{key}",
                f"model.{key}={settings[key]}: the data set has {value}",
                "remove this setting",
            )
    pretrained = initial_weights.of_run(settings.get("pretrained"))
    given = {**known, "pretrained": pretrained}
    filled = {key: value for key, value in given.items() if key in settings}
    network: nn.Module = targets.build(config, "model", **filled)
    return network


def blank_inputs(config: Config, metadata: Mapping[str, Any], count: int) -> torch.Tensor | Blocks:
    """``count`` inputs of zeros as the network takes them, after the device transform."""
    features = metadata.get("feature_sizes")
    if features:
        return torch.zeros(count, sum(features.values()))
    size, stem = input_size(config, metadata), stem_spec(config["compression"])
    if stem is None:
        return torch.zeros(count, len(metadata.get("channels", RGB)), size, size)
    luma, chroma = len(stem.selection.luma), len(stem.selection.chroma)
    grid = size // 8
    return Blocks(
        torch.zeros(count, luma, grid, grid), torch.zeros(count, 2, chroma, grid // 2, grid // 2)
    )


def stem_spec(compression: Config) -> StemSpec | None:
    """How the network reads coefficients; None for pixels."""
    if compression["variant"] == "none":
        return None
    selection = _selection(**{name: compression[name] for name in SELECTION})
    variant, range_ = compression["variant"], compression["range"]
    return StemSpec(variant, selection, range_, compression.get("refinement"))


# Cached, so that the settings are parsed once and data and stem get the same object.
_selection = cache(Selection.from_settings)


def coefficients(compression: Config) -> CoefficientSpec | None:
    """What the network asks of a data set; ``None`` for pixels."""
    stem = stem_spec(compression)
    if stem is None:
        return None
    return CoefficientSpec(
        stem.selection,
        stem.range_,
        compression["source"],
        stem.normalised,
        compression["statistics_images"],
    )


def loader(
    config: Config, data: DataModule, split: str, device: torch.device, *, train: bool
) -> EpochLoader:
    """The batches of one split; not all of them for ``max_val_batches``, unless in training."""
    samples = data.dataset(split, seed=config["seed"], train=train, device=device)
    workers, pin_memory = data.loading(device, config["workers"], config["pin_memory"])
    return EpochLoader(
        samples,
        batch_size(config, distributed.count()),
        seed=config["seed"],
        train=train,
        workers=workers,
        pin_memory=pin_memory,
        shard=distributed.shard(),
        limit=None if train else config["max_val_batches"],
        split=split,
        unit=data.unit,
        left_out=data.left_out,
    )


def trackers(config: Config) -> list[Tracker]:
    """The trackers of the logging group."""
    return [targets.build(config, f"logging.{name}")() for name in config["logging"]]


def select_device(name: str, precision: str) -> torch.device:
    """The device; ``auto`` selects the GPU if there is one.

    Raises:
        UserError: if the device does not exist or does not support the precision.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if name == "cuda" and distributed.count() > 1:
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            "device",
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices",
            "use device=cpu",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device", "device=mps: not available on this machine", "use device=cpu")
    if precision == "fp16" and device.type == "cpu":
        raise UserError(
            "precision", "precision=fp16 needs a GPU", "use precision=bf16 or fp32 on the CPU"
        )
    return device


def optimizer(config: Config, network: nn.Module, global_batch: int) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, for batches of ``global_batch`` samples."""
    batch = global_batch * config["accumulate"]
    lr = config["optimizer"]["lr"]
    lr = scaled_lr(lr, batch, config["scale_lr"], config["scale_lr_batch"])
    groups = parameter_groups(
        network,
        config["decay_norms"],
        config["layer_decay"],
        config["lr_backbone"],
        lr,
    )
    return created(targets.build(config, "optimizer", lr=lr), groups)


def _ema(config: Config, network: nn.Module) -> ModelEmaV3 | None:
    if config["ema"] is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(network, decay=config["ema"], use_warmup=config["ema_warmup"])


def monitor(config: Config, task: Task) -> Monitor:
    """The metric that selects the best epoch: ``monitor``, or the task's own."""
    text = config["monitor"]
    return task.monitor if text is None else Monitor(*text.rsplit(":", 1))
