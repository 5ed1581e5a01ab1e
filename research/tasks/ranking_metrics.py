"""Metrics of pairwise ranking: accuracy, calibration, order within series.

A metric has a name in ``RankingMetrics.names``, sums per series in ``_sums`` and its value in
``_rates``: bootstrap intervals are computed from resampled sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.batch import PairBatch
from research.data.pairs.lists import DECIMALS
from research.tasks.pair_scores import (
    Float64s,
    PairScores,
    SeriesScores,
    constant_baseline,
    series_order,
)
from research.tracking.tracker import Rows

CALIBRATION_BINS: Final = 10
"""Bins of the expected calibration error; the winner's probability is 0.5…1."""
RESAMPLES: Final = 1000
INTERVAL: Final = (2.5, 97.5)
SHOWN: Final = 12


class RankingMetrics:
    """Metrics over all pairs of a split, independent of the batches; values in 0…1.

    - ``pair_accuracy``: fraction of pairs whose winner is predicted, without ties; a logit of
      exactly 0 counts as 0.5. ``accuracy_50_60`` …: the same for the pairs whose agreement,
      max(p, 1 − p), is in [0.5, 0.6); the last bin includes its upper edge.
    - ``constant_accuracy``: of always predicting the first photo, or always the second.
    - ``log_loss``, ``ece``: cross-entropy, and expected calibration error of the predicted
      winner's probability in ten bins (Guo et al., 2017), against the fraction of votes; with
      ``majority`` against the winner, without ties.
    - ``series_top1``: series whose best photo is predicted; if several photos have the highest
      score, their mean. ``kendall_tau``: mean over series of Kendall's τ-b, 0 if all scores of a
      series are equal. A photo's score is its mean preference in its pairs, by votes and by the
      model; series in which all votes are tied do not count.

    Undefined values, such as the accuracy of no pair, are NaN.

    Args:
        target: ``soft`` or ``majority``, see ``Ranking``.
        bins: bin edges of agreement, increasing, in 0.5…1.

    Attributes:
        worst: the most confident mistakes, at most 12: their batch and logits, on the CPU;
            ``None`` if there are none.
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
        self.seen: list[PairScores] = []
        self.worst: tuple[PairBatch, Tensor] | None = None

    def update(self, predictions: Tensor, batch: PairBatch) -> None:
        """Add a batch with its logits [B]."""
        pairs = PairScores.of(predictions, batch)
        self.seen.append(pairs)
        wrong = np.sign(pairs.logits) * np.sign(pairs.preference - 0.5) < 0
        self._keep_worst(np.nonzero(wrong)[0], batch, predictions.detach().double())

    def state(self) -> dict[str, Any]:
        """All pairs and the most confident mistakes."""
        return {"seen": self.seen, "worst": self.worst}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the pairs of another ``state``."""
        self.seen += state["seen"]
        if state["worst"] is not None:
            self._add_worst(*state["worst"])

    def pairs(self) -> PairScores:
        """All pairs so far."""
        return PairScores(
            np.concatenate([part.logits for part in self.seen]),
            np.concatenate([part.preference for part in self.seen]),
            np.concatenate([part.series for part in self.seen]),
            np.concatenate([part.photos for part in self.seen]),
        )

    def compute(self) -> dict[str, float]:
        """Values by name; empty before the first pair."""
        if not any(len(part.logits) for part in self.seen):
            return {}
        pairs = self.pairs()
        metrics = self._rates(self._sums(pairs).sum(0))
        constant = self._rates(self._sums(constant_baseline(pairs)).sum(0))
        metrics["constant_accuracy"] = constant["pair_accuracy"]
        return {name: float(metrics[name]) for name in self.names}

    def intervals(self) -> Rows:
        """Every metric with its 95 % bootstrap interval over series, and that of the baseline.

        Percentiles of 1000 resamples of the series with a fixed seed. ``ece`` grows with noise:
        most of its interval lies above the value.
        """
        pairs = self.pairs()
        sums = self._sums(pairs)
        value = self._rates(sums.sum(0))
        constant = self._rates(self._sums(constant_baseline(pairs)).sum(0))
        count = len(sums)
        chosen = np.random.default_rng(0).multinomial(
            count, np.full(count, 1 / count), size=RESAMPLES
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
                    "constant": float(constant[name]),
                    "pairs": int(sums[:, self._counted(name)].sum()),
                    "series": int((sums[:, self._counted(name)] > 0).sum()),
                }
            )
        return rows

    def reliability(self) -> tuple[Float64s, Float64s, Float64s]:
        """Bins of the winner's probability over 0…1: counts, sums of probabilities, of targets."""
        target, weight, confidence, correct = self._calibration(self.pairs())
        index = CALIBRATION_BINS + _bin(confidence)
        return tuple(  # type: ignore[return-value]
            np.bincount(index, values * weight, 2 * CALIBRATION_BINS)
            for values in (np.ones_like(target), confidence, correct)
        )

    # -- sums per series, and metrics from them ----------------------------------------------------

    def _sums(self, pairs: PairScores) -> Float64s:
        """[S, K]: sums per series, in the order of ``_rates``."""
        from scipy.special import log_expit

        _, index = np.unique(pairs.series, return_inverse=True)
        size = int(index.max()) + 1
        decided = (pairs.preference != 0.5).astype(np.float64)
        hit = np.where(decided, pairs.correct, 0)
        agreement = np.round(0.5 + np.abs(pairs.preference - 0.5), DECIMALS)
        inside = np.searchsorted(self.edges, agreement, side="right") - 1
        inside[agreement == self.edges[-1]] = len(self.labels) - 1
        columns = [decided, hit]
        for number in range(len(self.labels)):
            here = inside == number
            columns += [decided * here, hit * here]
        target, weight, confidence, correct = self._calibration(pairs)
        with np.errstate(invalid="ignore"):  # logits of a diverged network may be infinite
            loss = -target * log_expit(pairs.logits) - (1 - target) * log_expit(-pairs.logits)
            columns += [weight, weight * loss]
        bins = _bin(confidence)
        columns += [weight * (confidence - correct) * (bins == b) for b in range(CALIBRATION_BINS)]
        by_series = np.stack([np.bincount(index, column, size) for column in columns], 1)
        return np.concatenate([by_series, series_order(SeriesScores.of(pairs))], 1)

    def _rates(self, sums: Float64s) -> dict[str, Any]:
        """The metrics from sums […, K] over some series."""
        with np.errstate(divide="ignore", invalid="ignore"):
            metrics = {
                name: sums[..., self._counted(name) + 1] / sums[..., self._counted(name)]
                for name in ("pair_accuracy", *self.labels, "log_loss")
            }
            start = self._counted("log_loss")
            bins = sums[..., start + 2 : start + 2 + CALIBRATION_BINS]
            metrics["ece"] = np.abs(bins).sum(-1) / sums[..., start]
            metrics["series_top1"] = sums[..., -2] / sums[..., -3]
            metrics["kendall_tau"] = sums[..., -1] / sums[..., -3]
        return metrics

    def _counted(self, name: str) -> int:
        """The column of the sums that counts the samples of a metric."""
        if name in ("series_top1", "kendall_tau"):
            return -3
        names = ["pair_accuracy", *self.labels, "log_loss"]
        return 2 * names.index("log_loss" if name == "ece" else name)

    def _calibration(self, pairs: PairScores) -> tuple[Float64s, Float64s, Float64s, Float64s]:
        """Target and weight of pairs, the predicted winner's probability, and its target."""
        from scipy.special import expit

        target, weight = pairs.preference, np.ones_like(pairs.preference)
        if self.target == "majority":
            side = np.sign(target - 0.5)
            target, weight = 0.5 + 0.5 * side, np.abs(side)
        confidence = expit(np.abs(pairs.logits))
        return target, weight, confidence, 0.5 + np.sign(pairs.logits) * (target - 0.5)

    def _keep_worst(self, wrong: NDArray[np.intp], batch: PairBatch, logits: Tensor) -> None:
        if not len(wrong):
            return
        chosen = torch.from_numpy(wrong).to(logits.device)
        chosen = chosen[logits[chosen].abs().argsort(descending=True, stable=True)[:SHOWN]]
        worst = batch.map(lambda tensor: tensor[chosen.to(tensor.device)].cpu())
        logits = logits[chosen].cpu()
        self._add_worst(worst, logits)

    def _add_worst(self, worst: PairBatch, logits: Tensor) -> None:
        if self.worst is not None:
            before, earlier = self.worst
            logits = torch.cat([earlier, logits])
            order = logits.abs().argsort(descending=True, stable=True)[:SHOWN]
            worst = before.cat(worst).map(lambda tensor: tensor[order])
            logits = logits[order]
        self.worst = (worst, logits)


def _bin(confidence: Float64s) -> NDArray[np.int64]:
    """Bin of the winner's probability; NaN is in the lowest."""
    index = np.nan_to_num((confidence - 0.5) * 2 * CALIBRATION_BINS)
    return np.clip(index.astype(np.int64), 0, CALIBRATION_BINS - 1)
