"""What is done of a study, and the hours that the rest needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Final, Literal

from research.studies import record
from research.studies.definition import StudyDefinition, StudyRun
from research.studies.record import StudyRecord
from research.utils.counts import counted

RunState = Literal["recorded", "stale", "undone"]
HOUR: Final = 3600.0


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study and its record.

    Attributes:
        run: of the study.
        state: ``stale`` if the definition has changed since it was recorded.
        record: None if it has none. That of a stale run is not of this definition.
    """

    run: StudyRun
    state: RunState
    record: StudyRecord | None


@dataclass(frozen=True)
class StudyPlan:
    """All runs of a study.

    Attributes:
        study: its definition.
        runs: in the order in which they are done.
        others: records in its folder that are of no run, such as those of a former arm.
    """

    study: StudyDefinition
    runs: Sequence[PlannedRun]
    others: Sequence[Path]

    def of(self, state: RunState) -> list[PlannedRun]:
        """The runs in a state."""
        return [planned for planned in self.runs if planned.state == state]

    @property
    def undone(self) -> list[PlannedRun]:
        """The runs without a record of this definition."""
        return [planned for planned in self.runs if planned.state != "recorded"]

    @property
    def hours(self) -> float:
        """That the undone runs need."""
        return sum(self.hours_of(planned.run.arm) for planned in self.undone)

    def hours_of(self, arm: str) -> float:
        """That a run of an arm takes: as its recorded runs did, else as the definition says.

        The first may take longer than the others, since it fills caches.
        """
        seconds = [total for each in self.records(arm) if (total := each.total) is not None]
        return median(seconds) / HOUR if seconds else self.study.arm_hours(arm)

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """The metric of an arm by seed, as ``values_of``."""
        return self.values_of(arm, lambda each: each.metric(metric))

    def values_of(
        self, arm: str, value_of: Callable[[StudyRecord], float | None]
    ) -> dict[int, float]:
        """A value of the records of an arm by seed, the mean over its folds; of whole seeds."""
        by_seed: dict[int, float] = {}
        for seed in self.study.seeds:
            runs = [each for each in self.runs if (each.run.arm, each.run.seed) == (arm, seed)]
            values = [
                value
                for each in runs
                if each.state == "recorded"
                and each.record is not None
                and (value := value_of(each.record)) is not None
            ]
            if runs and len(values) == len(runs):
                by_seed[seed] = fmean(values)
        return by_seed

    def records(self, arm: str) -> list[StudyRecord]:
        """The records of an arm that are of this definition."""
        known = [each for each in self.of("recorded") if each.run.arm == arm]
        return [each.record for each in known if each.record is not None]


def mixed_settings(planned: StudyPlan, arm: str) -> list[str]:
    """Settings in which the records of an arm differ, other than seed and fold, and ``data``.

    A recipe may have changed between two seeds, or the files of the data, though the definition
    has not.
    """
    records = planned.records(arm)
    configurations = [each.configuration for each in records]
    keys = {key for each in configurations for key in each} - {"seed", "dataset.fold"}
    first = configurations[0] if configurations else {}
    mixed = {key for key in keys if any(each.get(key) != first.get(key) for each in configurations)}
    if len({(each.fold, each.data) for each in records}) > len({each.fold for each in records}):
        mixed.add("data")
    return sorted(mixed)


def plan(study: StudyDefinition, docs: Path) -> StudyPlan:
    """Read the records of a study.

    Raises:
        UserError: for a record that is refused.
    """
    runs = [look_up(run, docs) for run in study.runs()]
    expected = {record.path_of(docs, run) for run in study.runs()}
    folder = docs / record.FOLDER / study.name
    return StudyPlan(study, runs, sorted({*folder.glob("*.json")} - expected))


def look_up(run: StudyRun, docs: Path) -> PlannedRun:
    """A run with its record.

    Raises:
        UserError: for a record that is refused.
    """
    path = record.path_of(docs, run)
    if not path.exists():
        return PlannedRun(run, "undone", None)
    stored = record.read(path)
    return PlannedRun(run, "recorded" if stored.definition == run.definition else "stale", stored)


def hours_text(hours: float) -> str:
    """Hours in words: ``40 seconds``, ``12 minutes``, ``3.5 hours``."""
    seconds, minutes = max(1, round(HOUR * hours)), round(60 * hours)
    if seconds < 100:
        return counted(seconds, "seconds")
    return f"{minutes} minutes" if minutes < 100 else f"{hours:.1f} hours"
