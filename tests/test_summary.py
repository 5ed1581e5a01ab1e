from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from research import build, summary
from research.config import compose_config, resolved
from research.errors import UserError

DOCS = Path(__file__).parents[1] / "docs"
VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned")
COMMAND = "python -m research.summary "


def documented() -> list[Any]:
    """Each fenced ``research.summary`` command that a table follows: (settings, table)."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for fence in re.finditer(r"^```\w*\n(.*?)^```\n\n?((?:^\|[^\n]*\n?)*)", text, re.M | re.S):
            body, table = fence[1].replace("\\\n", " ").strip(), fence[2].strip()
            if body.startswith(COMMAND) and table:
                line = text[: fence.start()].count("\n") + 1
                name = f"{page.relative_to(DOCS)}:{line}"
                found.append(pytest.param(shlex.split(body)[3:], table, id=name))
    return found


def test_every_variant_has_a_page_with_a_table_of_every_window() -> None:
    pages = {str(case.id).split(":")[0]: case.values[0] for case in documented()}
    for variant in VARIANTS:
        settings = pages[f"compression/{variant}.md"]
        assert f"compression={variant}" in settings
        assert "compression.window=1,2,4,8" in settings


@pytest.mark.parametrize(("settings", "table"), documented())
def test_documented_tables_are_what_their_command_prints(settings: list[str], table: str) -> None:
    assert summary.table(settings).splitlines() == table.splitlines()


def test_resnet34_is_as_large_and_as_dear_as_published() -> None:
    parameters, macs = summary.measure(
        ["model=resnet34", "compression=none", "dataset.image_size=224"]
    )
    assert parameters == 21_797_672
    assert macs / 1e9 == pytest.approx(3.67, abs=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_network(variant: str) -> None:
    settings = [f"compression={variant}", "model.name=resnet18", "compression.window=2"]
    ((varied, parameters, gmac),) = summary.rows([*settings, "model.num_classes=7"])
    assert varied == []
    config = resolved(compose_config(settings)[0])
    network = build.model(config, {"classes": list("abcdefg")})
    assert parameters == sum(tensor.numel() for tensor in network.parameters())
    assert gmac > 0


def test_multiply_adds_grow_with_the_image() -> None:
    base = ["model=resnet34", "model.name=resnet18"]
    small, large = (summary.measure([*base, f"dataset.image_size={size}"]) for size in (32, 64))
    assert small[0] == large[0]
    # Every convolution costs four times as much, the classifier the same.
    assert large[1] - 512_000 == 4 * (small[1] - 512_000)


def test_a_row_for_every_combination() -> None:
    text = summary.table(
        [
            "model.name=resnet18",
            "compression=block_stem,luma_fusion",
            "compression.window=1,2",
            "dataset.image_size=32",
            "dataset.mean=[0,0,0]",
        ]
    )
    header, rule, *rows = (line.strip("| ").split(" | ") for line in text.splitlines())
    assert header == ["compression", "compression.window", "parameters", "GMAC"]
    assert rule == ["---", "---", "---:", "---:"]
    assert [row[:2] for row in rows] == [
        [variant, window] for variant in ("block_stem", "luma_fusion") for window in ("1", "2")
    ]
    assert all(re.fullmatch(r"\d{1,3}(,\d{3})+", row[2]) for row in rows)


def test_mistakes_are_told_as_everywhere() -> None:
    with pytest.raises(UserError, match="window"):
        summary.table(["compression.window=4,9"])
    with pytest.raises(UserError, match="key=value"):
        summary.main(["resnet34"])


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model.name=resnet18", "dataset.image_size=32"]
    summary.main(settings)
    assert capsys.readouterr().out.strip() == summary.table(settings)
