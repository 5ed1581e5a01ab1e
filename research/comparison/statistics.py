"""Statistics over seeds: intervals of differences between groups, tests and sample sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
POWER = 0.8
MAX_SEEDS = 1000
ROUNDING = 1e-12
"""Differences below this fraction of the values count as 0."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class SeedStats:
    """Statistics of a metric over seeds.

    Attributes:
        n: number of seeds.
        mean: over the seeds.
        sd: sample standard deviation; ``None`` for one seed.
        low: smallest value.
        high: largest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean of one group minus that of another, in units of the metric.

    Attributes:
        mean: the difference; if paired, over the seeds that both groups have.
        paired: whether differences were taken seed by seed.
        n: if paired, the number of common seeds; otherwise the seeds of the smaller group.
        bootstrap: percentile interval of the mean; ``None`` if the standard deviation is 0 or
            unknown: a group has one seed, or all differences are equal, as can happen with a
            metric that counts.
        student: interval by Student's t (Welch's for unpaired groups); ``None`` as above.
        sd: standard deviation of single differences; ``None`` as above.
        p: of the two-sided t test for this difference alone, 0…1; ``None`` as above.
    """

    mean: float
    paired: bool
    n: int
    bootstrap: Interval | None
    student: Interval | None
    sd: float | None
    p: float | None


@dataclass(frozen=True)
class Verdict:
    """Whether a difference is significant, given all comparisons that were made.

    Attributes:
        p: of the difference, adjusted for the number of comparisons, 0…1.
        significant: whether p is below 1 minus the confidence and the bootstrap interval excludes
            zero.
        more_seeds: seeds to add to each group until a difference of this size would be significant
            with a probability of ``POWER``; ``None`` if it already is, if it is 0, or if more than
            ``MAX_SEEDS`` would be needed.
    """

    p: float
    significant: bool
    more_seeds: int | None


