"""Run settings, the keys at the top of a configuration: defaults, rules and help.

Each setting is a field of ``RunSettings``. The rules of the keys of a group are next to its code,
see ``research.config.group_rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_FACTORY
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from research.config.migrations import VERSION
from research.config.options import DEFAULT_BATCH_SIZE
from research.config.rules import (
    AMOUNT,
    BELOW_ONE,
    COMPILE,
    COUNT,
    DEVICE,
    MAPPING,
    MONITOR,
    NAME,
    PATH,
    TARGETS,
    TRUTH,
    Rule,
    changeable,
    like,
    number,
    one_of,
    only,
    or_null,
    whole,
)


def _setting(default: Any, meaning: str, rule: Rule) -> Any:
    return field(default=default, metadata={"help": meaning, "rule": rule})


@dataclass
class RunSettings:
    """The settings that belong to no group; their only defaults."""

    name: str | None = _setting(
        None, "name of the run; null: its recipe or its options, and what differs", NAME
    )
    tags: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "labels for the tracker: tags.paper=a tags.try=b", "rule": MAPPING},
    )
    seed: int = _setting(0, "seed of weights, order, augmentation", whole(0, 2**32 - 1))
    epochs: int = _setting(4, "passes over the training set", changeable(COUNT))
    device: str = _setting(
        "auto", "where to train; auto: the first accelerator, else cpu", changeable(DEVICE)
    )
    precision: str = _setting(
        "fp32", "arithmetic of the forward pass", one_of("fp32", "bf16", "fp16")
    )
    channels_last: bool | None = _setting(
        None, "NHWC memory format; null: chosen by device, precision and model", changeable(TRUTH)
    )
    compile: bool | str = _setting(
        False, "torch.compile the model, true or by mode", changeable(COMPILE)
    )
    deterministic: bool = _setting(
        False, "deterministic algorithms only (slower on GPU)", changeable(TRUTH)
    )
    cudnn_benchmark: bool = _setting(
        True, "let cuDNN time its algorithms; off when deterministic", changeable(TRUTH)
    )
    batch_size: int = _setting(
        32, "samples per batch of one process; the default is the data set's", COUNT
    )
    accumulate: int = _setting(1, "batches per optimizer step", COUNT)
    scale_lr: str | None = _setting(
        None,
        "scale optimizer.lr by (batch size · accumulate) / scale_lr_batch; null: no scaling",
        one_of("linear", "sqrt"),
    )
    scale_lr_batch: int = _setting(256, "the batch size for which optimizer.lr is set", COUNT)
    global_batch_size: int | None = _setting(
        None,
        "samples of a batch over all processes; null: batch_size times their number",
        or_null(COUNT),
    )
    workers: int | None = _setting(
        None,
        "DataLoader worker processes; null: chosen by device, 0 if no files are read",
        changeable(whole(0)),
    )
    pin_memory: bool | None = _setting(
        None, "page-locked batches; null: chosen by device", changeable(TRUTH)
    )
    sync_batchnorm: bool = _setting(
        False, "batch norm over the batches of all processes (GPUs only)", TRUTH
    )
    layer_decay: float | None = _setting(
        None,
        "each layer's rate as a fraction of the rate of the layer above it; null: one rate for all",
        number(above=0, at_most=1),
    )
    lr_backbone: float | None = _setting(
        None,
        "the backbone's rate as a fraction of optimizer.lr; null: the same rate",
        number(above=0, at_most=1),
    )
    decay_norms: bool = _setting(True, "weight decay on norms and biases too", TRUTH)
    ema: float | None = _setting(
        None,
        "decay per step of the moving average of the weights that is evaluated; null: none",
        BELOW_ONE,
    )
    ema_warmup: bool = _setting(False, "start the moving average with smaller decays", TRUTH)
    grad_clip: float | None = _setting(
        None, "largest gradient norm; null: no clipping", number(above=0)
    )
    skip_nonfinite: int = _setting(
        0,
        "how many batches or steps of the run are skipped if loss or gradient is not finite; "
        "0: the run stops",
        changeable(whole(0)),
    )
    patience: int | None = _setting(
        None, "stop after this many epochs without a better value; null: never", changeable(COUNT)
    )
    save_every: int = _setting(1, "epochs between the epoch checkpoints", changeable(COUNT))
    save_every_minutes: float | None = _setting(
        10.0,
        "minutes between checkpoints within an epoch; null: only at its end",
        changeable(or_null(number(above=0))),
    )
    keep: int | str = _setting(3, "how many epoch checkpoints are kept", changeable(AMOUNT))
    monitor: str | None = _setting(
        None, "metric that selects the best epoch; null: the task's own", MONITOR
    )
    log_every: int = _setting(10, "batches between progress lines", changeable(COUNT))
    max_train_batches: int | None = _setting(None, "training batches per epoch; null: all", COUNT)
    max_val_batches: int | None = _setting(
        None, "validation batches, drawn over the whole split; null: all", changeable(COUNT)
    )
    evaluate_at_end: str | None = _setting(
        None,
        "evaluate the best checkpoint on this whole split when the run ends: val or test",
        changeable(one_of("val", "test")),
    )
    resume: str | None = _setting(
        None,
        "auto: the newest unfinished run of this config; or a run folder or checkpoint, whose "
        "settings are used",
        changeable(PATH),
    )
    verify_resume: bool = _setting(
        False, "train a few steps, kill the run at random ones, resume it and compare", TRUTH
    )
    init_from: str | None = _setting(None, "run folder or weights file to start from", PATH)
    run_dir: str | None = _setting(
        None, "folder of the run; null: a new one under runs/", changeable(PATH)
    )
    trust: list[str] = field(
        default_factory=list,
        metadata={
            "help": "your own classes and functions that _target_ may name: trust=[my_models.Net]",
            "rule": changeable(TARGETS),
        },
    )
    version: int = _setting(
        VERSION,
        "version of the settings' names, for migration",
        changeable(only(VERSION)),
    )

    model: Any = MISSING
    dataset: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    compression: Any = MISSING
    task: Any = MISSING
    logging: Any = MISSING


RUN_RULES: dict[str, Rule] = {
    setting.name: setting.metadata["rule"] for setting in fields(RunSettings) if setting.metadata
}
RUN_DEFAULTS: dict[str, Any] = {
    setting.name: setting.default
    if setting.default_factory is NO_FACTORY
    else setting.default_factory()
    for setting in fields(RunSettings)
    if setting.metadata
}
GROUPS: tuple[str, ...] = tuple(
    setting.name for setting in fields(RunSettings) if not setting.metadata
)
"""The groups that every run needs."""
OPTIONAL = ("experiment", "sweep")
"""The groups whose options set keys of other groups."""


def rule_for(key: str, default: Any, rules: Mapping[str, Rule]) -> Rule:
    """The rule of a dotted key: its own, or the type of its default.

    Args:
        key: dotted.
        default: the value of the key's option.
        rules: of the groups' keys, see ``research.config.group_rules``.
    """
    return RUN_RULES.get(key) or rules.get(key) or like(default)


@cache
def register() -> None:
    """Register the schema on which ``conf/config.yaml`` builds, and the resolver ``${if:…}``.

    ``${if:value,a,b}`` in YAML is ``b`` if the value is null or empty, else ``a``. The default of
    ``batch_size`` is the one that the data set declares, if it does.
    """
    OmegaConf.register_resolver("if", lambda value, a, b: a if value else b, replace=True)
    schema = OmegaConf.structured(RunSettings)
    schema.batch_size = f"${{oc.select:dataset.{DEFAULT_BATCH_SIZE},{RunSettings.batch_size}}}"
    OmegaConf.set_struct(schema.tags, False)  # so that tags.any=thing may be written
    ConfigStore.instance().store(name="schema", node=schema, replace=True)
