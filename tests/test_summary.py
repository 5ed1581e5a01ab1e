from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from research import summary
from research.config import compose_config
from research.config.options import options
from research.data.pairs.quality import QUALITY
from research.engine import build, cost
from research.utils.errors import UserError
from tests.conftest import user_error

DOCS = Path(__file__).parents[1] / "docs"
VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned", "late_concat")
COMMAND = "python -m research.summary "
QUICK = ("compression/luma_fusion_pruned.md", "warehouse.md")
"""Pages whose tables take seconds to print again; the others take up to half a minute."""


def documented() -> list[Any]:
    """Each fenced ``research.summary`` command that a table follows: (settings, table)."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for fence in re.finditer(r"^```\w*\n(.*?)^```\n\n?((?:^\|[^\n]*\n?)*)", text, re.M | re.S):
            body, table = fence[1].replace("\\\n", " ").strip(), fence[2].strip()
            if body.startswith(COMMAND) and table:
                line = text[: fence.start()].count("\n") + 1
                name = str(page.relative_to(DOCS))
                marks = [] if name in QUICK else [pytest.mark.whole]
                words = shlex.split(body)[3:]
                found.append(pytest.param(words, table, id=f"{name}:{line}", marks=marks))
    return found


def test_every_variant_has_a_page_with_a_table_of_every_window() -> None:
    pages = {str(case.id).split(":")[0]: case.values[0] for case in documented()}
    for variant in VARIANTS:
        settings = pages[f"compression/{variant}.md"]
        assert f"compression={variant}" in settings
        assert "compression.window=1,2,4,8" in settings


@pytest.mark.parametrize(("settings", "table"), documented())
def test_documented_tables_are_what_their_command_prints(
    settings: list[str], table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "latency=false" in settings, "a time is another on every machine"
    summary.main(settings)
    assert capsys.readouterr().out.strip().splitlines() == table.splitlines()


def one(*settings: str) -> summary.ModelSummary:
    (row,) = summary.rows(list(settings))
    return row


def test_resnet34_is_as_large_and_as_dear_as_published() -> None:
    row = one("model=resnet34", "compression=none", "dataset.image_size=224")
    assert row.parameters == 21_797_672
    assert row.macs / 1e9 == pytest.approx(3.67, abs=0.02)
    # Weights, and of each norm two statistics and a counter of eight bytes.
    statistics = sum(2 * width for width in norms_of_resnet34())
    assert row.size == 4 * (row.parameters + statistics) + 8 * len(norms_of_resnet34())


def norms_of_resnet34() -> list[int]:
    """Widths, by the paper's table 1: the stem, two in a block, one before a change of width."""
    stages = ((64, 3), (128, 4), (256, 6), (512, 3))
    blocks = [width for width, depth in stages for _ in range(2 * depth)]
    return [64, *blocks, 128, 256, 512]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_network(variant: str) -> None:
    settings = [f"compression={variant}", "model.name=resnet18", "compression.window=2"]
    row = one(*settings, "model.num_classes=7")
    assert row.varied == []
    config = compose_config(settings).config
    network = build.model(config, {"classes": list("abcdefg")})
    assert row.parameters == sum(tensor.numel() for tensor in network.parameters())
    assert row.macs > 0
    assert row.latency is None


@pytest.mark.parametrize("window", [1, 8])
def test_multiply_adds_of_late_concat_are_those_counted_by_hand(window: int) -> None:
    row = one(
        "model=resnet34_compressed",
        "compression=late_concat",
        f"compression.window={window}",
        "dataset.image_size=224",
    )
    kept = window**2

    def stage(inputs: int, width: int, depth: int) -> int:
        """Multiply-adds at one position: the first block with a 1×1 shortcut, then the others."""
        return 9 * inputs * width + 9 * width**2 + inputs * width + (depth - 1) * 18 * width**2

    # Grids of 28, 14 and 7; luma to 64, chroma to 64, join of 256 + 64.
    assert row.macs == (
        28**2 * (9 * kept * 64 + stage(64, 128, 2))
        + 14**2 * (9 * 2 * kept * 64 + (256 + 64) * 256 + stage(128, 256, 6))
        + 7**2 * stage(256, 512, 3)
        + 512 * 1000
    )


