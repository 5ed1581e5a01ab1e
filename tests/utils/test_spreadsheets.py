"""No name of a stranger becomes a formula in the tables that people open in spreadsheets."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from research.data.frames.media import Still
from research.inference.ranking import RankingWriter
from research.inference.writers import ClassWriter
from research.tracking.files import FileTracker, csv_text, read_rows
from research.tracking.tracker import Position, Run
from research.utils.spreadsheets import cell
from tests.conftest import ROOT

FORMULAS = (
    "=1+1",
    "=cmd|'/c calc'!A1.jpg",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1+1",
    "-rf.jpg",
    "--",
)
WRITERS = {
    "research/inference/writers.py",
    "research/lr_find.py",  # numbers only
    "research/tracking/files.py",
}


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_text(text: str) -> None:
    one_line = text.replace("\t", " ").replace("\r", " ")
    assert cell(text) == f"'{one_line}"
    assert cell(cell(text)) == f"'{one_line}"  # a table is read and written again


@pytest.mark.parametrize(
    "value", ["-0.5", "+3", "-1e-05", "-inf", "a=b", "", "'", -1, -0.5, math.inf, None, True]
)
def test_all_else_stays(value: object) -> None:
    assert cell(value) is value


def test_tables_have_no_formulas(tmp_path: Path) -> None:
    assert cell("a\r=1\n=2\0") == "a =1 =2 "
    rows = [{"=name": text, "loss": -0.25} for text in FORMULAS]
    header, *lines = csv.reader(io.StringIO(csv_text(["=name", "loss"], rows), newline=""))
    assert header == ["'=name", "loss"]
    assert [line[1] for line in lines] == ["-0.25"] * len(rows)
    assert all(line[0] == cell(text) for line, text in zip(lines, FORMULAS, strict=True))
    tracker = FileTracker()
    tracker.start(Run(tmp_path, "run", {}))
    tracker.log("epoch", 1, {"epoch": 1, "name": "=1+1", "loss": -0.5})
    tracker.log("epoch", 2, {"epoch": 2, "name": "@x", "loss": -1.5, "new": "-x"})
    kept = read_rows(tmp_path / "epoch_metrics.csv")
    assert [(row["name"], row["loss"], row["new"]) for row in kept] == [
        ("'=1+1", "-0.5", ""),
        ("'@x", "-1.5", "'-x"),
    ]
    path = tmp_path / "epoch_metrics.csv"
    path.write_text("epoch,=name\n1,=1+1\n2,@x\n")  # a stranger's, written again when resumed
    tracker.start(Run(tmp_path, "run", {}, resumed=Position(1, 1, 1)))
    assert path.read_text() == "epoch,'=name\n1,'=1+1\n"


def test_predictions_have_no_formulas(tmp_path: Path) -> None:
    names = ["=1+1", "dog"]
    images = [[Image.new("RGB", (8, 8))]] * 2
    stills = [Still(f"{name}.jpg", "", name, Path(name)) for name in ("=2+2", "-a")]
    with ClassWriter(tmp_path, names) as writer:
        writer.add(stills, images, torch.tensor([[9.0, -9.0], [9.0, -9.0]]))
    with RankingWriter(tmp_path) as ranking:
        ranking.add(stills, images, torch.tensor([-0.5, -2.0]))
    for table in ("predictions.csv", "ranking.csv"):
        with (tmp_path / table).open(newline="") as file:
            cells = [each for row in csv.reader(file) for each in row]
        assert {"'=2+2.jpg", "'-a.jpg"} <= {*cells}
        assert all(not each.startswith(("=", "-a", "@")) for each in cells)
    assert "'=1+1" in (tmp_path / "predictions.csv").read_text()
    assert "-0.5" in (tmp_path / "ranking.csv").read_text()


def test_all_writers_of_tables_are_known() -> None:
    """A new one has to pass its texts through ``cell``."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "research").rglob("*.py")
        if re.search(r"csv\.(writer|DictWriter)|to_csv", path.read_text(encoding="utf-8"))
    }
    assert found == WRITERS
