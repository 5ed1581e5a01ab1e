"""Comparison of groups with a reference: differences over seeds and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research.comparison.collect import RecordedRun
from research.comparison.groups import RunGroup, group_runs
from research.comparison.statistics import (
    MAX_SEEDS,
    Difference,
    SeedStats,
    Verdict,
    difference,
    holm_verdicts,
    seed_stats,
)
from research.config.rules import nearest
from research.utils.counts import counted, with_n
from research.utils.errors import UserError


@dataclass(frozen=True)
class ComparisonResult:
    """Groups, best first, compared with one of them.

    Attributes:
        metric: read in the best epoch of each run.
        mode: ``max`` or ``min``: which direction is better.
        confidence: of the intervals, 0…1.
        groups: at least one.
        stats: of each group over its seeds.
        reference: index of the group that the others are compared with.
        differences: of each group from the reference; ``None`` for the reference.
        comparisons: number of comparisons for which p is adjusted.
        verdicts: on each difference; ``None`` for the reference and without a p value.
        skipped: number of runs found but not compared, by reason.
    """

    metric: str
    mode: str
    confidence: float
    groups: list[RunGroup]
    stats: list[SeedStats]
    reference: int
    differences: list[Difference | None]
    comparisons: int
    verdicts: list[Verdict | None]
    skipped: Mapping[str, int]

    def label(self, metric: str) -> str:
        """The metric with the numbers of samples of which it is in the runs."""
        counts = (run.n(metric) for group in self.groups for run in group.runs)
        return with_n(metric, *counts, unit=self.unit)

    @property
    def unit(self) -> str:
        """What a sample of the runs is, in the plural."""
        units = {run.unit for group in self.groups for run in group.runs}
        return units.pop() if len(units) == 1 else "samples"

    def verdict_text(self, index: int) -> str:
        """The verdict on a group's difference from the reference, in words."""
        return verdict_text(self.differences[index], self.verdicts[index], self.mode)

    def pairing(self, index: int) -> str:
        """Which seeds a difference was taken over, in words."""
        each = self.differences[index]
        if each is None:
            return ""
        if not each.paired:
            return "unpaired"
        most = max(len(self.groups[at].values) for at in (index, self.reference))
        return "paired" if each.n == most else f"paired by {each.n} of {most} seeds"


def verdict_text(each: Difference | None, verdict: Verdict | None, mode: str) -> str:
    """A verdict on a difference in words.

    Args:
        each: the difference; None for the reference itself.
        verdict: None without a p value.
        mode: ``max`` or ``min``: which direction is better.
    """
    if each is None:
        return "reference"
    if verdict is None and each.n > 1 and each.mean:
        return "no spread: every seed differs by the same"
    if verdict is None and each.n == 1:
        return "no spread yet: one seed"
    if verdict is not None and verdict.significant:
        better = (each.mean > 0) == (mode == "max")
        return f"distinguishable: {'better' if better else 'worse'}"
    if verdict is None or not each.mean:
        return "not distinguishable: no difference"
    if verdict.more_seeds is None:
        return f"not distinguishable: needs over {MAX_SEEDS} seeds to tell"
    return f"not distinguishable: needs about {counted(verdict.more_seeds, 'more seeds')} to tell"


def compare(
    runs: Sequence[RecordedRun],
    metric: str,
    mode: str,
    by: Sequence[str],
    against: str,
    confidence: float,
    skipped: Mapping[str, int],
) -> ComparisonResult:
    """Group runs and compare every group with the reference.

    Args:
        runs: each with a value of the metric, at least one.
        metric: to compare.
        mode: ``max`` or ``min``.
        by: see ``group_runs``.
        against: the reference: a group's label, a part of it, or its number in the table from 1;
            empty for the group with the best mean.
        confidence: of the intervals, 0…1.
        skipped: number of runs not compared, by reason, for the record.

    Raises:
        UserError: for an unknown key in ``by``, or an unknown group in ``against``.
    """
    sign = -1 if mode == "max" else 1
    groups = [
        (group, seed_stats([*group.values.values()])) for group in group_runs(runs, metric, by)
    ]
    groups.sort(key=lambda pair: (sign * pair[1].mean, pair[0].label))
    reference = _reference([group.label for group, _ in groups], against)
    differences = [
        None
        if index == reference
        else difference(group.values, groups[reference][0].values, confidence)
        for index, (group, _) in enumerate(groups)
    ]
    comparisons = _comparisons(differences, named=bool(against))
    return ComparisonResult(
        metric,
        mode,
        confidence,
        [group for group, _ in groups],
        [stats for _, stats in groups],
        reference,
        differences,
        comparisons,
        holm_verdicts(differences, confidence, comparisons),
        skipped,
    )


def _comparisons(differences: Sequence[Difference | None], *, named: bool) -> int:
    """The number of comparisons: with the named group, or of all pairs.

    Comparing with the best compares every pair: any group might have been the best.
    """
    tested = sum(each is not None and each.n > 1 for each in differences)
    return tested if named else tested * (tested + 1) // 2


def _reference(labels: list[str], against: str) -> int:
    if not against:
        return 0
    if against in labels:
        return labels.index(against)
    if against.isdecimal() and 1 <= int(against) <= len(labels):
        return int(against) - 1
    matches = [n for n, label in enumerate(labels) if against in label and not against.isdecimal()]
    if len(matches) == 1:
        return matches[0]
    near = nearest(against, labels)
    hint = f"; did you mean {near!r}?" if near else ";"
    problem = "fits several groups" if matches else "no such group"
    raise UserError("against", f"against={against}: {problem}{hint} there are {', '.join(labels)}")