def seed_stats(values: Sequence[float]) -> SeedStats:
    """Mean, sample standard deviation and range of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return SeedStats(len(array), float(array.mean()), sd, float(array.min()), float(array.max()))


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95
) -> Difference:
    """Ours minus theirs; paired by seed if at least two seeds match.

    Args:
        ours: the value of each seed, at least one.
        theirs: of the other group.
        confidence: of both intervals, 0…1.
    """
    common = sorted(ours.keys() & theirs.keys())
    if len(common) > 1 or len(common) == len(ours) == len(theirs):
        scale = ROUNDING * max(abs(side[seed]) for side in (ours, theirs) for seed in common)
        differences = np.array([ours[seed] - theirs[seed] for seed in common])
        differences[np.abs(differences) <= scale] = 0.0
        return _paired(differences, scale, confidence)
    return _unpaired(ours, theirs, confidence)


def _paired(differences: NDArray[np.float64], scale: float, confidence: float) -> Difference:
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else 0.0
    if sd <= scale:
        return Difference(mean, True, n, None, None, None, None)
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    bootstrap = _percentiles(differences[drawn].mean(1), confidence)
    student, p = _student(mean, sd / math.sqrt(n), n - 1, confidence)
    return Difference(mean, True, n, bootstrap, student, sd, p)


def _unpaired(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float
) -> Difference:
    sides = [np.array([side[seed] for seed in sorted(side)]) for side in (ours, theirs)]
    scale = ROUNDING * max(float(np.abs(side).max()) for side in sides)
    mean = float(sides[0].mean() - sides[1].mean())
    n = min(len(side) for side in sides)
    if n == 1 or max(float(np.ptp(side)) for side in sides) <= scale:
        return Difference(mean, False, n, None, None, None, None)
    resampled = [np.empty(0), np.empty(0)]
    rng = np.random.default_rng(0)
    # Resampled in the order of their seeds, so that swapping the groups gives the same interval.
    for index in sorted((0, 1), key=lambda index: sorted((ours, theirs)[index])):
        side = sides[index]
        resampled[index] = side[rng.integers(0, len(side), (RESAMPLES, len(side)))].mean(1)
    variances = [float(side.var(ddof=1)) for side in sides]
    errors = [variance / len(side) for variance, side in zip(variances, sides, strict=True)]
    parts = sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
    freedom = sum(errors) ** 2 / parts
    bootstrap = _percentiles(resampled[0] - resampled[1], confidence)
    student, p = _student(mean, math.sqrt(sum(errors)), freedom, confidence)
    return Difference(mean, False, n, bootstrap, student, math.sqrt(sum(variances)), p)


def _percentiles(means: NDArray[np.float64], confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def group_interval(
    differences: NDArray[np.float64], groups: Sequence[str], confidence: float = 0.95
) -> Interval | None:
    """Percentile bootstrap interval of the mean difference; groups are resampled whole.

    Args:
        differences: [n] of each sample.
        groups: [n] the group of each sample: samples of one group are alike.
        confidence: 0…1.

    Returns:
        the interval; None with fewer than two groups, which show no spread.
    """
    names = sorted(set(groups))
    member = np.array([names.index(group) for group in groups])
    sums = np.bincount(member, weights=differences)
    return summed_interval(sums, np.bincount(member), confidence)


def summed_interval(
    sums: NDArray[Any], counts: NDArray[Any], confidence: float = 0.95
) -> Interval | None:
    """``group_interval`` for the sum of the differences of each group, and their number."""
    if len(sums) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    return _percentiles(sums[drawn].sum(1) / counts[drawn].sum(1), confidence)


def _student(
    mean: float, error: float, freedom: float, confidence: float
) -> tuple[Interval, float]:
    """Confidence interval of a mean, and p of the test that it is 0."""
    from scipy import special  # late: it takes half of the start of research.compare

    half_width = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    return (mean - half_width, mean + half_width), 2 * float(
        special.stdtr(freedom, -abs(mean) / error)
    )


def holm_verdicts(
    differences: Sequence[Difference | None], confidence: float, comparisons: int
) -> list[Verdict | None]:
    """Verdicts that are all correct with a probability of ``confidence``, by Holm's procedure.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6
    (1979): the smallest p is multiplied by the number of comparisons, the next by one less.

    Args:
        differences: to test; ``None`` for the reference.
        confidence: 0…1.
        comparisons: from which the differences were chosen, at least as many as they are.

    Returns:
        a verdict for each difference; ``None`` for the reference and without a p value.
    """
    tested = [
        (each.p, index)
        for index, each in enumerate(differences)
        if each is not None and each.p is not None
    ]
    verdicts: list[Verdict | None] = [None] * len(differences)
    adjusted = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        adjusted = max(adjusted, min(1.0, (comparisons - rank) * p))
        each = differences[index]
        assert each is not None
        verdicts[index] = _verdict(each, adjusted, confidence, comparisons)
    return verdicts


def _verdict(each: Difference, p: float, confidence: float, comparisons: int) -> Verdict:
    assert each.bootstrap is not None
    low, high = each.bootstrap
    if p < 1 - confidence and (low > 0 or high < 0):
        return Verdict(p, True, None)
    needed = None
    if each.mean and each.sd:
        level = 1 - (1 - confidence) / comparisons
        needed = seeds_needed(abs(each.mean) / each.sd, level, paired=each.paired)
    return Verdict(p, False, None if needed is None else max(1, needed - each.n))


def seeds_needed(effect: float, confidence: float = 0.95, *, paired: bool = True) -> int | None:
    """The least number of seeds in each group with which a two-sided t test detects ``effect``.

    Args:
        effect: mean difference over the standard deviation of single differences.
        confidence: 1 minus the level of the test.
        paired: whether groups share their seeds.

    Returns:
        seeds for a power of at least ``POWER``; ``None`` for more than ``MAX_SEEDS``.
    """
    from scipy import special

    n = np.arange(2, MAX_SEEDS + 1)
    freedom = n - 1 if paired else 2 * n - 2
    critical = special.stdtrit(freedom, (1 + confidence) / 2)
    centre = effect * np.sqrt(n)
    # Noncentral t distribution; the other tail is negligible at the power of interest.
    missed = special.nctdtr(freedom, centre, critical)
    # scipy returns NaN in places; there the approximation of Abramowitz and Stegun, 26.7.10.
    shrunk = critical * (1 - 1 / (4 * freedom)) - centre
    approximate = special.ndtr(shrunk / np.sqrt(1 + critical**2 / (2 * freedom)))
    enough = np.flatnonzero(1 - np.where(np.isnan(missed), approximate, missed) >= POWER)
    return int(n[enough[0]]) if len(enough) else None
