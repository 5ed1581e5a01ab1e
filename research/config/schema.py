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
from research.config.rules import (
    COUNT,
    DEVICE,
    MAPPING,
    MONITOR,
    NAME,
    PATH,
    SHARE,
    TARGETS,
    TRUTH,
    Rule,
    like,
    number,
    one_of,
    only,
    whole,
)


def _setting(default: Any, meaning: str, rule: Rule) -> Any:
    return field(default=default, metadata={"help": meaning, "rule": rule})


@dataclass
class RunSettings:
    """What belongs to a run and to no group; each default is written here alone."""

    name: str | None = _setting(None, "name of the run; null: the model's", NAME)
    tags: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "labels for the tracker: tags.paper=a tags.try=b", "rule": MAPPING},
    )
    seed: int = _setting(0, "seed of weights, order, augmentation", whole(0, 2**32 - 1))
    epochs: int = _setting(4, "passes over the training images", COUNT)
    device: str = _setting("auto", "where to train; auto: the first accelerator, else cpu", DEVICE)
    precision: str = _setting(
        "fp32", "arithmetic of the forward pass", one_of("fp32", "bf16", "fp16")
    )
    channels_last: bool = _setting(False, "NHWC memory layout", TRUTH)
    compile: bool = _setting(False, "torch.compile the model", TRUTH)
    deterministic: bool = _setting(False, "deterministic algorithms only (slower on GPU)", TRUTH)
    cudnn_benchmark: bool = _setting(
        True, "let cuDNN time its algorithms; off when deterministic", TRUTH
    )
    accumulate: int = _setting(1, "batches an optimizer step", COUNT)
    scale_lr: str | None = _setting(
        None,
        "scale optimizer.lr by batch size · accumulate over scale_lr_batch; null: take it as it is",
        one_of("linear", "sqrt"),
    )
    scale_lr_batch: int = _setting(256, "the batch size that optimizer.lr is meant for", COUNT)
    layer_decay: float | None = _setting(
        None,
        "each layer's rate as a share of the rate of the layer above it; null: one rate for all",
        number(above=0, at_most=1),
    )
    lr_backbone: float | None = _setting(
        None,
        "the backbone's rate as a share of optimizer.lr; null: the same rate",
        number(above=0, at_most=1),
    )
    decay_norms: bool = _setting(True, "weight decay on norms and biases too", TRUTH)
    ema: float | None = _setting(
        None, "decay a step of a moving average of the weights, which is judged; null: none", SHARE
    )
    ema_warmup: bool = _setting(False, "let the average begin with smaller decays", TRUTH)
    grad_clip: float | None = _setting(
        None, "largest gradient norm; null: no clipping", number(above=0)
    )
    patience: int | None = _setting(
        None, "stop after so many epochs without a better value; null: never", COUNT
    )
    save_every: int = _setting(1, "epochs between the epoch checkpoints", COUNT)
    keep: int = _setting(3, "how many epoch checkpoints stay", whole(0))
    monitor: str | None = _setting(
        None, "metric that picks the best epoch; null: the task's own", MONITOR
    )
    log_every: int = _setting(10, "batches between progress lines", COUNT)
    max_train_batches: int | None = _setting(None, "stop each training epoch after so many", COUNT)
    max_val_batches: int | None = _setting(None, "stop each validation after so many", COUNT)
    resume: str | None = _setting(
        None, "auto: the newest unfinished run of this config, or a run folder", PATH
    )
    init_from: str | None = _setting(None, "run folder or weights file to start from", PATH)
    run_dir: str | None = _setting(None, "folder of the run; null: a fresh one under runs/", PATH)
    trust: list[str] = field(
        default_factory=list,
        metadata={
            "help": "names of your own code that _target_ may have: trust=[my_models.Net]",
            "rule": TARGETS,
        },
    )
    version: int = _setting(
        VERSION, "of the names of settings; of a stored run, by which it is migrated", only(VERSION)
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
"""The groups without which no run is complete."""
OPTIONAL = ("experiment", "sweep")
"""The groups that set keys of others."""


def rule_for(key: str, default: Any, rules: Mapping[str, Rule]) -> Rule:
    """The rule of a dotted key: its own, or the type of its default.

    Args:
        key: dotted.
        default: what stands there when nothing is set.
        rules: of the groups' keys, see ``research.config.group_rules``.
    """
    return RUN_RULES.get(key) or rules.get(key) or like(default)


@cache
def register() -> None:
    """Give Hydra the schema on which ``conf/config.yaml`` builds, and ``${if:…}``.

    ``${if:value,a,b}`` in YAML is ``a`` where the value is neither null nor empty, else ``b``.
    """
    OmegaConf.register_resolver("if", lambda value, a, b: a if value else b, replace=True)
    schema = OmegaConf.structured(RunSettings)
    OmegaConf.set_struct(schema.tags, False)  # so that tags.any=thing may be written
    ConfigStore.instance().store(name="schema", node=schema, replace=True)
