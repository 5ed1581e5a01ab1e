"""Tables: Markdown in a pipe, fitted to a terminal without a cut cell."""

from __future__ import annotations

import pytest

from research.utils.tables import TextTable

LEADERBOARD = TextTable(
    [
        "run", "model", "parameters", "size MB", "ms/image, batch 1", "ms/image, batch 8",
        "FPS, batch 8", "mAP50", "mAP75", "mAP", "mean_iou", "speed", "accuracy", "size",
    ],
    [
        [
            "runs/2026-11-30_02-10-35_demo_rgbx_cross_attention", "rgbx_mit_b0", "111,885,510",
            "447.5", "30.2", "16.7", "59.8", "0.019", "0.000", "0.005", "0.199", "2", "2", "2",
        ],
        [
            "runs/det", "TinyDet", "310,598", "1.2", "3.7", "2.0", "1487.8", "0.102", "0.004",
            "0.023", "0.425", "1", "1", "1",
        ],
    ],
    "ll" + "r" * 12,
)  # fmt: skip
ROBUSTNESS = TextTable(
    ["disturbance", "sensor", "amount", "mAP50", "mAP", "recall", "precision", "Δ mAP50"],
    [["noisy", "all but RGB", "0.25", "0.018", "0.003", "0.000", "nan", "-0.003"]] * 2,
    "llrrrrrr",
    keys=3,
)
FOLDS = TextTable(
    ["run", "groups", "frames", "mAP50", "mean IoU", "constant box", "difference"],
    [["all", "60", "840", "0.103", "0.425", "0.162", "+0.263\n[+0.201, +0.312]"]],
    "lrrrrrr",
)
TABLES = {"leaderboard": LEADERBOARD, "robustness": ROBUSTNESS, "folds": FOLDS}

NARROWEST = {"leaderboard": 150, "robustness": 84, "folds": 71}
"""Characters in which a table has all columns."""


def test_in_a_pipe_it_is_markdown() -> None:
    table = TextTable(["run", "a|b"], [["x", "1\n[2]"], ["long name", ""]], "lr")
    assert table.text().splitlines() == [
        "| run | a\\|b |",
        "| --- | ---: |",
        "| x | 1 [2] |",
        "| long name |  |",
    ]


def test_columns_are_aligned_on_a_terminal() -> None:
    table = TextTable(["run", "value"], [["x", "1"], ["long name", "12.5"]], "lr")
    assert table.text(80).splitlines() == [
        "| run       | value |",
        "| --------- | ----: |",
        "| x         |     1 |",
        "| long name |  12.5 |",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 300])
@pytest.mark.parametrize("name", TABLES)
def test_it_fits_and_no_cell_is_cut(name: str, width: int) -> None:
    table = TABLES[name]
    text = table.text(width)
    assert max(map(len, text.splitlines())) <= width
    # Columns with all of their text, spaces apart: where a cell is wrapped does not matter.
    whole = list(zip(table.header, *table.rows, strict=True))
    expected = ["".join("".join(column).split()) for column in whole]
    keys, others = expected[: table.keys], []
    for part in text.split("\n\n"):
        lines = [line for line in part.splitlines() if set(line) - set("|-: ")]
        cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
        found = ["".join("".join(column).split()) for column in zip(*cells, strict=True)]
        assert found[: table.keys] == keys
        others += found[table.keys :]
    assert others == expected[table.keys :]
    # Figures stay in one line.
    for row in table.rows:
        figures = [cell for cell, side in zip(row, table.sides, strict=True) if side == "r"]
        assert all(piece in text for cell in figures for piece in cell.split("\n"))
    assert ("\n\n" in text) == (width < NARROWEST[name])


def test_names_are_broken_after_a_separator() -> None:
    table = TextTable(["run", "value"], [["runs/sweeps/study/trial_0001", "1"]], "lr")
    assert [line.split("|")[1].strip() for line in table.text(30).splitlines()] == [
        "run", "------------------", "runs/sweeps/study/", "trial_0001",
    ]  # fmt: skip
