"""Resumes a run from its last checkpoint, or sets it back to an earlier one.

``resume=RUN/checkpoints/epoch_002….pt`` sets a run back; nothing is lost: the run as it was is kept
in ``set_aside/1`` of its folder, which is a run folder itself.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from research.config.outputs import run_dir_of
from research.config.resume import unchangeable
from research.config.run_files import is_own
from research.engine import checkpoint, distributed, run_folder
from research.engine.checkpoint import Checkpoints
from research.engine.new_folder import NewFolder
from research.engine.state import TrainState
from research.tasks.task import Monitor
from research.tracking.evaluations import FOLDER
from research.tracking.tracker import Tracker
from research.utils.errors import UserError

log = logging.getLogger(__name__)

ASIDE: Final = "set_aside"
OF_THE_BEST: Final = ("pictures", "tables", FOLDER)
"""Folders with what was drawn for the best epoch, and with evaluations of checkpoints."""


@dataclass(frozen=True)
class Start:
    """The start of a run; the files that it starts from have been read and validated.

    Attributes:
        folder: the run folder; it exists.
        last: content of the checkpoint to resume from; None for a new run.
        checkpoint: its file.
        weights: content of the file of ``init_from``, for a new run.
        earlier: the checkpoint to which the run is set back; None: it goes on from its last.
        moved: the settings of the data's files and folders, if they have changed.
        new: of a new run, in the process that has created its folder.
    """

    folder: Path
    last: dict[str, Any] | None = None
    checkpoint: Path | None = None
    weights: dict[str, Any] | None = None
    earlier: Path | None = None
    moved: tuple[str, ...] = ()
    new: NewFolder | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the run has trained a batch."""
        return self.new is None or self.new.begun

    def look(self, state: TrainState) -> None:
        """Look whether the run has begun."""
        if self.new is not None:
            self.new.begun = (state.epoch, state.samples) > (0, 0)

    def settle(self) -> None:
        """Remove what was created for a run that has not begun."""
        if self.new is not None:
            self.new.settle()


def resume(run: Path, config: Mapping[str, Any]) -> Start:
    """Resume a run.

    Args:
        run: its folder, or one of its checkpoints.
        config: its configuration, with changes.

    Raises:
        UserError: if the checkpoint is refused, none is intact, it contains only weights, has
            settings that may not change, or is later than the last epoch.
    """
    folder = run_dir_of(run)
    for file in checkpoint.paths(folder):
        if not is_own(folder) and not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                "resume",
                f"resume={folder}: {file} is outside this folder",
                "copy it into the folder",
            )
    path, saved = checkpoint.load_newest(run, config["trust"])
    if "optimizer" not in saved:
        raise UserError(
            "resume",
            f"resume: {path} contains only weights",
            f"pass the run folder, or start a new run with init_from={path}",
        )
    # init_from may be omitted: the checkpoint already contains these weights.
    before = {**saved["config"], "init_from": config["init_from"]}
    fixed = unchangeable(before, config, moved=True)
    if fixed:
        raise UserError(
            "resume",
            f"resume={run}: {path.name} was trained with other settings "
            f"({', '.join([*fixed][:5])})",
            "pass another checkpoint of this run",
        )
    state, epochs = saved["state"], config["epochs"]
    if (state["epoch"], state["samples"]) > (epochs, 0):
        raise UserError(
            "epochs",
            f"epochs={epochs}: {path} is after epoch {state['epoch']}",
            "set more epochs, or resume one of the checkpoints of earlier epochs",
        )
    # A damaged last.pt is answered by the one before it, which does not set the run back.
    is_set_back = run.is_file() and _is_set_back(path, saved, config["trust"])
    earlier = path if is_set_back else None
    return Start(folder, saved, path, earlier=earlier, moved=tuple(unchangeable(before, config)))


def check_data(begin: Start, fingerprint: str) -> None:
    """Check that the data are those of the run, also where they are in the same place."""
    recorded = run_folder.data_hash(begin.folder)
    if recorded in (None, fingerprint):
        return
    anew = f"start a new run with init_from={begin.folder}"
    hashes = f"(hash {fingerprint}, in the run {recorded})"
    if begin.moved:
        keys = ", ".join(begin.moved)
        message = f"{keys}: not the data of the run {hashes}"
        raise UserError(begin.moved[0], message, f"set where its data are, or {anew}")
    message = f"resume={begin.folder}: its data have changed {hashes}"
    raise UserError("resume", message, f"restore them, or {anew}")


