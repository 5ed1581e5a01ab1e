"""CSV tables: late columns, incomplete rows, rows after the epoch that is resumed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.tracking.files import FileTracker, read_rows
from research.tracking.tracker import Position, Run


def started(folder: Path, resumed: int = 0) -> FileTracker:
    tracker = FileTracker()
    tracker.start(Run(folder, "run", {}, resumed=Position(resumed, step=resumed)))
    return tracker


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    for step in (1, 2, 3):
        tracker.log("batch", step, {"epoch": 1, "batch": step, "loss": 0.1 + 0.2})
        assert (tmp_path / "batch_metrics.csv").read_text().count("\n") == 1 + step
    # Every digit that it takes to read the same number back.
    assert float(rows(tmp_path / "batch_metrics.csv")[2]["loss"]) == 0.1 + 0.2
    assert not (tmp_path / "epoch_metrics.csv").exists()


def test_a_late_metric_becomes_a_column_of_every_row(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log("epoch", 1, {"epoch": 1, "loss": 0.5})
    tracker.log("epoch", 2, {"epoch": 2, "loss": 0.4, "train/left_out/truncated": 1})
    tracker.log("epoch", 3, {"epoch": 3, "loss": 0.3})
    text = (tmp_path / "epoch_metrics.csv").read_text()
    assert text == "epoch,loss,train/left_out/truncated\n1,0.5,\n2,0.4,1\n3,0.3,\n"


def test_a_late_column_survives_a_resume(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log("epoch", 1, {"epoch": 1, "loss": 0.5, "late": 7})
    again = started(tmp_path, resumed=1)
    again.log("epoch", 2, {"epoch": 2, "loss": 0.4})
    again.log("epoch", 3, {"epoch": 3, "loss": 0.3, "later": 8})
    assert (tmp_path / "epoch_metrics.csv").read_text() == (
        "epoch,loss,late,later\n1,0.5,7,\n2,0.4,,\n3,0.3,,8\n"
    )


def test_rows_after_the_resumed_epoch_are_dropped(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    for epoch in (1, 2, 10):
        for batch in (1, 2):
            tracker.log("batch", 0, {"epoch": epoch, "batch": batch, "loss": 0.5})
        tracker.log("epoch", epoch, {"epoch": epoch, "loss": 0.5})
    started(tmp_path, resumed=2)
    assert [row["epoch"] for row in rows(tmp_path / "epoch_metrics.csv")] == ["1", "2"]
    batches = rows(tmp_path / "batch_metrics.csv")
    assert [(row["epoch"], row["batch"]) for row in batches] == [
        ("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize("cut", ["2", "2,3", "2,3,0.", "2,3,0.25", "1", "1,1"])
def test_a_row_cut_short_by_a_crash_is_dropped(tmp_path: Path, cut: str) -> None:
    tracker = started(tmp_path)
    tracker.log("batch", 1, {"epoch": 1, "batch": 1, "loss": 0.5})
    path = tmp_path / "batch_metrics.csv"
    # A row of epoch 10 or 11 may look like one of epoch 1.
    with path.open("a") as file:
        file.write(cut)
    again = started(tmp_path, resumed=1)
    again.log("batch", 2, {"epoch": 2, "batch": 1, "loss": 0.25})
    assert path.read_text() == "epoch,batch,loss\n1,1,0.5\n2,1,0.25\n"


def test_a_fresh_run_starts_empty_tables(tmp_path: Path) -> None:
    for loss in (0.5, 0.25):
        tracker = started(tmp_path)
        tracker.log("epoch", 1, {"epoch": 1, "loss": loss})
    assert (tmp_path / "epoch_metrics.csv").read_text() == "epoch,loss\n1,0.25\n"


def test_a_later_picture_replaces_an_earlier_one(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    for epoch, shade in ((1, 10), (2, 200)):
        image = Image.fromarray(np.full((4, 6, 3), shade, np.uint8))
        tracker.pictures(epoch, {"confusion_matrix": image})
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["confusion_matrix.png"]
    with Image.open(tmp_path / "pictures" / "confusion_matrix.png") as image:
        assert image.format == "PNG"
        assert np.array(image).max() == np.array(image).min() == 200


def test_a_later_table_replaces_an_earlier_one_though_it_has_no_rows(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.tables(1, {"mistakes": [{"sample": 3}]})
    assert read_rows(tmp_path / "tables" / "mistakes.csv") == [{"sample": "3"}]
    for epoch in (2, 3):
        tracker.tables(epoch, {"mistakes": [], "others": []})
        assert (tmp_path / "tables" / "mistakes.csv").read_text() == "sample\n"
        assert not (tmp_path / "tables" / "others.csv").exists()


def test_rows_of_an_interrupted_epoch_are_kept_up_to_its_checkpoint(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    for epoch in (1, 2):
        for batch in (1, 2, 3):
            tracker.log("batch", 3 * epoch + batch - 3, {"epoch": epoch, "batch": batch})
    tracker.log("epoch", 1, {"epoch": 1})
    tracker.log("epoch", 2, {"epoch": 2})
    FileTracker().start(Run(tmp_path, "run", {}, resumed=Position(1, batch=2, step=5)))
    batches = rows(tmp_path / "batch_metrics.csv")
    assert [(row["epoch"], row["batch"]) for row in batches] == [
        ("1", "1"), ("1", "2"), ("1", "3"), ("2", "1"), ("2", "2"),
    ]  # fmt: skip
    assert [row["epoch"] for row in rows(tmp_path / "epoch_metrics.csv")] == ["1"]
