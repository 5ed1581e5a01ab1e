"""Classification: cross-entropy, top-1 and top-5, a confusion matrix, sample predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from research import pictures
from research.data.batch import ClassificationBatch
from research.errors import UserError
from research.reports import ClassReport
from research.tasks.task import Monitor


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
        logits = model(batch.inputs).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}

    def predict(self, model: nn.Module, batch: ClassificationBatch) -> Tensor:
        """Logits, float32 [B, C]."""
        return model(batch.inputs).float()

    def answer(self, predictions: Tensor, batch: ClassificationBatch) -> Tensor:
        """The logits as they are."""
        return predictions

    def report(self, folder: Path, objectness: float | None) -> ClassReport:
        if objectness is not None:
            raise UserError(
                f"objectness={objectness:g}: the run tells classes and finds no boxes; leave it out"
            )
        return ClassReport(folder, self.classes)

    def metrics(self, device: torch.device) -> ClassificationMetrics:
        return ClassificationMetrics(len(self.classes), device)

    def pictures(
        self,
        metrics: ClassificationMetrics,
        batch: ClassificationBatch,
        predictions: Tensor,
        view: Callable[[Any], Tensor],
    ) -> Mapping[str, Image]:
        count = min(24, len(batch))
        chance, guess = predictions[:count].softmax(1).max(1)
        captions = [
            f"{self.classes[label]}\n{self.classes[said]} {share:.0%}"
            for label, said, share in zip(
                batch.labels[:count].tolist(), guess.tolist(), chance.tolist(), strict=True
            )
        ]
        right = (guess == batch.labels[:count]).tolist()
        return {
            "confusion_matrix": pictures.confusion_matrix(
                metrics.confusion.compute().cpu(), self.classes
            ),
            "sample_predictions": pictures.contact_sheet(
                view(batch.inputs)[:count].cpu(), captions, right
            ),
        }


class ClassificationMetrics:
    """``loss``, ``top1`` and ``top5`` (shares of 1) over every sample seen; exact sums.

    With five classes or fewer, ``top5`` is left out: it could only be 1.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.confusion = MulticlassConfusionMatrix(classes).to(device)
        self.classes = classes
        self.reset()

    @property
    def names(self) -> list[str]:
        return ["loss", *(f"top{k}" for k in self.hits)]

    def reset(self) -> None:
        self.confusion.reset()
        self.samples = 0
        self.loss = 0.0
        self.hits = {k: 0 for k in (1, 5) if k == 1 or k < self.classes}

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        """Take in logits [B, C] for a batch of labels [B]."""
        labels = batch.labels
        self.samples += len(labels)
        self.loss += F.cross_entropy(predictions.double(), labels, reduction="sum").item()
        order = predictions.topk(max(self.hits), dim=1).indices == labels[:, None]
        for k in self.hits:
            self.hits[k] += int(order[:, :k].sum())
        self.confusion.update(predictions.argmax(1), labels)

    def compute(self) -> dict[str, float]:
        """Flat names; empty when no sample was seen."""
        if self.samples == 0:
            return {}
        tops = {f"top{k}": hits / self.samples for k, hits in self.hits.items()}
        return {"loss": self.loss / self.samples, **tops}
