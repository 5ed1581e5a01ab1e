"""Every value of every axis of compression: variant, window, range, source, order, budgets."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from research.batch import ClassificationBatch
from research.compression.selection import Selection
from research.compression.stems import StemSpec
from research.config import compose_config, resolved
from research.data.crops import CentreCrop
from research.data.readers import BitstreamReader, PixelReader, Reader
from research.data.transforms import CoefficientTransform
from research.engine import build, checkpoint
from research.engine.loop import evaluate
from research.models.stemmed import LateConcat
from research.tracking.tracker import Tracker
from tests.conftest import CLASSES, data_overrides, picture, run, trained_epoch

Compose = Callable[..., dict[str, Any]]

VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned", "late_concat")
SLOWEST = "reconstruction"
"""It has the whole image to work on."""
WINDOWS = (1, 2, 4, 8)
RANGES = ("studio", "full")
SOURCES = ("pixels", "bitstream")
ORDERS = ("corner", "zigzag")
PRODUCT = list(itertools.product(VARIANTS, WINDOWS, RANGES, SOURCES, ORDERS))
BUDGETS = [(0, 1), (0, 64), (1, 0), (10, 0), (10, 5), (64, 64)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for number in range(4):
        path = folder / f"{number}.jpg"
        picture(CLASSES[number % 3], number, (48, 40)).save(path, subsampling=number % 3)
    return sorted(folder.iterdir())


class Trunk(nn.Sequential):
    """One residual block, as small as may be, behind a stem."""

    def __init__(self, stem: StemSpec, channels: int = 8) -> None:
        inputs = 3 if stem.takes_image else channels
        shortcut = nn.Sequential(nn.Conv2d(inputs, 8, 1, bias=False), nn.BatchNorm2d(8))
        super().__init__(
            stem.build(channels),
            BasicBlock(inputs, 8, downsample=shortcut),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )


def network(spec: StemSpec) -> nn.Module:
    """As small a network as may be behind the stem."""
    if not spec.joins_late:
        return Trunk(spec)
    sizes = {"channels": (8, 8, 16, 16), "stem_type": "deep", "stem_width": 4}
    backbone = ResNet(BasicBlock, (0, 1, 2, 1), num_classes=4, **sizes)
    for part in ("conv1", "bn1", "act1", "maxpool"):
        setattr(backbone, part, nn.Identity())
    return LateConcat(spec.build_late(8, 16), backbone)


def unmoved(spec: StemSpec, source: str, files: list[Path]) -> list[str]:
    """Parameters without a finite gradient that moves them, after two steps on real files."""
    reader: Reader = (
        BitstreamReader(32, spec.selection) if source == "bitstream" else PixelReader(32)
    )
    samples = [reader.read(file, CentreCrop(1.0), np.random.default_rng(0)) for file in files]
    labels = torch.arange(4)
    batch = ClassificationBatch(labels, reader.stack(samples), labels)
    transform = CoefficientTransform(spec.selection, spec.range_, None, flip=True)
    torch.manual_seed(0)
    model = network(spec)
    inputs = transform(batch, torch.Generator().manual_seed(0)).inputs
    solver = torch.optim.SGD(model.parameters(), lr=1e-3)
    # What stands before a layer that starts at zero gets its gradient from the second step on.
    for _ in range(2):
        solver.zero_grad()
        logits = model(inputs)
        assert logits.shape == (4, 4)
        nn.functional.cross_entropy(logits, labels).backward()
        solver.step()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return [
        name
        for name, gradient in gradients.items()
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]


@pytest.mark.parametrize(
    ("variant", "window", "range_", "source", "order"), PRODUCT, ids=lambda value: str(value)
)
def test_the_full_product_runs_forward_and_backward(
    variant: str, window: int, range_: str, source: str, order: Any, files: list[Path]
) -> None:
    selection = Selection.from_settings(window, order)
    assert unmoved(StemSpec(variant, selection, range_, "blocks"), source, files) == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("count_luma", "count_chroma"), BUDGETS)
def test_any_budget_runs_forward_and_backward(
    variant: str, count_luma: int, count_chroma: int, files: list[Path]
) -> None:
    selection = Selection.from_settings(
        4, "zigzag", count_luma=count_luma, count_chroma=count_chroma
    )
    for source in SOURCES:
        assert unmoved(StemSpec(variant, selection, "studio", "blocks"), source, files) == []


def test_windows_of_its_own_for_a_plane(files: list[Path]) -> None:
    for variant in VARIANTS:
        selection = Selection.from_settings(4, "corner", window_luma=8, window_chroma=1)
        assert unmoved(StemSpec(variant, selection, "full", "blocks"), "bitstream", files) == []


# Each value of each axis at least once; the product above covers how they combine.
RUNS = [
    ("reconstruction", 1, "full", "bitstream", "zigzag", ()),
    ("block_stem", 2, "studio", "pixels", "corner", ()),
    ("luma_fusion", 4, "full", "pixels", "zigzag", ()),
    ("luma_fusion_pruned", 8, "studio", "bitstream", "corner", ()),
    ("block_stem", 4, "full", "bitstream", "zigzag", ("count_luma=0", "count_chroma=10")),
    ("luma_fusion_pruned", 4, "studio", "pixels", "zigzag", ("count_luma=10", "count_chroma=0")),
    ("reconstruction", 4, "studio", "pixels", "corner", ("window_luma=8", "window_chroma=2")),
    ("late_concat", 4, "studio", "bitstream", "corner", ("window_luma=8", "window_chroma=2")),
]


def test_the_runs_cover_every_value() -> None:
    axes = list(zip(*RUNS, strict=True))
    for values, wanted in zip(axes, (VARIANTS, WINDOWS, RANGES, SOURCES, ORDERS), strict=False):
        assert set(values) == set(wanted)
    budgets = {word.split("=")[0] for row in RUNS for word in row[5]}
    assert budgets == {"count_luma", "count_chroma", "window_luma", "window_chroma"}


@pytest.mark.parametrize(("variant", "window", "range_", "source", "order", "budget"), RUNS)
def test_every_value_trains(
    small: Compose,
    variant: str,
    window: int,
    range_: str,
    source: str,
    order: str,
    budget: tuple[str, ...],
) -> None:
    config = small(
        f"compression={variant}",
        f"compression.window={window}",
        f"compression.range={range_}",
        f"compression.source={source}",
        f"compression.order={order}",
        *(f"compression.{word}" for word in budget),
        # Two: what stands before a layer that starts at zero moves with the second step.
        "max_train_batches=2",
        "max_val_batches=1",
    )
    folder = run(config)
    with (folder / "epoch_metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert math.isfinite(float(row["train/loss"]))
    assert math.isfinite(float(row["val/loss"]))
    assert not [key for key in row if key.startswith(("train/fallback", "train/left"))]
    fresh = build.experiment(config).state.model
    trained = checkpoint.load(folder / "checkpoints" / "last.pt")["model"]
    still = [
        name
        for name, parameter in fresh.named_parameters()
        if torch.equal(parameter, trained[name])
    ]
    assert still == []


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=pytest.mark.whole if name == SLOWEST else pytest.mark.long)
        for name in VARIANTS
    ],
)
def test_each_variant_overfits_32_images(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Classes that have nothing to do with what is shown: each image has to be known by heart.
    labels = np.random.default_rng(0).permutation(np.arange(36) % 4)
    for number, label in enumerate(labels):
        split = "train" if number < 32 else "val"
        path = tmp_path / "data" / split / f"class{label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(CLASSES[number % 3], number, (72, 64)).save(path, quality=90)
    monkeypatch.chdir(tmp_path)
    config = resolved(
        compose_config(
            [
                "dataset=imagefolder",
                *data_overrides(tmp_path / "data"),
                f"compression={variant}",
                "compression.window=4",
                "model.name=resnet18",
                "dataset.image_size=64",
                "batch_size=16",
                "dataset.random_crop=false",
                "dataset.random_flip=false",
                "optimizer=adamw",
                "optimizer.lr=0.002",
                "epochs=60",
                "device=cpu",
                "logging=csv",
            ]
        )[0]
    )
    built = build.experiment(config)
    assert len(built.data.splits["train"].files) == 32
    split = build.loader(config, built.data, "train", built.device, train=False)
    state, tracker = built.state, Tracker()
    top1 = 0.0
    while top1 < 1 and state.epoch < config["epochs"]:
        trained_epoch(built, tracker)
        result = evaluate(
            state.eval_model, built.task, split, state.transform, built.cfg, built.device
        )
        top1 = result.metrics["top1"]
    assert top1 == 1
