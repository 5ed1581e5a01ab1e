"""``Tracker``: the interface of trackers, through which a run records everything."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from PIL.Image import Image

from research.tracking.evaluations import Evaluation
from research.utils.errors import one_line

log = logging.getLogger(__name__)
Table = Literal["batch", "epoch"]
Status = Literal["RUNNING", "FINISHED", "PRUNED", "FAILED", "KILLED"]
"""State of a run when its process ends; ``RUNNING``: another process may resume it."""
Row = Mapping[str, float | int | str | bool]
Rows = Sequence[Row]
"""A table of results: rows with the same keys. Without rows, those of an earlier epoch go."""


class Position(NamedTuple):
    """How far a run was when its last checkpoint was written.

    Attributes:
        epoch: completed epochs.
        batch: completed batches of the next epoch.
        step: completed batches of all epochs.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


START: Final = Position()


@dataclass(frozen=True)
class Run:
    """Description of a run, passed to ``Tracker.start``.

    Attributes:
        folder: the run folder.
        name: the run's name.
        config: resolved configuration, nested.
        tags: the user's tags, data hash, commit and package versions.
        data: name and quick hash of the data set; None for a run that only groups other runs.
        resumed: position of the checkpoint that is resumed; zeros for a new run.
        state: ``Tracker.state`` of that checkpoint.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    data: tuple[str, str] | None = None
    resumed: Position = START
    state: Mapping[str, str] = field(default_factory=dict)


class Tracker:
    """Records what a run produces. Every method does nothing by default.

    A tracker never stops training: it stores or reports what it cannot deliver.
    """

    def start(self, run: Run) -> None:
        """Called once. In a resumed run, drop everything recorded after ``run.resumed``."""

    def set_back(self, folder: Path) -> None:
        """Called before ``start`` if the run is set back to an earlier checkpoint.

        The state of that checkpoint is then not passed to ``start``: records of later epochs that
        cannot be dropped stay what they are, and a new record begins.
        """

    def log(self, table: Table, step: int, row: Row) -> None:
        """Record a row of ``batch`` (step: batches so far) or ``epoch`` (step: epoch, from 1)."""

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        """Record named images of this epoch; a later image replaces one of the same name."""

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        """Record named tables of this epoch; a later table replaces one of the same name."""

    def artifact(self, path: Path) -> None:
        """Record a finished file of the run folder."""

    def model(self, path: Path, epoch: int) -> None:
        """Record the weights of the best epoch as the model of the run, once for each epoch."""

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        """Record the evaluation of a checkpoint of this run; ``files`` of the run folder show it.

        Values that are recorded already for this epoch are not recorded again.
        """

    def correct(self, column: str, values: Mapping[int, str]) -> None:
        """Replace a text in the rows of earlier epochs, by epoch."""

    def flush(self) -> None:
        """Deliver everything recorded so far; called after a checkpoint is written."""

    def state(self) -> dict[str, str]:
        """What the tracker needs to resume this run; stored in every checkpoint."""
        return {}

    def locations(self) -> list[str]:
        """Lines for the user: commands or addresses that show the records."""
        return []

    def finish(self, status: Status) -> None:
        """Called once, also when the run failed."""

    def discard(self) -> None:
        """Called instead of ``finish`` if the run was refused before anything was recorded."""

    def waits(self, folder: Path) -> bool:
        """Whether records of the run in this folder could not be delivered when it ended."""
        return False

    def deliver(self, run: Run, status: Status) -> bool:
        """Deliver records of a run that has ended; whether none waits any more.

        Instead of ``start`` and ``finish``; may be called again, for this or another run.
        """
        return True

    def deliver_evaluation(
        self, folder: Path, evaluation: Evaluation, out: Path, files: Sequence[Path]
    ) -> str:
        """As ``evaluation``, of the run in this folder, which another process trains or trained.

        Args:
            folder: of the run.
            evaluation: of its checkpoint.
            out: the folder that has ``files``, ``evaluations`` of the run folder or any other.
            files: that show it.

        Returns:
            why it could not be recorded, in one line; empty if it was.
        """
        return ""


class Trackers(Tracker):
    """Forwards every call to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self.started: list[Tracker] = []

    def start(self, run: Run) -> None:
        for tracker in self.trackers:
            self.started.append(tracker)
            tracker.start(run)

    def set_back(self, folder: Path) -> None:
        for tracker in self.trackers:
            tracker.set_back(folder)

    def log(self, table: Table, step: int, row: Row) -> None:
        for tracker in self.trackers:
            tracker.log(table, step, row)

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        for tracker in self.trackers:
            tracker.pictures(step, images)

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        for tracker in self.trackers:
            tracker.tables(step, tables)

    def artifact(self, path: Path) -> None:
        for tracker in self.trackers:
            tracker.artifact(path)

    def model(self, path: Path, epoch: int) -> None:
        for tracker in self.trackers:
            tracker.model(path, epoch)

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        for tracker in self.trackers:
            tracker.evaluation(evaluation, files)

    def correct(self, column: str, values: Mapping[int, str]) -> None:
        for tracker in self.trackers:
            tracker.correct(column, values)

    def flush(self) -> None:
        for tracker in self.trackers:
            tracker.flush()

    def state(self) -> dict[str, str]:
        return {key: value for tracker in self.trackers for key, value in tracker.state().items()}

    def locations(self) -> list[str]:
        return [line for tracker in self.trackers for line in tracker.locations()]

    def discard(self) -> None:
        for tracker in self.started:
            tracker.discard()

    def finish(self, status: Status) -> None:
        """Finish every tracker, even if one before it fails (a full disk).

        Raises:
            OSError: of a tracker; if the run itself failed it is logged, not to hide the reason.
        """
        with ExitStack() as stack:
            # In the reverse order of their start: the summary says FINISHED when MLflow has
            # everything.
            for tracker in self.started:
                stack.callback(_finish, tracker, status)


def _finish(tracker: Tracker, status: Status) -> None:
    try:
        tracker.finish(status)
    except OSError as error:
        if status in ("FINISHED", "PRUNED"):
            raise
        log.warning("the status %s was not recorded: %s", status, one_line(error))
