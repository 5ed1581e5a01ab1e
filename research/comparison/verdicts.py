"""Groups of seeds against one of them: what differs, and what cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research.comparison.collect import Recorded
from research.comparison.groups import Group, grouped
from research.comparison.statistics import (
    MOST_SEEDS,
    Difference,
    Spread,
    Verdict,
    difference,
    judged,
    spread,
)
from research.config.rules import nearest
from research.utils.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """Groups, best first.

    Attributes:
        metric: what is compared, in each run's best epoch.
        mode: ``max`` or ``min``: which way is better.
        confidence: of the intervals, 0…1.
        groups: at least one.
        spreads: of each group over its seeds.
        reference: position of the group that the others are held against.
        differences: each group's from the reference; null for itself.
        comparisons: differences that were looked at, of which these are a part.
        verdicts: on each difference; null for the reference, and without a spread.
        left_out: runs found but not compared, by what they are.
    """

    metric: str
    mode: str
    confidence: float
    groups: list[Group]
    spreads: list[Spread]
    reference: int
    differences: list[Difference | None]
    comparisons: int
    verdicts: list[Verdict | None]
    left_out: Mapping[str, int]

    def said(self, place: int) -> str:
        """What can be said of a group's difference from the reference."""
        found = self.differences[place]
        if found is None:
            return "reference"
        verdict = self.verdicts[place]
        if verdict is None and found.n > 1 and found.mean:
            return "no spread: every seed differs by the same"
        if verdict is None and found.n == 1:
            return "no spread yet: one seed"
        if verdict is not None and verdict.told:
            better = (found.mean > 0) == (self.mode == "max")
            return f"distinguishable: {'better' if better else 'worse'}"
        if verdict is None or not found.mean:
            return "not distinguishable: no difference"
        if verdict.more is None:
            return f"not distinguishable: needs over {MOST_SEEDS} seeds to tell"
        seeds = "seed" if verdict.more == 1 else "seeds"
        return f"not distinguishable: needs about {verdict.more} more {seeds} to tell"

    def pairing(self, place: int) -> str:
        """Which seeds a difference is of."""
        found = self.differences[place]
        if found is None:
            return ""
        if not found.paired:
            return "unpaired"
        whole = max(len(self.groups[at].values) for at in (place, self.reference))
        return "paired" if found.n == whole else f"paired by {found.n} of {whole} seeds"


def compare(
    runs: Sequence[Recorded],
    metric: str,
    mode: str,
    by: Sequence[str],
    against: str,
    confidence: float,
    left_out: Mapping[str, int],
) -> Comparison:
    """Group the runs and hold every group against one.

    Args:
        runs: each with a value of the metric, at least one.
        metric: what is compared.
        mode: ``max`` or ``min``.
        by: see ``grouped``.
        against: label of a group, a part of one, or its number in the table from 1; empty for the
            best group by mean.
        confidence: of the intervals, 0…1.
        left_out: for the record.

    Raises:
        UserError: for a key of ``by`` or an ``against`` that is not there.
    """
    sign = -1 if mode == "max" else 1
    made = [(group, spread(list(group.values.values()))) for group in grouped(runs, metric, by)]
    made.sort(key=lambda pair: (sign * pair[1].mean, pair[0].label))
    groups = [group for group, _ in made]
    reference = _reference([group.label for group in groups], against)
    chosen = groups[reference].values
    differences = [
        None if place == reference else difference(group.values, chosen, confidence)
        for place, group in enumerate(groups)
    ]
    comparisons = _comparisons(differences, named=bool(against))
    return Comparison(
        metric,
        mode,
        confidence,
        groups,
        [found for _, found in made],
        reference,
        differences,
        comparisons,
        judged(differences, confidence, comparisons),
        left_out,
    )


def _comparisons(differences: Sequence[Difference | None], *, named: bool) -> int:
    """How many differences were looked at.

    Who asks for the best looks at every pair: any group might have come out as the best.
    """
    tested = sum(found is not None and found.n > 1 for found in differences)
    return tested if named else tested * (tested + 1) // 2


def _reference(labels: list[str], against: str) -> int:
    if not against:
        return 0
    if against in labels:
        return labels.index(against)
    if against.isdecimal() and 1 <= int(against) <= len(labels):
        return int(against) - 1
    alike = [p for p, label in enumerate(labels) if against in label and not against.isdecimal()]
    if len(alike) == 1:
        return alike[0]
    near = nearest(against, labels)
    hint = f"; did you mean {near!r}?" if near else ";"
    told = "fits several groups" if alike else "no such group"
    raise UserError("against", f"against={against}: {told}{hint} there are {', '.join(labels)}")
