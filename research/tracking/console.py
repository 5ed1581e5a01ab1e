"""Progress on the console: bars with rate and ETA on a terminal, occasional lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from research.tracking.evaluations import Evaluation
from research.tracking.tracker import Progress, Row, Status, Table, Tracker

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
"""Between progress lines inside an epoch, when the output is not a terminal."""

HIDDEN = (
    "epoch",
    "avg_loss",
    "total_loss",
    "epoch_time_sec",
    "is_best",
    "checkpoint_path",
    "timestamp",
)


class ConsoleTracker(Tracker):
    """A bar per phase on a terminal, else a line every 30 s; one line per epoch in both."""

    def __init__(self) -> None:
        self.bars: Bars | None = None
        self.task: TaskID | None = None
        self.phase = ""
        self.next_line = 0.0
        self.phase_start = time.monotonic()

    def progress(self, progress: Progress) -> None:
        if sys.stdout.isatty():
            self._bar(progress)
        else:
            self._line(progress)

    def log(self, table: Table, step: int, row: Row) -> None:
        if table != "epoch":
            return
        self._close()
        metrics = "".join(_metric(name, row[name]) for name in row if name not in HIDDEN)
        best = "  (best)" if row["is_best"] else ""
        log.info("epoch %s  %.1f s%s%s", row["epoch"], row["epoch_time_sec"], metrics, best)

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        self._close()
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items())
        name, epoch, n = evaluation.name, evaluation.epoch, evaluation.n
        log.info("%s of epoch %d  %s  (n %d)", name, epoch, metrics, n)

    def finish(self, status: Status) -> None:
        self._close()

    def discard(self) -> None:
        self._close()

    def _bar(self, progress: Progress) -> None:
        if self.bars is None or self.phase != progress.phase:
            self._close()
            self.bars = Bars(
                TextColumn("{task.description:>20}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[current]}"),
                console=Console(),
                transient=True,
            )
            self.bars.start()
            self.task = self.bars.add_task(
                progress.phase, total=progress.total, unit=progress.unit, current=""
            )
            self.phase = progress.phase
        assert self.task is not None
        self.bars.update(self.task, completed=progress.done, current=_current(progress))
        if progress.done >= progress.total:
            self._close()

    def _line(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase != self.phase:
            self.phase, self.phase_start = progress.phase, now
            self.next_line = now + SECONDS_BETWEEN_LINES
        if now < self.next_line or progress.done == 0:
            return
        self.next_line = now + SECONDS_BETWEEN_LINES
        left = (now - self.phase_start) / progress.done * (progress.total - progress.done)
        log.info(
            "%s  %d/%d %s  %s  %.0f s left",
            progress.phase,
            progress.done,
            progress.total,
            progress.unit,
            _current(progress),
            left,
        )

    def _close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
        self.bars, self.task, self.phase = None, None, ""


def _metric(name: str, value: float | int | str) -> str:
    """A metric as text; the number of samples of a split stands behind its metrics."""
    if name.endswith("/n"):
        return f" (n={value})"
    return f"  {name} {value:.4g}" if isinstance(value, float) else f"  {name} {value}"


def _current(progress: Progress) -> str:
    """Rate and metrics as text."""
    rate = [] if progress.rate is None else [f"{progress.rate:.1f} samples/s"]
    return "  ".join(rate + [f"{name} {value:.4g}" for name, value in progress.metrics.items()])
