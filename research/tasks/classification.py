"""Classification: cross-entropy, top-1 and top-5, calibration, confusion, the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from research.batch import ClassificationBatch
from research.inference.writers import ClassWriter
from research.tasks.task import Monitor
from research.tracking.tracker import Rows
from research.viz import pictures

SHOWN: Final = 24
BINS: Final = 15
"""Of confidence, as Guo et al. (2017) count them."""


class Classification:
    """One class an image, from a model that returns logits [B, C].

    Args:
        classes: class names, in index order.
        label_smoothing: mass taken from the true class and spread over all (Szegedy et al.,
            2016), 0 <= x < 1; in the training loss only.
    """

    monitor = Monitor("val/top1", "max")

    def __init__(self, classes: Sequence[str], label_smoothing: float) -> None:
        self.classes = list(classes)
        self.label_smoothing = label_smoothing

    def losses(self, model: nn.Module, batch: ClassificationBatch) -> dict[str, Tensor]:
        logits = _single(model(batch.inputs))
        if batch.labels_b is None or batch.lam is None:
            return {"cross_entropy": self._loss(logits, batch.labels, "mean")}
        # Linear in the target: the loss for the mixed target is the mix of the two losses.
        first = self._loss(logits, batch.labels, "none")
        second = self._loss(logits, batch.labels_b, "none")
        return {"cross_entropy": torch.lerp(second, first, batch.lam).mean()}

    def predict(self, model: nn.Module, batch: ClassificationBatch) -> Tensor:
        """Logits [B, C], at least float32."""
        return _single(model(batch.inputs))

    def postprocess(self, predictions: Tensor, batch: ClassificationBatch) -> Tensor:
        """The logits as they are."""
        return predictions

    def writer(self, folder: Path) -> ClassWriter:
        return ClassWriter(folder, self.classes)

    def example_batch(
        self, count: int, inputs: Callable[[int], Any], metadata: Mapping[str, Any]
    ) -> ClassificationBatch:
        """Every label is 0."""
        index = torch.arange(count)
        return ClassificationBatch(index, inputs(count), torch.zeros_like(index))

    def metrics(self, device: torch.device) -> ClassificationMetrics:
        return ClassificationMetrics(len(self.classes), device)

    def pictures(
        self,
        metrics: ClassificationMetrics,
        batch: ClassificationBatch,
        predictions: Tensor,
        panels: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image]:
        chance, guess = predictions[:SHOWN].softmax(1).max(1)
        found = {
            "confusion_matrix": pictures.confusion_matrix(
                metrics.confusion.compute().cpu(), self.classes
            ),
            "reliability": pictures.reliability(
                metrics.counts.cpu().numpy(),
                metrics.confidence.cpu().numpy(),
                metrics.right.cpu().numpy(),
                metrics.compute()["ece"],
            ),
            "sample_predictions": self._sheet(
                panels(batch)[0][:SHOWN], batch.labels[:SHOWN], guess, chance
            ),
        }
        worst = metrics.worst
        if worst is None:
            found["confident_mistakes"] = pictures.note(f"no mistake in {metrics.samples} samples")
        else:
            shown = worst.batch.to(batch.labels.device)
            found["confident_mistakes"] = self._sheet(
                panels(shown)[0], shown.labels, worst.guess, worst.chance
            )
        return found

    def tables(
        self, metrics: ClassificationMetrics, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        """``per_class``: support (true samples), precision, recall and F1 in 0…1.

        A share of nothing is nan: the precision of a class that was never predicted, the recall of
        one without samples. ``confused`` counts the samples of a class that were taken for
        ``most_confused_with``, which is empty where none were.
        """
        counts = metrics.confusion.compute().cpu()
        rows: list[dict[str, float | int | str]] = []
        for label, name in enumerate(self.classes):
            hits, support = int(counts[label, label]), int(counts[label].sum())
            predicted = int(counts[:, label].sum())
            wrong = counts[label].clone()
            wrong[label] = 0
            confused = int(wrong.max())
            rows.append(
                {
                    "class": name,
                    "support": support,
                    "precision": _share(hits, predicted),
                    "recall": _share(hits, support),
                    "f1": _share(2 * hits, predicted + support),
                    "most_confused_with": self.classes[int(wrong.argmax())] if confused else "",
                    "confused": confused,
                }
            )
        return {"per_class": rows}

    def _loss(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            logits, labels, reduction=reduction, label_smoothing=self.label_smoothing
        )

    def _sheet(self, pixels: Tensor, labels: Tensor, guess: Tensor, chance: Tensor) -> Image:
        """Images with the true class, and below it the predicted one and its probability."""
        triples = list(zip(labels.tolist(), guess.tolist(), chance.tolist(), strict=True))
        captions = [
            f"{self.classes[label]}\n{self.classes[said]} {share:.0%}"
            for label, said, share in triples
        ]
        right = [label == said for label, said, _ in triples]
        return pictures.contact_sheet(pixels.cpu(), captions, right)


@dataclass(frozen=True)
class Mistakes:
    """Samples that a model got wrong, the most confident first; in main memory.

    Attributes:
        batch: the samples as the model saw them, N of them.
        guess: [N] int64, the predicted classes.
        chance: [N] float64 0…1, their probabilities.
    """

    batch: ClassificationBatch
    guess: Tensor
    chance: Tensor


class ClassificationMetrics:
    """``loss``, ``top1`` and ``top5`` (shares of 1) and ``ece`` over every sample; exact sums.

    With five classes or fewer, ``top5`` is left out: it could only be 1. ``ece`` is the expected
    calibration error over 15 bins of equal width (Guo et al., 2017), 0…1.

    Attributes:
        counts: [15] samples whose confidence lies in the bin; its lower edge belongs to it.
        confidence: [15] sum of their confidences.
        right: [15] how many of them were predicted rightly.
        worst: the most confident mistakes, at most 24; null when there was none.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.confusion = MulticlassConfusionMatrix(classes).to(device)
        self.classes = classes
        self.device = device
        self.reset()

    @property
    def names(self) -> list[str]:
        return ["loss", *(f"top{k}" for k in self.ranks), "ece"]

    @property
    def ranks(self) -> list[int]:
        return [k for k in (1, 5) if k == 1 or k < self.classes]

    def reset(self) -> None:
        self.confusion.reset()
        self.samples = 0
        self.loss = self._zeros(1)
        self.hits = self._zeros(len(self.ranks))
        self.counts, self.confidence, self.right = (self._zeros(BINS) for _ in range(3))
        self.worst: Mistakes | None = None

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        """Take in logits [B, C] for a batch of labels [B]."""
        labels = batch.labels
        logits = predictions.detach().double()
        self.samples += len(labels)
        self.loss += F.cross_entropy(logits, labels, reduction="sum")
        order = predictions.topk(max(self.ranks), dim=1).indices == labels[:, None]
        self.hits += torch.stack([order[:, :k].sum() for k in self.ranks])
        chance, guess = logits.softmax(1).max(1)
        right = guess == labels
        # What a diverged network says is counted in the lowest bin; its sums are then nan.
        place = (chance.nan_to_num(0.0) * BINS).long().clamp(max=BINS - 1)
        within = (place == torch.arange(BINS, device=place.device)[:, None]).double()
        self.counts += within.sum(1)
        self.confidence += (within * chance).sum(1)
        self.right += (within * right).sum(1)
        self.confusion.update(guess, labels)
        self._keep_worst(batch, guess, chance, right)

    def compute(self) -> dict[str, float]:
        """Flat names; empty when no sample was seen."""
        if self.samples == 0:
            return {}
        loss, *shares = (torch.cat([self.loss, self.hits]) / self.samples).tolist()
        tops = {f"top{k}": share for k, share in zip(self.ranks, shares, strict=True)}
        ece = float((self.confidence - self.right).abs().sum()) / self.samples
        return {"loss": loss, **tops, "ece": ece}

    def _keep_worst(
        self, batch: ClassificationBatch, guess: Tensor, chance: Tensor, right: Tensor
    ) -> None:
        floor = 0.0
        if self.worst is not None and len(self.worst.guess) == SHOWN:
            floor = float(self.worst.chance[-1])
        chosen = (~right & (chance > floor)).nonzero()[:, 0]
        if not len(chosen):
            return
        chosen = chosen[chance[chosen].argsort(descending=True, stable=True)[:SHOWN]]
        found = Mistakes(
            batch.map(lambda tensor: tensor[chosen].cpu()),
            guess[chosen].cpu(),
            chance[chosen].cpu(),
        )
        self.worst = found if self.worst is None else _worst_of(self.worst, found)

    def _zeros(self, count: int) -> Tensor:
        """Sums on the device, in float64: whole numbers stay exact."""
        return torch.zeros(count, dtype=torch.float64, device=self.device)


def _worst_of(one: Mistakes, two: Mistakes) -> Mistakes:
    """The most confident of both; of equals the earlier."""
    chance = torch.cat([one.chance, two.chance])
    order = chance.argsort(descending=True, stable=True)[:SHOWN]
    guess = torch.cat([one.guess, two.guess])
    batch = one.batch.cat(two.batch).map(lambda tensor: tensor[order])
    return Mistakes(batch, guess[order], chance[order])


def _single(logits: Tensor) -> Tensor:
    """Half precisions as float32; what is more precise already stays so."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
