"""The run settings with their defaults, and what every key may be.

This is the one table to which a researcher adds a line: a run setting is a field of
``RunSettings``; the range of a key in a group is an entry of ``GROUP_RULES``. A group's key
without an entry must be of the type that its default in YAML has.
"""

from __future__ import annotations

from dataclasses import MISSING as NO_FACTORY
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from research.config.migrations import VERSION
from research.config.rules import (
    ADDRESS,
    COUNT,
    DEVICE,
    FOLDER_NAME,
    MAPPING,
    MONITOR,
    NAME,
    NOTHING,
    PATH,
    REGEX,
    SHARE,
    TARGETS,
    TEXT,
    TRUTH,
    Rule,
    like,
    list_of,
    mapping_of,
    number,
    one_of,
    only,
    or_null,
    pair,
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

GROUP_RULES: dict[str, Rule] = {
    "model.num_classes": COUNT,
    "model.coefficients": NOTHING,
    "model.image_size": NOTHING,
    "model.pretrained": PATH,
    "model.name": TEXT,
    "model.block_layers": list_of(COUNT, least=1),
    "model.growth_rate": COUNT,
    "model.initial_features": COUNT,
    "model.stem": one_of("auto", "cifar", "imagenet"),
    "model.dropout": SHARE,
    "model.kwargs": or_null(MAPPING),
    "model.width": whole(2),
    "model.widths": list_of(COUNT, least=1),
    "model.bias_scale": number(above=0),
    "model.logit_scale": number(above=0),
    "model.max_boxes": COUNT,
    "model.matching": one_of("greedy", "hungarian"),
    "model.lambda_box": number(at_least=0),
    "model.lambda_obj": number(at_least=0),
    "model.lambda_iou": number(at_least=0),
    "model.lambda_att": number(at_least=0),
    "model.ignore_iou": number(at_least=0, at_most=1),
    "model.nms_iou": number(at_least=0, at_most=1),
    "model.feature_sizes": NOTHING,
    "model.backbone": TEXT,
    "model.freeze": one_of("none", "partial", "full"),
    "model.head": one_of("bradley_terry", "mlp"),
    "model.mlp_hidden_dims": list_of(COUNT),
    "model.x_channels": COUNT,
    "model.fusion": one_of("cross_attention", "sum", "concat", "rgb_only", "x_only"),
    "model.norm": one_of("batch", "frozen", "group"),
    "model.fpn_channels": COUNT,
    "model.anchor_sizes": list_of(number(above=0), 5, increasing=True),
    "model.representation_size": COUNT,
    "model.rpn_samples": whole(2),
    "model.rois": whole(2),
    "model.proposals_train": COUNT,
    "model.proposals": COUNT,
    "model.score_threshold": SHARE,
    "model.rpn_nms_iou": number(at_least=0, at_most=1),
    "model.max_detections": COUNT,
    "model.drop_rate": SHARE,
    "model.drop_path_rate": SHARE,
    "dataset.train_dirs": list_of(PATH),
    "dataset.val_dir": or_null(PATH),
    "dataset.test_dir": PATH,
    "dataset.val_fraction": number(above=0, below=1),
    "dataset.image_size": whole(32),
    "dataset.labels": one_of("pairs", "votes"),
    "dataset.votes_file": PATH,
    "dataset.ties": one_of("drop", "soft"),
    "dataset.min_agreement": number(at_least=0, at_most=1),
    "dataset.min_reviewers": whole(0),
    "dataset.quick_experiment": number(above=0, at_most=1),
    "dataset.audit": one_of("warn", "error"),
    "dataset.fit": one_of("pad", "crop"),
    "dataset.features": list_of(TEXT, least=1),
    "dataset.feature_weights": mapping_of(or_null(PATH)),
    "dataset.cache_dir": PATH,
    "dataset.demo": NOTHING,
    "dataset.demo.root": PATH,
    "dataset.x": list_of(NAME, least=1),
    "dataset.class_names": list_of(TEXT, least=1),
    "dataset.test_fraction": SHARE,
    "dataset.group_by": or_null(REGEX),
    "dataset.missing_labels": one_of("negative", "error"),
    "dataset.statistics_images": COUNT,
    "dataset.batch_size": COUNT,
    "dataset.workers": whole(0),
    "dataset.pin_memory": TRUTH,
    "dataset.crop_scale": pair(number(above=0, at_most=1)),
    "dataset.crop_ratio": pair(number(above=0)),
    "dataset.crop_pct": or_null(number(above=0, at_most=1)),
    "dataset.mean": or_null(list_of(number(), least=3)),
    "dataset.std": or_null(list_of(number(above=0), least=3)),
    "dataset.root": PATH,
    "dataset.classes": Rule("10 or 100", lambda value: value in (10, 100)),
    "dataset.num_classes": whole(2),
    "dataset.val_images": COUNT,
    "dataset.split_seed": whole(0),
    "dataset.padding": whole(0),
    "dataset.augmentation.policy": one_of("randaugment", "trivialaugment", "autoaugment_cifar"),
    "dataset.augmentation.magnitude": whole(0, 30),
    "dataset.augmentation.operations": COUNT,
    "dataset.augmentation.erasing": number(at_least=0, at_most=1),
    "dataset.augmentation.mixup": number(at_least=0),
    "dataset.augmentation.cutmix": number(at_least=0),
    "dataset.augmentation.mix_probability": number(at_least=0, at_most=1),
    "dataset.max_train_images": COUNT,
    "dataset.max_val_images": COUNT,
    "dataset.stored_size": whole(16),
    "dataset.manifest": PATH,
    "dataset.max_boxes": COUNT,
    "dataset.augmentation.zoom": pair(number(above=0)),
    "dataset.augmentation.brightness": number(at_least=0, at_most=1),
    "dataset.augmentation.contrast": number(at_least=0, at_most=1),
    "dataset.augmentation.noise": number(at_least=0, at_most=1),
    "dataset.augmentation.modality_dropout": number(at_least=0, at_most=1),
    "dataset.verify": one_of("always", "once", "never"),
    "dataset.on_device": TRUTH,
    "dataset.device_budget": number(at_least=0),
    "dataset.folds": whole(3),
    "dataset.fold": whole(0),
    "dataset.demo.runs": whole(2),
    "dataset.demo.images": whole(13),
    "dataset.demo.series": whole(10),
    "dataset.demo.size": whole(64),
    "dataset.demo.frames": COUNT,
    "dataset.demo.image_size": whole(32),
    "dataset.demo.max_boxes": COUNT,
    "dataset.demo.train_images": COUNT,
    "dataset.demo.val_images": COUNT,
    "dataset.demo.seed": whole(0),
    "optimizer.lr": number(above=0),
    "optimizer.momentum": SHARE,
    "optimizer.weight_decay": number(at_least=0),
    "optimizer.betas": list_of(SHARE, 2),
    "optimizer.alpha": SHARE,
    "optimizer.eps": number(above=0),
    "optimizer.library": one_of("timm", "torch"),
    "optimizer.kwargs": MAPPING,
    "scheduler.warmup_epochs": number(at_least=0),
    "scheduler.warmup_steps": whole(0),
    "scheduler.lr_end": number(at_least=0),
    "scheduler.step_size": COUNT,
    "scheduler.milestones": list_of(COUNT, increasing=True),
    "scheduler.gamma": number(above=0),
    "scheduler.pct_start": SHARE,
    "scheduler.div_factor": number(at_least=1),
    "scheduler.final_div_factor": number(at_least=1),
    "scheduler.anneal": one_of("cos", "linear"),
    "compression.variant": one_of(
        "none", "reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned"
    ),
    "compression.source": one_of("pixels", "bitstream"),
    "compression.range": one_of("studio", "full"),
    "compression.order": one_of("corner", "zigzag"),
    "compression.window": whole(1, 8),
    "compression.window_luma": whole(1, 8),
    "compression.window_chroma": whole(1, 8),
    "compression.count_luma": whole(0, 64),
    "compression.count_chroma": whole(0, 64),
    "compression.statistics_images": COUNT,
    "task.label_smoothing": SHARE,
    "task.iou": number(above=0, at_most=1),
    "task.score": number(at_least=0, at_most=1),
    "task.presence": number(at_least=0, at_most=1),
    "task.target": one_of("soft", "majority"),
    "task.monitor": MONITOR,
    "logging.mlflow.uri": ADDRESS,
}


SWEEPER_RULES: dict[str, Rule] = {
    "hydra.sweeper.study_name": or_null(FOLDER_NAME),
    "hydra.sweeper.storage": or_null(TEXT),
    "hydra.sweeper.objectives": list_of(
        one_of("monitor", "latency_ms", "bytes_per_image"), least=1
    ),
    "hydra.sweeper.n_trials": or_null(COUNT),
    "hydra.sweeper.seed": whole(0),
    "hydra.sweeper.n_jobs": or_null(COUNT),
    "hydra.sweeper.max_failure_rate": number(at_least=0, at_most=1),
    "hydra.sweeper.retry_failed": TRUTH,
}
"""What keys of ``conf/hydra/sweeper/study.yaml`` may be."""


def rule_for(key: str, default: Any) -> Rule:
    """The rule of a dotted key: its own, or the type of its default."""
    rules = (RUN_RULES, GROUP_RULES, SWEEPER_RULES)
    return next((rule[key] for rule in rules if key in rule), None) or like(default)


@cache
def register() -> None:
    """Give Hydra the schema on which ``conf/config.yaml`` builds."""
    schema = OmegaConf.structured(RunSettings)
    OmegaConf.set_struct(schema.tags, False)  # so that tags.any=thing may be written
    ConfigStore.instance().store(name="schema", node=schema, replace=True)
