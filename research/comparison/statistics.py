"""How much groups of seeds differ, and whether that can be told from chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

RESAMPLES = 10_000
POWER = 0.8
MOST_SEEDS = 1000
ROUNDING = 1e-12
"""Differences below this share of the values are none."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """Of one value a seed.

    Attributes:
        n: seeds.
        mean: of them.
        sd: sample standard deviation; null for one seed.
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
        mean: the difference; paired, that over the seeds which both have.
        paired: whether it is the mean of differences seed by seed.
        n: seeds that both have when paired; else of the smaller group.
        bootstrap: percentile interval of the mean; null without a spread: where a group has one
            seed, or all differences are the same, as they can be of a metric that counts.
        student: interval by Student's t (Welch's for unpaired groups); null as above.
        sd: standard deviation of single differences; null as above.
        p: of the two-sided t test, of this difference by itself, 0…1; null as above.
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
    """Whether a difference can be told from chance, among all that were looked at.

    Attributes:
        p: that of the difference, adjusted for the number of comparisons, 0…1.
        told: whether it is below 1 minus the confidence, and the bootstrap interval excludes zero.
        more: seeds of each group to add until a difference of this size would be told with a
            chance of ``POWER``, whatever the others are; null where it was told, is 0, or would
            take more than ``MOST_SEEDS``.
    """

    p: float
    told: bool
    more: int | None


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and range of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return Spread(len(array), float(array.mean()), sd, float(array.min()), float(array.max()))


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95
) -> Difference:
    """Ours minus theirs, by seed where at least two seeds match.

    Args:
        ours: value of each seed, at least one.
        theirs: the same.
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
    # In the order of their seeds: whichever is called ours, the interval is the same.
    for place in sorted((0, 1), key=lambda place: sorted((ours, theirs)[place])):
        side = sides[place]
        resampled[place] = side[rng.integers(0, len(side), (RESAMPLES, len(side)))].mean(1)
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


def _student(
    mean: float, error: float, freedom: float, confidence: float
) -> tuple[Interval, float]:
    """The interval of a mean with its standard error, and p of its being 0."""
    reach = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    return (mean - reach, mean + reach), 2 * float(special.stdtr(freedom, -abs(mean) / error))


def judged(
    differences: Sequence[Difference | None], confidence: float, comparisons: int
) -> list[Verdict | None]:
    """Verdicts that are all right together with a chance of ``confidence``, by Holm's procedure.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6
    (1979): the smallest p counts as many times as there are comparisons, the next once less.

    Args:
        differences: those to judge; null stays null, as does one without a spread.
        confidence: 0…1.
        comparisons: among which they were chosen, at least as many as they are.
    """
    tested = [
        (each.p, place)
        for place, each in enumerate(differences)
        if each is not None and each.p is not None
    ]
    verdicts: list[Verdict | None] = [None] * len(differences)
    adjusted = 0.0
    for rank, (p, place) in enumerate(sorted(tested)):
        adjusted = max(adjusted, min(1.0, (comparisons - rank) * p))
        found = differences[place]
        assert found is not None
        verdicts[place] = _verdict(found, adjusted, confidence, comparisons)
    return verdicts


def _verdict(found: Difference, p: float, confidence: float, comparisons: int) -> Verdict:
    assert found.bootstrap is not None
    low, high = found.bootstrap
    if p < 1 - confidence and (low > 0 or high < 0):
        return Verdict(p, True, None)
    needed = None
    if found.mean and found.sd:
        each = 1 - (1 - confidence) / comparisons
        needed = seeds_needed(abs(found.mean) / found.sd, each, paired=found.paired)
    return Verdict(p, False, None if needed is None else max(1, needed - found.n))


def seeds_needed(effect: float, confidence: float = 0.95, *, paired: bool = True) -> int | None:
    """The fewest seeds of each group with which a two-sided t test finds ``effect``.

    Args:
        effect: mean difference over the standard deviation of single differences.
        confidence: 1 minus the level of the test.
        paired: whether groups share their seeds.

    Returns:
        seeds for a power of at least ``POWER``; null for more than ``MOST_SEEDS``.
    """
    n = np.arange(2, MOST_SEEDS + 1)
    freedom = n - 1 if paired else 2 * n - 2
    critical = special.stdtrit(freedom, (1 + confidence) / 2)
    centre = effect * np.sqrt(n)
    # By the noncentral t distribution; the other tail adds nothing where power is of interest.
    missed = special.nctdtr(freedom, centre, critical)
    # Here and there scipy has no number. M. Abramowitz, I. Stegun, 26.7.10, is near enough.
    shrunk = critical * (1 - 1 / (4 * freedom)) - centre
    near = special.ndtr(shrunk / np.sqrt(1 + critical**2 / (2 * freedom)))
    enough = np.flatnonzero(1 - np.where(np.isnan(missed), near, missed) >= POWER)
    return int(n[enough[0]]) if len(enough) else None
