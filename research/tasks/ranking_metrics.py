"""What comparisons of photos are worth: accuracy, calibration, order within series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit
from torch import Tensor

from research.batch import PairBatch
from research.tasks.standings import (
    DECIMALS,
    Floats,
    Pairs,
    Standing,
    constant,
    order,
)
from research.tracking.tracker import Rows

CALIBRATED: Final = 10
"""Bins of the expected calibration error; the winner's probability is 0.5…1."""
RESAMPLED: Final = 1000
INTERVAL: Final = (2.5, 97.5)
SHOWN: Final = 12


class RankingMetrics:
    """Judges comparisons over all pairs seen, whatever batches they came in; shares of 1.

    - ``pair_accuracy``: pairs whose winner is named; ties are left out, and a logit of exactly 0
      is half right. ``accuracy_50_60`` …: the same of the pairs whose agreement, max(p, 1 − p),
      is at least 0.5 and below 0.6; the last of them includes its upper edge.
    - ``constant_accuracy``: what always naming the first photo, or always the second, reaches.
    - ``log_loss``, ``ece``: cross-entropy, and expected calibration error of the named winner's
      probability in ten bins (Guo et al., 2017), against the share of votes; with ``majority``
      against who won, ties left out.
    - ``series_top1``: series whose best photo is named; of several that are best by the model,
      each counts its share. ``kendall_tau``: mean over series of Kendall's τ-b, 0 where the
      model tells no photo from another. A photo's place in its series is its mean preference
      over those that it met, by votes and by the model; series of ties alone are left out.

    What is not defined, such as the accuracy of no pair, is NaN.

    Args:
        target: ``soft`` or ``majority``, see ``Ranking``.
        bins: edges of agreement, rising, in 0.5…1.

    Attributes:
        worst: the most confident mistakes, at most 12: their batch and logits, in main memory;
            null when there was none.
    """

    def __init__(self, target: str, bins: Sequence[float]) -> None:
        self.target = target
        self.edges = np.round(np.array(bins, dtype=np.float64), DECIMALS)
        self.labels = [f"accuracy_{100 * low:g}_{100 * high:g}" for low, high in pairwise(bins)]
        self.reset()

    @property
    def names(self) -> list[str]:
        return [
            "pair_accuracy",
            *self.labels,
            "constant_accuracy",
            "log_loss",
            "ece",
            "series_top1",
            "kendall_tau",
        ]

    def reset(self) -> None:
        self.seen: list[Pairs] = []
        self.worst: tuple[PairBatch, Tensor] | None = None

    def update(self, predictions: Tensor, batch: PairBatch) -> None:
        """Take in logits [B]."""
        pairs = Pairs.of(predictions, batch)
        self.seen.append(pairs)
        wrong = np.sign(pairs.logits) * np.sign(pairs.preference - 0.5) < 0
        self._keep_worst(np.nonzero(wrong)[0], batch, predictions.detach().double())

    def pairs(self) -> Pairs:
        return Pairs(
            np.concatenate([part.logits for part in self.seen]),
            np.concatenate([part.preference for part in self.seen]),
            np.concatenate([part.series for part in self.seen]),
            np.concatenate([part.photos for part in self.seen]),
        )

    def compute(self) -> dict[str, float]:
        """Flat names; empty when no pair was seen."""
        if not any(len(part.logits) for part in self.seen):
            return {}
        pairs = self.pairs()
        found = self._rates(self._sums(pairs).sum(0))
        found["constant_accuracy"] = self._rates(self._sums(constant(pairs)).sum(0))[
            "pair_accuracy"
        ]
        return {name: float(found[name]) for name in self.names}

    def intervals(self) -> Rows:
        """Every metric with its 95 % interval by bootstrap over series, and the constant's value.

        Percentiles of 1000 draws of as many series as there are; the same draws every time. Of
        ``ece``, which grows with noise, most of the interval lies above the value.
        """
        pairs = self.pairs()
        sums = self._sums(pairs)
        value, still = self._rates(sums.sum(0)), self._rates(self._sums(constant(pairs)).sum(0))
        count = len(sums)
        chosen = np.random.default_rng(0).multinomial(
            count, np.full(count, 1 / count), size=RESAMPLED
        )
        drawn = self._rates(chosen.astype(np.float64) @ sums)
        rows: list[dict[str, float | int | str]] = []
        for name, values in drawn.items():
            finite = values[np.isfinite(values)]
            low, high = np.percentile(finite, INTERVAL) if len(finite) else (math.nan, math.nan)
            rows.append(
                {
                    "metric": name,
                    "value": float(value[name]),
                    "low": float(low),
                    "high": float(high),
                    "constant": float(still[name]),
                    "pairs": int(sums[:, self._counted(name)].sum()),
                    "series": int((sums[:, self._counted(name)] > 0).sum()),
                }
            )
        return rows

    def reliability(self) -> tuple[Floats, Floats, Floats]:
        """Bins of the winner's probability over 0…1: pairs, sums of probabilities, and of truth."""
        truth, weight, confidence, right = self._calibration(self.pairs())
        place = CALIBRATED + _bin(confidence)
        return tuple(  # type: ignore[return-value]
            np.bincount(place, values * weight, 2 * CALIBRATED)
            for values in (np.ones_like(truth), confidence, right)
        )

    # -- sums by series, and what they make ------------------------------------------------------

    def _sums(self, pairs: Pairs) -> Floats:
        """[S, K]: of each series, sums in the order in which ``_rates`` takes them."""
        _, place = np.unique(pairs.series, return_inverse=True)
        size = int(place.max()) + 1
        decided = (pairs.preference != 0.5).astype(np.float64)
        hit = np.where(decided, pairs.named, 0)
        agreement = np.round(0.5 + np.abs(pairs.preference - 0.5), DECIMALS)
        inside = np.searchsorted(self.edges, agreement, side="right") - 1
        inside[agreement == self.edges[-1]] = len(self.labels) - 1
        columns = [decided, hit]
        for number in range(len(self.labels)):
            here = inside == number
            columns += [decided * here, hit * here]
        truth, weight, confidence, right = self._calibration(pairs)
        with np.errstate(invalid="ignore"):  # logits of a diverged network may be infinite
            loss = -truth * log_expit(pairs.logits) - (1 - truth) * log_expit(-pairs.logits)
            columns += [weight, weight * loss]
        bins = _bin(confidence)
        columns += [weight * (confidence - right) * (bins == b) for b in range(CALIBRATED)]
        by_series = np.stack([np.bincount(place, column, size) for column in columns], 1)
        return np.concatenate([by_series, order(Standing.of(pairs))], 1)

    def _rates(self, sums: Floats) -> dict[str, Any]:
        """The metrics from sums […, K] over some series."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                name: sums[..., self._counted(name) + 1] / sums[..., self._counted(name)]
                for name in ("pair_accuracy", *self.labels, "log_loss")
            }
            start = self._counted("log_loss")
            bins = sums[..., start + 2 : start + 2 + CALIBRATED]
            found["ece"] = np.abs(bins).sum(-1) / sums[..., start]
            found["series_top1"] = sums[..., -2] / sums[..., -3]
            found["kendall_tau"] = sums[..., -1] / sums[..., -3]
        return found

    def _counted(self, name: str) -> int:
        """Which column of the sums counts what a metric is a mean of."""
        if name in ("series_top1", "kendall_tau"):
            return -3
        names = ["pair_accuracy", *self.labels, "log_loss"]
        return 2 * names.index("log_loss" if name == "ece" else name)

    def _calibration(self, pairs: Pairs) -> tuple[Floats, Floats, Floats, Floats]:
        """Truth and weight of pairs, the named winner's probability, and the truth of that."""
        truth, weight = pairs.preference, np.ones_like(pairs.preference)
        if self.target == "majority":
            side = np.sign(truth - 0.5)
            truth, weight = 0.5 + 0.5 * side, np.abs(side)
        confidence = expit(np.abs(pairs.logits))
        return truth, weight, confidence, 0.5 + np.sign(pairs.logits) * (truth - 0.5)

    def _keep_worst(self, wrong: NDArray[np.intp], batch: PairBatch, logits: Tensor) -> None:
        if not len(wrong):
            return
        chosen = torch.from_numpy(wrong).to(logits.device)
        chosen = chosen[logits[chosen].abs().argsort(descending=True, stable=True)[:SHOWN]]
        found = batch.map(lambda tensor: tensor[chosen.to(tensor.device)].cpu())
        said = logits[chosen].cpu()
        if self.worst is not None:
            before, earlier = self.worst
            said = torch.cat([earlier, said])
            order = said.abs().argsort(descending=True, stable=True)[:SHOWN]
            found = before.cat(found).map(lambda tensor: tensor[order])
            said = said[order]
        self.worst = (found, said)


def _bin(confidence: Floats) -> NDArray[np.int64]:
    """Of the winner's probability; what a diverged network says is in the lowest."""
    place = np.nan_to_num((confidence - 0.5) * 2 * CALIBRATED)
    return np.clip(place.astype(np.int64), 0, CALIBRATED - 1)
