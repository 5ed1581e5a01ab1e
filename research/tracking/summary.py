"""``summary.json``: a run in one file, true after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.tracking.tracker import Run, Status, Tracker
from research.utils.files import to_json, write_text

EPOCH_COLUMNS = ("epoch", "train/loss", "val/loss", "epoch_time_sec", "checkpoint_path")


class SummaryTracker(Tracker):
    """Writes the summary at the start, whenever a checkpoint has been written, and at the end.

    Args:
        about: what does not change: model name and parameter count, monitored metric, data.
        state: the run's ``TrainState``, read when writing.
        patience: epochs without anything better that end a run.
    """

    def __init__(self, about: Mapping[str, Any], state: Any, patience: int | None) -> None:
        self.about = about
        self.state_of_run = state
        self.patience = patience
        self.run: Run | None = None

    def start(self, run: Run) -> None:
        self.run = run
        # Before the first checkpoint: whoever looks for unfinished runs finds one with a summary.
        self._write("RUNNING")

    def flush(self) -> None:
        self._write("RUNNING")

    def finish(self, status: Status) -> None:
        self._write(status)

    def _write(self, status: str) -> None:
        assert self.run is not None
        state = self.state_of_run
        folder: Path = self.run.folder
        summary = {
            "status": status,
            "name": self.run.name,
            **self.about,
            "epochs_done": state.epoch,
            "stopped_early": state.stopped_early(self.patience),
            "best_epoch": state.best_epoch,
            "best_value": state.best,
            "total_time_sec": sum(row["epoch_time_sec"] for row in state.history),
            "epochs": [
                {name: row[name] for name in EPOCH_COLUMNS if name in row} for row in state.history
            ],
            "paths": {
                "run": str(folder),
                "best": str(folder / "checkpoints" / "best.pt"),
                "last": str(folder / "checkpoints" / "last.pt"),
                "weights": str(folder / "checkpoints" / "final.safetensors"),
                "pictures": str(folder / "pictures"),
            },
            "configuration": self.run.config,
        }
        write_text(folder / "summary.json", to_json(summary))
