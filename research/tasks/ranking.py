"""Pairwise ranking of photos: losses, metrics over pairs and series, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from research.batch import PairBatch, PhotoBatch
from research.inference.ranking import RankingWriter
from research.tasks.pair_scores import PairScores, SeriesScores
from research.tasks.ranking_metrics import RankingMetrics
from research.tasks.task import LossTerms, Monitor
from research.tracking.tracker import Rows
from research.utils.errors import UserError
from research.utils.whole_batch import whole_batch, whole_mean
from research.viz import charts, pictures

CELL: Final = 128
SERIES: Final = 8
COLUMNS: Final = 6
SERIES_EXPLAINED: Final = (
    "Photos of a series from the best to the worst prediction. Line 1: rank, and the mean "
    "probability with which the network prefers the photo to the others of its series. Line 2: the "
    "mean share of people's votes for it. ✓: the votes give it the same rank."
)
WIDTH: Final = COLUMNS * (CELL + 12)
"""Of a row of series, in which there may be several short ones, pixels."""
MISTAKES_EXPLAINED: Final = (
    "Probability with which the network prefers the left photo, and the share of people's votes "
    "for it; the most confident mistakes first."
)
PAIR_EXPLAINED: Final = "Share of people's votes for the left photo."


class Ranking:
    """Pairs of photos, from a model that returns logits [B] of P(first over second).

    ``model.score(inputs)`` gives single photos scores [B]; the higher, the better.

    Args:
        classes: empty; photos have no classes.
        target: ``soft``: the fraction of votes; ``majority``: the winner, ties have weight 0.
        bins: bin edges of agreement, increasing, in 0.5…1.
        monitor: the metric that selects the best epoch, ``NAME:max`` or ``NAME:min``.

    Raises:
        UserError: for other edges or another target.
    """

    def __init__(
        self, classes: Sequence[str], target: str, bins: Sequence[float], monitor: str
    ) -> None:
        if target not in ("soft", "majority"):
            raise UserError("task.target", f"task.target={target}: expected one of soft, majority")
        edges = list(bins)
        if len(edges) < 2 or edges != sorted({*edges}) or edges[0] < 0.5 or edges[-1] > 1:
            raise UserError(
                "task.bins", f"task.bins={edges}: expected two or more increasing numbers in 0.5…1"
            )
        self.classes = list(classes)
        self.target = target
        self.bins = edges
        self.monitor = Monitor(*monitor.rsplit(":", 1))

    def losses(self, model: nn.Module, batch: PairBatch) -> LossTerms:
        """The metric ``pair_accuracy`` is that of ``RankingMetrics``, before the step."""
        logits: Tensor = model(batch.inputs).float()
        side = (batch.preference - 0.5).sign()
        correct = 0.5 + 0.5 * side * logits.detach().sign()
        metrics = {"pair_accuracy": correct.masked_fill(side == 0, math.nan)}
        if self.target == "soft":
            loss = F.binary_cross_entropy_with_logits(logits, batch.preference)
            return LossTerms({"preference": whole_mean(loss, len(batch))}, metrics)
        decided = (batch.preference != 0.5).float()
        won = (batch.preference > 0.5).float()
        losses = F.binary_cross_entropy_with_logits(logits, won, reduction="none")
        loss = (losses * decided).sum() / whole_batch(decided.sum())
        return LossTerms({"majority": loss}, metrics)

    def predict(self, model: nn.Module, batch: PairBatch | PhotoBatch) -> Tensor:
        """Logits [B] of pairs; scores [B] of single photos."""
        if isinstance(batch, PhotoBatch):
            scores: Tensor = model.score(batch.inputs)  # type: ignore[operator]
            return scores
        logits: Tensor = model(batch.inputs)
        return logits.float()

    def postprocess(self, predictions: Tensor, batch: PairBatch | PhotoBatch) -> Tensor:
        """The same."""
        return predictions

    def writer(self, folder: Path) -> RankingWriter:
        return RankingWriter(folder)

    def example_batch(
        self, count: int, inputs: Callable[[int], Any], metadata: Mapping[str, Any]
    ) -> PairBatch:
        """Pairs without a winner; each is a series of its own."""
        index = torch.arange(count)
        both = inputs(2 * count).unflatten(0, (count, 2))
        photos = torch.stack([index, index], 1)
        return PairBatch(index, both, torch.full((count,), 0.5), index, photos)

    def metrics(self, device: Any) -> RankingMetrics:
        return RankingMetrics(self.target, self.bins)

    def tables(
        self, metrics: RankingMetrics, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        """``metrics``, see ``RankingMetrics.intervals``, and ``confident_mistakes``, if any.

        Columns of a mistake: the sample's index in its split, its names, and preference and
        predicted probability of the first photo over the second.
        """
        # Without rows it replaces the table of an epoch that had mistakes.
        tables: dict[str, Rows] = {"metrics": metrics.intervals(), "confident_mistakes": []}
        if metrics.worst is not None:
            batch, logits = metrics.worst
            columns: dict[str, list[Any]] = {
                "sample": batch.index.tolist(),
                **names(batch),
                "preference": batch.preference.double().round(decimals=4).tolist(),
                "predicted": logits.sigmoid().round(decimals=4).tolist(),
            }
            tables["confident_mistakes"] = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        return tables

    def pictures(
        self,
        metrics: RankingMetrics,
        batch: PairBatch,
        predictions: Tensor,
        to_images: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image.Image]:
        """``reliability``, ``ranked_series`` and ``confident_mistakes``."""
        drawn = {
            "reliability": charts.reliability(*metrics.reliability(), metrics.compute()["ece"]),
            "ranked_series": _ranked(batch, predictions, to_images),
        }
        if metrics.worst is None:
            drawn["confident_mistakes"] = pictures.note("no pair was predicted wrongly")
        else:
            mistakes, logits = metrics.worst
            shown = mistakes.to(batch.inputs.device)
            drawn["confident_mistakes"] = _mistakes(shown, logits, to_images)
        return drawn

    def training_pictures(
        self, batch: PairBatch, to_images: Callable[[Any], list[Tensor]]
    ) -> Mapping[str, Image.Image]:
        """``training_samples``: pairs side by side, with the votes."""
        cells = _pairs(batch, to_images)
        captions = [f"votes {votes:.0%}" for votes in batch.preference.tolist()]
        marks = [None] * len(cells)
        return {"training_samples": pictures.sheet(cells, captions, marks, 3, PAIR_EXPLAINED)}


def _ranked(
    batch: PairBatch, predictions: Tensor, to_images: Callable[[Any], list[Tensor]]
) -> Image.Image:
    """The photos of series from best to worst; a row has several short series."""
    numbers = [*dict.fromkeys(batch.series.tolist())][:SERIES]
    rows = torch.isin(batch.series, batch.series.new_tensor(numbers))
    batch, predictions = batch.map(lambda tensor: tensor[rows]), predictions[rows]
    pairs = PairScores.of(predictions, batch)
    scores = SeriesScores.of(pairs)
    cell_of = {
        photo: (side, row)
        for row, both in enumerate(pairs.photos.tolist())
        for side, photo in enumerate(both)
    }
    images = to_images(batch)
    strips = []
    for series in numbers:
        cells: list[Image.Image] = []
        captions: list[str] = []
        right: list[bool] = []
        here = np.nonzero(scores.series == series)[0]
        order = here[np.argsort(-scores.pred[here], kind="stable")][:COLUMNS]
        votes = np.sort(scores.target[here])[::-1]
        for rank, photo in enumerate(order):
            side, row = cell_of[int(scores.photo[photo])]
            cells.append(pictures.cell(images[side][row], CELL))
            target, pred = scores.target[photo], scores.pred[photo]
            captions.append(f"{rank + 1}. {pred:.0%}\nvotes {target:.0%}")
            right.append(bool(votes[rank] == target))
        strips.append(pictures.sheet(cells, captions, right, COLUMNS))
    widest = max(strip.width for strip in strips)
    return pictures.titled(pictures.packed(strips, max(widest, WIDTH)), SERIES_EXPLAINED)


def _mistakes(
    batch: PairBatch, logits: Tensor, to_images: Callable[[Any], list[Tensor]]
) -> Image.Image:
    """Pairs with the probability and the votes for the left photo, most confident first."""
    cells = _pairs(batch, to_images)
    captions = [
        f"network {probability:.0%}\nvotes {votes:.0%}"
        for probability, votes in zip(
            logits.double().sigmoid().tolist(), batch.preference.tolist(), strict=True
        )
    ]
    marks = [False] * len(cells)
    return pictures.sheet(cells, captions, marks, columns=3, explained=MISTAKES_EXPLAINED)


def _pairs(batch: PairBatch, to_images: Callable[[Any], list[Tensor]]) -> list[Image.Image]:
    """Both photos of each pair side by side."""
    return [
        pictures.side_by_side([pictures.cell(first, CELL), pictures.cell(second, CELL)])
        for first, second in zip(*to_images(batch), strict=True)
    ]
