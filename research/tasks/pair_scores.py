"""Pairs of photos as arrays, and the scores of the photos within each series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from research.batch import PairBatch
from research.data.pairs.lists import DECIMALS

Float64s = NDArray[np.float64]

MIN_PROBABILITY: Final = 1e-3
"""Smallest probability of the constant baseline, and of its complement."""


@dataclass(frozen=True)
class PairScores:
    """N pairs of photos in main memory.

    Attributes:
        logits: [N] of P(first over second).
        preference: [N] of the first over the second, 0…1.
        series: [N] integers.
        photos: [N, 2] integers.
    """

    logits: Float64s
    preference: Float64s
    series: NDArray[np.int64]
    photos: NDArray[np.int64]

    @classmethod
    def of(cls, logits: Tensor, batch: PairBatch) -> PairScores:
        return cls(
            logits.detach().double().cpu().numpy(),
            np.round(batch.preference.double().cpu().numpy(), DECIMALS),
            batch.series.cpu().numpy(),
            batch.photos.cpu().numpy(),
        )

    @property
    def correct(self) -> Float64s:
        """[N] 1 where the winner is predicted, 0 where the loser is, 0.5 for a logit of exactly 0.

        NaN where the votes are tied.
        """
        side = np.sign(self.preference - 0.5)
        return np.where(side == 0, math.nan, 0.5 + 0.5 * side * np.sign(self.logits))


@dataclass(frozen=True)
class SeriesScores:
    """Scores of the M photos of some pairs, sorted by series.

    Attributes:
        photo: [M] integers.
        series: [M] integers.
        target: [M] mean preference for the photo in its pairs, 0…1.
        pred: [M] mean predicted probability of the photo in the same pairs, 0…1.
    """

    photo: NDArray[np.int64]
    series: NDArray[np.int64]
    target: Float64s
    pred: Float64s

    @classmethod
    def of(cls, pairs: PairScores) -> SeriesScores:
        from scipy.special import expit

        series = np.concatenate([pairs.series, pairs.series])
        photos = pairs.photos.T.reshape(-1)
        keys, index = np.unique(np.stack([series, photos]), axis=1, return_inverse=True)
        index = index.reshape(-1)
        counts = np.bincount(index)

        def mean(first: Float64s) -> Float64s:
            both = np.concatenate([first, 1 - first])
            return np.round(np.bincount(index, both) / counts, DECIMALS)

        return cls(keys[1], keys[0], mean(pairs.preference), mean(expit(pairs.logits)))


def constant_baseline(pairs: PairScores) -> PairScores:
    """The same pairs with one logit for all: the rate at which the first photo wins."""
    side = np.sign(pairs.preference - 0.5)
    decided = int(np.abs(side).sum())
    rate = float((side > 0).sum()) / decided if decided else 0.5
    rate = min(max(rate, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    logits = np.full_like(pairs.logits, math.log(rate) - math.log1p(-rate))
    return PairScores(logits, pairs.preference, pairs.series, pairs.photos)


def series_order(scores: SeriesScores) -> Float64s:
    """[S, 3]: for each series, whether its targets differ, top-1 and Kendall's τ-b."""
    rows = []
    starts = np.unique(scores.series, return_index=True)[1]
    for target, pred in zip(
        np.split(scores.target, starts[1:]), np.split(scores.pred, starts[1:]), strict=True
    ):
        one, two = np.triu_indices(len(target), 1)
        target_sign, pred_sign = np.sign(target[one] - target[two]), np.sign(pred[one] - pred[two])
        target_pairs, pred_pairs = np.abs(target_sign).sum(), np.abs(pred_sign).sum()
        if target_pairs == 0:
            rows.append((0.0, 0.0, 0.0))
            continue
        best = pred == pred.max()
        top1 = (target[best] == target.max()).mean() if best.any() else math.nan
        product = (target_sign * pred_sign).sum()
        tau = product / math.sqrt(target_pairs * pred_pairs) if pred_pairs != 0 else 0.0
        rows.append((1.0, top1, tau))
    return np.array(rows)
