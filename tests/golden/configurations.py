"""The configurations of which golden losses are kept; each trains ten steps."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "assets" / "runs_v1"
PICTURES = ("dataset=imagefolder", "dataset.train_dirs=[data/pictures/train]")
PICTURES += ("dataset.val_dir=data/pictures/val", "dataset.image_size=32")
NARROW = ("model=densenet_bc_40_12", "model.block_layers=[2,2]", "model.growth_rate=8")
NARROW += ("model.initial_features=16", "channels_last=false")
FRAMES = ("dataset=warehouse", "dataset.manifest=stores/frames")
PHOTOS = ("dataset=phototriage", "dataset.root=data/photos")

GOLDEN: dict[str, tuple[str, ...]] = {
    "rgb": ("model=resnet34", "model.name=resnet10t", *PICTURES, "optimizer.lr=0.001"),
    "rgb_transformer": (
        "model=timm", "model.name=test_vit", *PICTURES, "optimizer=adamw", "layer_decay=0.7",
        "decay_norms=false", "model.drop_path_rate=0.2", "scheduler=one_cycle",
    ),
    "dct_from_pixels": (
        "model=resnet34_compressed", "model.name=resnet18", "compression=luma_fusion_pruned",
        "compression.window=2", *PICTURES, "dataset.augmentation.cutmix=1.0",
        "task.label_smoothing=0.1",
    ),
    "dct_reconstruction": (
        *NARROW, "compression=reconstruction", "compression.order=zigzag", "compression.window=3",
        "compression.refinement=pixels", *PICTURES, "optimizer=rmsprop", "scheduler=step",
        "scheduler.step_size=1",
    ),
    "dct_refined_blocks": (
        *NARROW, "compression=reconstruction", "compression.window=2", *PICTURES,
    ),
    "dct_late_concat": (
        "model=resnet34_compressed", "model.name=test_resnet", "compression=late_concat",
        *PICTURES, "model.drop_path_rate=0.2", "layer_decay=0.8",
    ),
    "dct_from_bitstream": (
        *NARROW, "compression=block_stem", "compression.source=bitstream", *PICTURES,
        "model.dropout=0.2",
    ),
    "dct_from_store": (
        *NARROW, "compression=luma_fusion", "compression.window=4", "dataset=warehouse",
        "dataset.manifest=stores/coefficients", "dataset.image_size=32", "optimizer=timm",
        "optimizer.name=lion", "optimizer.lr=1e-4",
    ),
    "fastnet_bf16": (
        "model=fastnet", "model.widths=[16,32,32]", *PICTURES, "ema=0.9", "ema_warmup=true",
        "dataset.augmentation.mixup=0.4", "accumulate=2", "grad_clip=1.0", "precision=bf16",
        "batch_size=2", "scale_lr=linear", "optimizer.lr=2.0",
    ),
    "bigdet": ("model=bigdet", "model.width=8", *FRAMES, "model.matching=hungarian"),
    "tinydet": ("model=tinydet", "model.width=8", *FRAMES),
    "rgbx": (
        "model=rgbx_mit_b0", "model.fpn_channels=16", "model.representation_size=16",
        "dataset=rgbx", "dataset.root=data/rgbx", "dataset.image_size=64", "batch_size=2",
        "dataset.group_by='seq(\\d+)_'", "dataset.augmentation.modality_dropout=0.3", "epochs=3",
        "optimizer.lr=1e-5", "scheduler=multistep", "scheduler.milestones=[1]",
    ),
    "ranking_frozen": (
        "model=siamese_frozen", "model.mlp_hidden_dims=[16]", "model.head=mlp", *PHOTOS,
        "dataset.features=[quality]",
    ),
    "ranking": (
        "model=siamese_e2e", "model.backbone=test_resnet", "model.freeze=partial", *PHOTOS,
        "dataset.image_size=32", "task.target=majority", "lr_backbone=0.1",
    ),
}  # fmt: skip
SHARED = ("device=cpu", "logging=csv", "epochs=2", "log_every=1", "keep=0", "seed=3")
SHARED += ("batch_size=4",)
STEPS = 5
"""Optimizer steps an epoch."""
VALIDATED = 12
"""Samples of validation."""


def overrides(name: str) -> list[str]:
    """The command line of a configuration."""
    return [*SHARED, *GOLDEN[name]]
