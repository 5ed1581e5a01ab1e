"""The one interface through which a run's results leave the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

Table = Literal["batch", "epoch"]
Status = Literal["RUNNING", "FINISHED", "PRUNED", "FAILED", "KILLED"]
"""How a process leaves a run; ``RUNNING``: open, for another process to go on with."""
Row = Mapping[str, float | int | str | bool]
Rows = Sequence[Row]
"""A table for people: rows with the same keys."""


@dataclass(frozen=True)
class Run:
    """What a tracker may know of a run when it starts.

    Attributes:
        folder: the run folder.
        name: the run's name.
        config: resolved configuration, nested.
        tags: free words, and what the run was made with (data hash, commit, versions).
        data: the data set's name and quick hash; null of a run that only gathers others.
        resumed: the last epoch that counts, when an earlier run goes on; 0 for a fresh run.
        state: what ``Tracker.state`` gave for the checkpoint that goes on.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    data: tuple[str, str] | None = None
    resumed: int = 0
    state: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where long work stands.

    Attributes:
        phase: ``train``, ``val``, or what is being prepared.
        done: items done.
        total: items in all.
        unit: what an item is.
        rate: items of work a second (samples a second in training).
        metrics: current values to show beside it.
    """

    phase: str
    done: int
    total: int
    unit: str = "batches"
    rate: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Tracker:
    """Receives what a run produces; each method may be left as it is, doing nothing.

    A tracker never stops training: what it cannot deliver it keeps or reports.
    """

    def start(self, run: Run) -> None:
        """Called once. With ``run.resumed`` = n, everything recorded after epoch n is dropped."""

    def log(self, table: Table, step: int, row: Row) -> None:
        """One row of ``batch`` (step: batches seen) or of ``epoch`` (step: epoch, from 1)."""

    def progress(self, state: Progress) -> None:
        """Called often while work goes on."""

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        """Named images of this epoch; a later one of the same name replaces it."""

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        """Named tables of this epoch; a later one of the same name replaces it."""

    def artifact(self, path: Path) -> None:
        """A finished file of the run folder that is worth keeping with the metrics."""

    def flush(self) -> None:
        """Everything up to here belongs to a checkpoint: deliver it."""

    def state(self) -> dict[str, str]:
        """What the tracker needs to go on with this run; kept in every checkpoint."""
        return {}

    def where(self) -> list[str]:
        """Lines for the user: where to look at what was recorded."""
        return []

    def finish(self, status: Status) -> None:
        """Called once, whatever happened."""


class Trackers(Tracker):
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self.started: list[Tracker] = []

    def start(self, run: Run) -> None:
        for tracker in self.trackers:
            self.started.append(tracker)
            tracker.start(run)

    def log(self, table: Table, step: int, row: Row) -> None:
        for tracker in self.trackers:
            tracker.log(table, step, row)

    def progress(self, state: Progress) -> None:
        for tracker in self.trackers:
            tracker.progress(state)

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        for tracker in self.trackers:
            tracker.pictures(step, images)

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        for tracker in self.trackers:
            tracker.tables(step, tables)

    def artifact(self, path: Path) -> None:
        for tracker in self.trackers:
            tracker.artifact(path)

    def flush(self) -> None:
        for tracker in self.trackers:
            tracker.flush()

    def state(self) -> dict[str, str]:
        return {key: value for tracker in self.trackers for key, value in tracker.state().items()}

    def where(self) -> list[str]:
        return [line for tracker in self.trackers for line in tracker.where()]

    def finish(self, status: Status) -> None:
        with ExitStack() as each:
            # Each hears of it, even when one before it fails (a full disk).
            for tracker in reversed(self.started):
                each.callback(tracker.finish, status)
