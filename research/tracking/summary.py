"""``summary.json``: a summary of the run, updated after every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.tracking.evaluations import Evaluation
from research.tracking.tracker import Run, Status, Tracker
from research.utils.counts import samples_of
from research.utils.files import to_json, write_text

EPOCH_COLUMNS = (
    "epoch", "train/loss", "train/n", "val/loss", "val/n", "epoch_time_sec", "checkpoint_path",
)  # fmt: skip


def best_n(state: Any, metric: str) -> int | None:
    """The number of samples of which the best value is; None if it was not counted, or none is.

    Args:
        state: a ``TrainState``.
        metric: the monitored metric.
    """
    return samples_of(state.history[state.best_epoch - 1], metric) if state.best_epoch else None


class SummaryTracker(Tracker):
    """Writes the summary at the start, after each checkpoint and at the end.

    Args:
        info: constant entries: model name and parameter count, monitored metric, data and what
            a sample of it is.
        train_state: the run's ``TrainState``, read at each write.
        patience: epochs without improvement until early stopping; None: no early stopping.
    """

    def __init__(self, info: Mapping[str, Any], train_state: Any, patience: int | None) -> None:
        self.info = info
        self.train_state = train_state
        self.patience = patience
        self.run: Run | None = None
        self.saved: dict[str, Any] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}

    def start(self, run: Run) -> None:
        self.run = run
        # Before the first checkpoint, so that an unfinished run always has a summary.
        self.flush()

    def flush(self) -> None:
        # Called after a checkpoint: what is written is what a resumed run would continue from.
        self.saved = self._counters()
        self._write("RUNNING")

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        names = ("split", "checkpoint", "epoch", "n", "metrics")
        self.evaluations[evaluation.name] = {name: vars(evaluation)[name] for name in names}

    def correct(self, column: str, values: Mapping[int, str]) -> None:
        for row in self.saved["epochs"]:
            if column in row and row["epoch"] in values:
                row[column] = values[row["epoch"]]
        self._write("RUNNING")

    def finish(self, status: Status) -> None:
        self._write(status)

    def _counters(self) -> dict[str, Any]:
        state = self.train_state
        rows = [{n: row[n] for n in EPOCH_COLUMNS if n in row} for row in state.history]
        return {
            "epochs_done": state.epoch,
            "stopped_early": state.stopped_early(self.patience),
            "best_epoch": state.best_epoch,
            "best_value": state.best,
            "best_n": best_n(state, self.info["monitor"][0]),
            "total_time_sec": sum(row["epoch_time_sec"] for row in state.history),
            "epochs": rows,
        }

    def _write(self, status: str) -> None:
        assert self.run is not None
        folder: Path = self.run.folder
        if not folder.is_dir():
            return  # deleted; a folder with nothing but a summary would look like a run
        summary = {
            "status": status,
            "name": self.run.name,
            **self.info,
            **self.saved,
            "evaluations": self.evaluations,
            "paths": {
                "run": str(folder),
                "best": str(folder / "checkpoints" / "best.pt"),
                "last": str(folder / "checkpoints" / "last.pt"),
                "weights": str(folder / "checkpoints" / "final.safetensors"),
                "best_weights": str(folder / "checkpoints" / "best.safetensors"),
                "pictures": str(folder / "pictures"),
            },
            "configuration": self.run.config,
        }
        write_text(folder / "summary.json", to_json(summary))