def test_multiply_adds_and_activations_grow_with_the_image() -> None:
    base = ("model=resnet34", "model.name=resnet18")
    small, large = (one(*base, f"dataset.image_size={size}") for size in (32, 64))
    assert (small.parameters, small.size) == (large.parameters, large.size)
    # Every convolution costs four times as much, the classifier the same.
    assert large.macs - 512_000 == 4 * (small.macs - 512_000)
    assert 3.5 < large.activations / small.activations < 4


def measured(network: nn.Module, size: int = 32) -> float:
    """Bytes that one image keeps, by ``measure``."""
    config = compose_config(["model=densenet121", f"dataset.image_size={size}"]).config
    return cost.measure(network, config, {"classes": ["a", "b"]})[2]


def test_activations_are_what_backward_needs_counted_once() -> None:
    """Networks whose needs can be written down: float32, per image of 3·32·32 pixels."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    pixels, features = 3 * 32 * 32, 2 * 32 * 32
    loss = 2  # cross-entropy keeps the two log-probabilities

    # The convolution keeps its input, the pooling nothing; labels and a few scalars come on top.
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), *head)
    assert measured(plain) == pytest.approx(4 * (pixels + loss), abs=50)
    # A ReLU keeps its output, which is the next convolution's input: one storage, counted once.
    twice = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), *head)
    assert measured(twice) == pytest.approx(4 * (pixels + features + loss), abs=50)
    # Parameters are no activations, however large.
    wide = nn.Sequential(nn.Conv2d(3, 2, 31, padding=15), *head)
    assert measured(wide) == pytest.approx(4 * (pixels + loss), abs=50)


def test_memory_efficient_keeps_less() -> None:
    tiny = ("model=densenet_bc_40_12", "model.block_layers=[4,4]", "dataset.image_size=32")
    plain, saving = (one(*tiny, f"model.memory_efficient={value}") for value in ("false", "true"))
    assert saving.activations < 0.75 * plain.activations
    assert (saving.parameters, saving.macs) == (plain.parameters, plain.macs)


def test_latency_is_a_column_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["model=densenet_bc_40_12", "model.block_layers=[1,1]", "dataset.image_size=32"]
    summary.main([*tiny, "rounds=1", "batch=2", "device=cpu", "precision=bf16"])
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert header.endswith("| size MB | latency ms |")
    assert float(row.strip("| ").split(" | ")[-1]) > 0


def test_a_row_for_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    summary.main(
        [
            "model.name=resnet18",
            "compression=block_stem,luma_fusion",
            "compression.window=range(1,3)",
            "dataset.image_size=32",
            "dataset.mean=[0,0,0]",
            "latency=false",
        ]
    )
    text = capsys.readouterr().out.strip()
    header, rule, *rows = (line.strip("| ").split(" | ") for line in text.splitlines())
    columns = ["parameters", "GMAC", "activations MB", "size MB"]
    assert header == ["compression", "compression.window", *columns]
    assert rule == ["---"] * 2 + ["---:"] * 4
    assert [row[:2] for row in rows] == [
        [variant, window] for variant in ("block_stem", "luma_fusion") for window in ("1", "2")
    ]
    assert all(re.fullmatch(r"\d{1,3}(,\d{3})+", row[2]) for row in rows)


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("compression.window=4,9", "window"),
        ("resnet34", "key=value"),
        ("latancy=false", "did you mean 'latency'"),
        ("rounds=0", "rounds=0: expected a whole number at least 1"),
        ("device=gpu", "device=gpu"),
    ],
)
def test_mistakes_are_told_as_everywhere(word: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        summary.main([word])


@pytest.mark.parametrize(
    ("words", "head"),
    [
        (["dataset=cifar10"], 10),
        (["dataset=cifar100"], 100),
        (["dataset=demo"], 12),
        (["dataset=imagefolder", "dataset.train_dirs=[FOLDERS]"], 3),
        (["dataset=imagefolder", "dataset.train_dirs=[not/there]"], 1000),
        (["dataset=cifar10", "model.num_classes=7"], 7),
        ([], 1000),
    ],
)
def test_the_chosen_data_set_says_how_many_classes(
    words: list[str], head: int, folders: Path
) -> None:
    words = [word.replace("FOLDERS", str(folders / "train")) for word in words]
    resnet = ("model=resnet34", "model.name=resnet18", "dataset.image_size=32")
    few = one(*resnet, "model.num_classes=1").parameters
    assert one(*resnet, *words).parameters == few + (head - 1) * (512 + 1)


def test_a_ranker_of_features_is_summed_up() -> None:
    row = one("model=siamese_frozen")
    # A tower of 256 and 128, one score without a bias; two photos a pair.
    weights = len(QUALITY) * 256 + 256 * 128 + 128
    assert row.parameters == weights + 256 + 128
    assert row.macs == 2 * weights


def test_a_ranker_of_images_is_summed_up() -> None:
    row = one("model=siamese_e2e", "model.backbone=test_resnet", "dataset.image_size=64")
    plain = ("model=timm", "model.name=test_resnet", "dataset.image_size=64")
    single = one(*plain, "model.num_classes=1")
    assert row.parameters == single.parameters - 1  # its score has no bias
    assert row.macs == 2 * single.macs


@pytest.mark.long
def test_every_model_is_summed_up() -> None:
    for model in options("model"):
        words = ["model.name=test_resnet"] if model == "timm" else []
        if model.startswith("densenet"):
            words = ["model.block_layers=[1,1]"]
        assert one(f"model={model}", *words, "dataset.image_size=64").parameters > 0


SHAPES = {
    # He et al., 2016, table 1, at a quarter of the size.
    "model=resnet34 model.name=resnet18 dataset.image_size=56": (
        "3x56x56",
        {"layer1": "64x14x14", "layer2": "128x7x7", "layer3": "256x4x4", "layer4": "512x2x2"},
        "512",
        "1000",
    ),
    # Huang et al., 2017, section 4: three blocks at 32, 16 and 8 px; 24 + 36 · 12, half, and so on.
    "model=densenet_bc_40_12 dataset.image_size=32": (
        "3x32x32",
        {"features.denseblock1": "96x32x32", "features.denseblock2": "120x16x16"},
        "132",
        "1000",
    ),
    "model.name=resnet18 dataset.image_size=64 compression.window=2 model.num_classes=7": (
        "y 4x8x8, cbcr 2x4x4x4",
        {"backbone.layer1": "64x16x16", "backbone.layer4": "512x2x2"},
        "512",
        "7",
    ),
    "model=siamese_e2e model.backbone=test_resnet dataset.image_size=32": (
        "2x3x32x32", {}, "96", "1",
    ),
    "model=siamese_frozen model.mlp_hidden_dims=[8] dataset.features=[quality]": (
        "2x9", {}, "8", "1",
    ),
    "model=tinydet model.width=4": ("3x384x384", {}, "64", "boxes 1x4, scores 1, labels 1"),
}  # fmt: skip


@pytest.mark.parametrize("line", SHAPES)
def test_shapes_are_those_of_the_papers(line: str) -> None:
    (row,) = summary.rows(line.split(), with_shapes=True)
    assert row.shapes is not None
    stages = dict(stage.rsplit(" ", 1) for stage in row.shapes.stages.split("; ") if stage)
    found = (row.shapes.input, row.shapes.features, row.shapes.output)
    expected = SHAPES[line]
    assert found == (expected[0], expected[2], expected[3])
    assert stages.items() >= expected[1].items()


def test_the_csv_has_the_table_and_the_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=densenet_bc_40_12,fastnet", "dataset.image_size=32", "latency=false"]
    (tmp_path / "file").touch()
    with user_error("out"):
        summary.main([*words, f"csv={tmp_path / 'file/sizes.csv'}"])
    kept = capsys.readouterr().out
    summary.main([*words, f"csv={tmp_path / 'sizes.csv'}"])
    printed = capsys.readouterr().out.strip().splitlines()[2:]
    assert kept.strip().splitlines()[2:] == printed
    with (tmp_path / "sizes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "model", "parameters", "GMAC", "activations MB", "size MB",
        "input", "stages", "features", "output",
    ]  # fmt: skip
    assert [row["model"] for row in rows] == ["densenet_bc_40_12", "fastnet"]
    for row, line in zip(rows, printed, strict=True):
        assert f"| {row['model']} | {int(row['parameters']):,} |" in line
        assert row["input"] == "3x32x32"
        assert row["stages"]
