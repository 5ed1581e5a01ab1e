"""One line per epoch on the console; ``research.utils.progress`` shows what happens meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from research.tracking.evaluations import Evaluation
from research.tracking.tracker import Row, Table, Tracker

log = logging.getLogger(__name__)

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
    """Logs the metrics of each epoch."""

    def log(self, table: Table, step: int, row: Row) -> None:
        if table != "epoch":
            return
        metrics: list[str] = []
        for name, value in row.items():
            if name.endswith("/n"):  # of the samples behind the metrics before it
                metrics[-1] += f" (n={value})"
            elif name not in HIDDEN:
                metrics.append(_metric(name, value))
        best = ["(best)"] if row["is_best"] else []
        _log_parts([f"epoch {row['epoch']}", f"{row['epoch_time_sec']:.1f} s", *metrics, *best])

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        metrics = [_metric(name, value) for name, value in evaluation.metrics.items()]
        about = f"{evaluation.name} of epoch {evaluation.epoch}"
        _log_parts([about, *metrics, f"(n {evaluation.n})"])


def _metric(name: str, value: float | int | str) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _log_parts(parts: list[str]) -> None:
    """Log a line that ``research.utils.logs`` breaks between two parts on a terminal."""
    log.info("%s", "  ".join(parts), extra={"parts": parts})
