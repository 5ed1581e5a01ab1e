"""Trains one run in this process, for ``train.py`` and ``research.train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from research.config import RunConfig
from research.config.compose import hydra_ready
from research.engine import distributed, run
from research.utils import documents, logs
from research.utils.errors import UserError


@dataclass(frozen=True)
class TrainResult:
    """What a run has come to.

    Attributes:
        folder: of the run; ``research.load(folder)`` loads its best checkpoint.
        metric: the monitored metric, such as ``val/top1``.
        best: its best value; None if no epoch was completed.
        best_epoch: in which it was reached, from 1; 0 if no epoch was completed.
        epochs: completed.
    """

    folder: Path
    metric: str
    best: float | None
    best_epoch: int
    epochs: int


def train(config: RunConfig) -> TrainResult:
    """Train or resume one run: folder, lock, logs, trackers, checkpoints.

    Raises:
        UserError: for a mistake in the configuration or the data, or an everyday condition of the
            machine.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    with hydra_ready(config.config_dir), distributed.processes(config["device"]):
        rank = distributed.rank()
        logs.to_terminal(rank=rank)
        begin = run.start(config.settings, config.name, config.overrides)
        if begin is not None:
            with run.opened(begin, rank):
                run.train(config.settings, config.name, config.overrides, begin)
        # Without a begin, resume=auto has found that the run in this folder is finished.
        folder = Path(config["run_dir"]) if begin is None else begin.folder
        result = distributed.broadcast(None if rank else _result(folder))
    assert result is not None
    return result


def _result(folder: Path) -> TrainResult:
    """What the summary of a run says.

    Raises:
        UserError: if it is missing or damaged.
    """
    summary = documents.load(folder / "summary.json", dict, "resume")
    try:
        return TrainResult(
            folder,
            str(summary["monitor"][0]),
            summary["best_value"],
            int(summary["best_epoch"]),
            int(summary["epochs_done"]),
        )
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError("resume", f"{folder}: its summary.json is damaged") from None
