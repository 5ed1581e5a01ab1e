"""Pairs of photos as arrays, and what they say of the order within series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from research.batch import PairBatch

Floats = NDArray[np.float64]

DECIMALS: Final = 6
"""Preferences nearer to each other than that are the same; single precision is no vote."""
CERTAIN: Final = 1e-3
"""The constant predictor is never surer than this of anything."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of photos in main memory, N of them.

    Attributes:
        logits: [N] of P(first over second).
        preference: [N] of the first over the second, 0…1.
        series: [N] integers.
        photos: [N, 2] integers.
    """

    logits: Floats
    preference: Floats
    series: NDArray[np.int64]
    photos: NDArray[np.int64]

    @classmethod
    def of(cls, logits: Tensor, batch: PairBatch) -> Pairs:
        return cls(
            logits.detach().double().cpu().numpy(),
            np.round(batch.preference.double().cpu().numpy(), DECIMALS),
            batch.series.cpu().numpy(),
            batch.photos.cpu().numpy(),
        )

    @property
    def named(self) -> Floats:
        """[N] 1 where the winner is named, 0 where the other one is, 0.5 for a logit of exactly 0.

        NaN where the votes are tied.
        """
        side = np.sign(self.preference - 0.5)
        return np.where(side == 0, math.nan, 0.5 + 0.5 * side * np.sign(self.logits))


@dataclass(frozen=True)
class Standing:
    """Photos of some pairs, by series, M of them.

    Attributes:
        photo: [M] integers.
        series: [M] integers.
        true: [M] mean preference for the photo over those that it met, 0…1.
        said: [M] mean probability that it is preferred, over the same pairs, 0…1.
    """

    photo: NDArray[np.int64]
    series: NDArray[np.int64]
    true: Floats
    said: Floats

    @classmethod
    def of(cls, pairs: Pairs) -> Standing:
        chance = expit(pairs.logits)
        series = np.concatenate([pairs.series, pairs.series])
        photos = pairs.photos.T.reshape(-1)
        keys, place = np.unique(np.stack([series, photos]), axis=1, return_inverse=True)
        place = place.reshape(-1)
        met = np.bincount(place)

        def mean(share: Floats) -> Floats:
            both = np.concatenate([share, 1 - share])
            return np.round(np.bincount(place, both) / met, DECIMALS)

        return cls(keys[1], keys[0], mean(pairs.preference), mean(chance))


def constant(pairs: Pairs) -> Pairs:
    """The same pairs as one sees them who looks at no photo: the first wins as often as it does."""
    side = np.sign(pairs.preference - 0.5)
    decided = int(np.abs(side).sum())
    share = float((side > 0).sum()) / decided if decided else 0.5
    share = min(max(share, CERTAIN), 1 - CERTAIN)
    logits = np.full_like(pairs.logits, math.log(share) - math.log1p(-share))
    return Pairs(logits, pairs.preference, pairs.series, pairs.photos)


def order(standing: Standing) -> Floats:
    """[S, 3]: of each series, whether it counts, its top-1 and its Kendall τ-b."""
    rows = []
    starts = np.unique(standing.series, return_index=True)[1]
    for true, said in zip(
        np.split(standing.true, starts[1:]), np.split(standing.said, starts[1:]), strict=True
    ):
        one, two = np.triu_indices(len(true), 1)
        truly, as_said = np.sign(true[one] - true[two]), np.sign(said[one] - said[two])
        apart, told = np.abs(truly).sum(), np.abs(as_said).sum()
        if apart == 0:
            rows.append((0.0, 0.0, 0.0))
            continue
        best = said == said.max()
        top = (true[best] == true.max()).mean() if best.any() else math.nan
        tau = (truly * as_said).sum() / math.sqrt(apart * told) if told != 0 else 0.0
        rows.append((1.0, top, tau))
    return np.array(rows)
