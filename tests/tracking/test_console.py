"""One line per epoch on the console."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from research.tracking.console import ConsoleTracker
from research.tracking.tracker import Row
from research.utils import logs

ROW: Row = {
    "epoch": 3,
    "avg_loss": 0.5,
    "total_loss": 12.0,
    "epoch_time_sec": 2.25,
    "learning_rate": 0.05,
    "is_best": True,
    "checkpoint_path": "checkpoints/best.pt",
    "timestamp": "2024-01-01",
    "train/loss": 0.123456,
    "train/n": 2040,
    "val/top1": 0.75,
    "val/n": 480,
    "train/left_out/truncated": 2,
}


def test_one_line_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "research")
    tracker = ConsoleTracker()
    tracker.log("batch", 1, {"epoch": 3, "batch": 1, "loss": 1.0})
    tracker.log("epoch", 3, ROW)
    tracker.log("epoch", 4, {**ROW, "epoch": 4, "is_best": False})
    assert caplog.messages == [
        "epoch 3  2.2 s  learning_rate 0.05  train/loss 0.1235 (n=2040)  val/top1 0.75 (n=480)  "
        "train/left_out/truncated 2  (best)",
        "epoch 4  2.2 s  learning_rate 0.05  train/loss 0.1235 (n=2040)  val/top1 0.75 (n=480)  "
        "train/left_out/truncated 2",
    ]


def test_the_log_file_has_the_same_lines_with_dates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "research")
    with logs.to_file(tmp_path):
        ConsoleTracker().log("epoch", 3, ROW)
    ConsoleTracker().log("epoch", 4, ROW)
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO epoch 3  2\.2 s .*\(best\)", line)
