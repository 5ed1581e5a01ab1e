"""Console output: plain lines in a log, a bar on a terminal, one line per epoch in both."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from research.tracking import console
from research.tracking.console import ConsoleTracker
from research.tracking.tracker import Progress, Row
from research.utils import logs
from tests.conftest import ROOT

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
ESCAPE = "\x1b"


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


def test_a_log_gets_a_progress_line_every_30_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "research")
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    tracker = ConsoleTracker()
    # 80 batches, one in 2 seconds: a line when 30 more seconds have passed.
    for done in range(1, 81):
        tracker.progress(Progress("train 1", done, 80, rate=16.04, metrics={"loss": 0.5}))
        now += 2
    lines = [line.split("  ") for line in caplog.messages]
    assert [line[1] for line in lines] == [f"{n}/80 batches" for n in (16, 31, 46, 61, 76)]
    assert {(line[0], line[2], line[3]) for line in lines} == {
        ("train 1", "16.0 samples/s", "loss 0.5")
    }
    # 16 batches took 30 s, so that the 64 others take 120 s.
    assert lines[0][4] == "120 s left"
    caplog.clear()
    # Another phase has its own clock.
    tracker.progress(Progress("val", 1, 80))
    assert not caplog.messages


SCRIPT = """
import sys, time
from research.utils import logs
from research.tracking.console import ConsoleTracker
from research.tracking.tracker import Progress
logs.to_terminal()
tracker = ConsoleTracker()
for done in range(1, 6):
    state = Progress("train 1", done, 5, rate=123.4, metrics={"loss": 0.25})
    tracker.progress(state)
    time.sleep(0.3)
tracker.progress(Progress("val", 1, 9))
row = {"epoch": 1, "epoch_time_sec": 1.5, "is_best": True, "val/top1": 0.75}
tracker.log("epoch", 1, row)
tracker.finish("FINISHED")
print("sane:", sys.stdout.isatty())
"""


def environment() -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140"}


def test_no_terminal_no_escape_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "epoch 1  1.5 s  val/top1 0.75  (best)\nsane: False\n"
    assert done.stderr == ""


def test_a_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment(), stdout=slave, stderr=slave
    )
    os.close(slave)
    chunks = []
    try:
        while chunk := _read(master):
            chunks.append(chunk)
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(master)
    text = b"".join(chunks).decode()
    assert ESCAPE in text
    shown = re.sub(ESCAPE + r"\[[0-9;?]*[A-Za-z]", "", text)
    # Phase, position, elapsed and remaining time, rate, current metric, all in one bar.
    bar = r"train 1 .*[2345]/5 batches 0:00:0\d 0:00:0\d 123\.4 samples/s  loss 0\.25"
    assert re.search(bar, shown), shown
    assert re.search(r"val .*1/9 batches", shown)
    # The line of the epoch is on its own line after the bar is removed.
    assert shown.count("epoch 1  1.5 s  val/top1 0.75  (best)\r\n") == 1
    assert shown.endswith("sane: True\r\n")
    assert text.count(f"{ESCAPE}[?25h") >= text.count(f"{ESCAPE}[?25l") > 0  # the cursor is back


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux: the other end is closed
        return b""


def test_the_log_file_has_the_same_lines_with_dates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "research")
    with logs.to_file(tmp_path):
        ConsoleTracker().log("epoch", 3, ROW)
    ConsoleTracker().log("epoch", 4, ROW)
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO epoch 3  2\.2 s .*\(best\)", line)