def _is_set_back(path: Path, saved: Mapping[str, Any], trust: Collection[str]) -> bool:
    """Whether a run has gone on from one of its checkpoints.

    Args:
        path: the checkpoint, in the folder of the run's checkpoints.
        saved: its content.
        trust: as for ``checkpoint.load``.
    """
    last = path.with_name("last.pt")
    if path.name == last.name or (last.exists() and last.samefile(path)):
        return False
    state = _state(last, trust)  # None: perhaps the reason for taking another
    return state is None or any(state[n] != saved["state"][n] for n in ("epoch", "samples"))


def set_back(
    path: Path, state: TrainState, monitor: Monitor, checkpoints: Checkpoints, tracker: Tracker
) -> None:
    """Make ``path`` the last checkpoint of its run; every process calls it, the main one writes.

    A kill on the way leaves the run as it was, or set back.

    Args:
        path: the earlier checkpoint.
        state: loaded from it; the best epoch may change, see ``_best``.
        monitor: the monitored metric.
        checkpoints: of the run, which is locked by this process.
        tracker: of the run, before its start.
    """
    folder = checkpoints.folder.parent
    if distributed.is_main():
        aside = _keep(folder)
        best = _best(path, state, monitor)
        if best is not None:
            checkpoint.link(best, checkpoints.folder / "best.pt")
            for name in OF_THE_BEST:
                shutil.rmtree(folder / name, ignore_errors=True)
        tracker.set_back(folder)
    state.best, state.best_epoch = distributed.broadcast((state.best, state.best_epoch))
    state.tracking = {}
    content = state.state_dict()
    if distributed.is_main():
        checkpoints.save(content, "", is_best=False)
        for name in ("final.safetensors", "best.safetensors"):
            (checkpoints.folder / name).unlink(missing_ok=True)
        log.info(
            "resume: set back to epoch %d; the run as it was is kept in %s", state.epoch, aside
        )


def _keep(folder: Path) -> Path:
    """Copy the files of the run; checkpoints, which never change, are linked.

    Other folders, such as results of commands, stay where they are.
    """
    numbers = range(1, len(list(folder.glob(f"{ASIDE}/*"))) + 2)
    aside = next(p for n in numbers if not (p := folder / ASIDE / str(n)).exists())
    unfinished = folder / ASIDE / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name[0] != ".":
            shutil.copy2(path, unfinished)
        elif path.is_dir() and path.name in ("checkpoints", *OF_THE_BEST):
            shutil.copytree(
                path,
                unfinished / path.name,
                copy_function=_link if path.name == "checkpoints" else shutil.copy2,
                ignore=shutil.ignore_patterns(".*"),
            )
    os.replace(unfinished, aside)
    return aside


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copy2(source, target)


def _best(path: Path, state: TrainState, monitor: Monitor) -> Path | None:
    """The checkpoint that becomes ``best.pt``; None if this is that of the best epoch already.

    If that of the best epoch was replaced by that of a later one, the best epoch is the best of
    those whose checkpoints remain.
    """
    now = _state(path.with_name("best.pt"), state.config["trust"])
    if now is not None and now["epoch"] == state.best_epoch:
        return None
    files = {checkpoint.epoch_of(file): file for file in path.parent.glob("epoch_*.pt")}
    files[state.epoch] = path
    if state.best_epoch not in files:
        state.best, state.best_epoch = None, 0
        for row in state.history:
            value = row.get(monitor.metric, math.nan)
            if row["epoch"] in files and monitor.better(value, state.best):
                state.best, state.best_epoch = value, row["epoch"]
        log.info("resume: the best epoch with a checkpoint is %d", state.best_epoch)
    return files.get(state.best_epoch, path)


def _state(path: Path, trust: Collection[str]) -> Mapping[str, Any] | None:
    """Counters of a checkpoint; None if it is missing or damaged."""
    try:
        state: Mapping[str, Any] = checkpoint.load(path, trust)["state"]
    except UserError:
        return None
    return state
