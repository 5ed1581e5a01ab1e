"""How much groups of seeds differ, and whether that can be told from chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

RESAMPLES = 10_000
POWER = 0.8
MOST_SEEDS = 1000

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
        bootstrap: percentile interval of the mean; null where a group has one seed.
        student: interval by Student's t (Welch's for unpaired groups); null as above.
        more: seeds of each to add until a difference of this size would be told with a chance of
            ``POWER``; null where it was told, is 0, or would take more than ``MOST_SEEDS``.
    """

    mean: float
    paired: bool
    n: int
    bootstrap: Interval | None
    student: Interval | None
    more: int | None

    @property
    def told(self) -> bool | None:
        """Whether both intervals exclude zero; null without a spread."""
        if self.bootstrap is None or self.student is None:
            return None
        return all(low > 0 or high < 0 for low, high in (self.bootstrap, self.student))


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
        return _paired(np.array([ours[seed] - theirs[seed] for seed in common]), confidence)
    return _unpaired(ours, theirs, confidence)


def _paired(differences: NDArray[np.float64], confidence: float) -> Difference:
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Difference(mean, True, n, None, None, None)
    sd = float(differences.std(ddof=1))
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    found = Difference(
        mean,
        True,
        n,
        _percentiles(differences[drawn].mean(1), confidence),
        _student(mean, sd / math.sqrt(n), n - 1, confidence),
        None,
    )
    return _with_more(found, sd, confidence)


def _unpaired(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float
) -> Difference:
    sides = [np.array([side[seed] for seed in sorted(side)]) for side in (ours, theirs)]
    mean = float(sides[0].mean() - sides[1].mean())
    n = min(len(side) for side in sides)
    if n == 1:
        return Difference(mean, False, n, None, None, None)
    resampled = [np.empty(0), np.empty(0)]
    rng = np.random.default_rng(0)
    # In the order of their seeds: whichever is called ours, the interval is the same.
    for place in sorted((0, 1), key=lambda place: sorted((ours, theirs)[place])):
        side = sides[place]
        resampled[place] = side[rng.integers(0, len(side), (RESAMPLES, len(side)))].mean(1)
    variances = [float(side.var(ddof=1)) for side in sides]
    errors = [variance / len(side) for variance, side in zip(variances, sides, strict=True)]
    parts = sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
    freedom = sum(errors) ** 2 / parts if parts else len(ours) + len(theirs) - 2
    found = Difference(
        mean,
        False,
        n,
        _percentiles(resampled[0] - resampled[1], confidence),
        _student(mean, math.sqrt(sum(errors)), freedom, confidence),
        None,
    )
    return _with_more(found, math.sqrt(sum(variances)), confidence)


def _percentiles(means: NDArray[np.float64], confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _student(mean: float, error: float, freedom: float, confidence: float) -> Interval:
    reach = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    return mean - reach, mean + reach


def _with_more(found: Difference, sd: float, confidence: float) -> Difference:
    if found.told or not found.mean:
        return found
    needed = seeds_needed(abs(found.mean) / sd, confidence, paired=found.paired)
    if needed is None:
        return found
    return replace(found, more=max(1, needed - found.n))


def seeds_needed(effect: float, confidence: float = 0.95, *, paired: bool = True) -> int | None:
    """The fewest seeds of each group with which a two-sided t test finds ``effect``.

    Args:
        effect: mean difference over the standard deviation of single differences.
        confidence: 1 minus the level of the test.
        paired: whether groups share their seeds.

    Returns:
        seeds for a power of at least ``POWER``; null for more than ``MOST_SEEDS``.
    """
    if _power(effect, MOST_SEEDS, confidence, paired) < POWER:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        enough = _power(effect, middle, confidence, paired) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def _power(effect: float, n: int, confidence: float, paired: bool) -> float:
    freedom = n - 1 if paired else 2 * n - 2
    critical = special.stdtrit(freedom, (1 + confidence) / 2)
    # By the noncentral t distribution; the other tail adds nothing where power is of interest.
    return 1 - float(special.nctdtr(freedom, effect * math.sqrt(n), critical))
