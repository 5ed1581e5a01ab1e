"""Progress for people: bars with rate and ETA on a terminal, quiet lines in a log."""

from __future__ import annotations

import logging
import sys
import time

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

from research.tracking.tracker import Progress, Row, Status, Table, Tracker

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
"""How often a log file hears of work inside an epoch."""

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
    """A bar a phase on a terminal; elsewhere a line now and then. One line an epoch in both."""

    def __init__(self) -> None:
        self.bars: Bars | None = None
        self.task: TaskID | None = None
        self.phase = ""
        self.next_line = 0.0
        self.began = time.monotonic()

    def progress(self, state: Progress) -> None:
        if sys.stdout.isatty():
            self._bar(state)
        else:
            self._line(state)

    def log(self, table: Table, step: int, row: Row) -> None:
        if table != "epoch":
            return
        self._close()
        metrics = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
            if name not in HIDDEN
        ]
        best = "  (best)" if row["is_best"] else ""
        log.info(
            "epoch %s  %.1f s  %s%s", row["epoch"], row["epoch_time_sec"], "  ".join(metrics), best
        )

    def finish(self, status: Status) -> None:
        self._close()

    def _bar(self, state: Progress) -> None:
        if self.bars is None or self.phase != state.phase:
            self._close()
            self.bars = Bars(
                TextColumn("{task.description:>20}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[now]}"),
                console=Console(),
                transient=True,
            )
            self.bars.start()
            self.task = self.bars.add_task(state.phase, total=state.total, unit=state.unit, now="")
            self.phase = state.phase
        assert self.task is not None
        self.bars.update(self.task, completed=state.done, now=_now_text(state))
        if state.done >= state.total:
            self._close()

    def _line(self, state: Progress) -> None:
        now = time.monotonic()
        if state.phase != self.phase:
            self.phase, self.began, self.next_line = state.phase, now, now + SECONDS_BETWEEN_LINES
        if now < self.next_line or state.done == 0:
            return
        self.next_line = now + SECONDS_BETWEEN_LINES
        left = (now - self.began) / state.done * (state.total - state.done)
        log.info(
            "%s  %d/%d %s  %s  %.0f s left",
            state.phase,
            state.done,
            state.total,
            state.unit,
            _now_text(state),
            left,
        )

    def _close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
        self.bars, self.task, self.phase = None, None, ""


def _now_text(state: Progress) -> str:
    rate = [] if state.rate is None else [f"{state.rate:.1f} samples/s"]
    return "  ".join(rate + [f"{name} {value:.4g}" for name, value in state.metrics.items()])
