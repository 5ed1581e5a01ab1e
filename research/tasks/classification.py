"""Classification: cross-entropy loss, top-1 and top-5 accuracy, calibration, confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from research.batch import ClassificationBatch
from research.inference.writers import ClassWriter
from research.tasks.task import LossTerms, Monitor
from research.tracking.tracker import Rows
from research.utils.errors import UserError
from research.utils.whole_batch import whole_mean
from research.viz import charts, pictures

SHOWN: Final = 24
"""Images in a picture."""
EXPLAINED: Final = (
    "Line 1: the label, ✓ if it is predicted, ✗ if not. Line 2: the prediction and its probability."
)
BINS: Final = 15
"""Bins of confidence for the calibration error, as in Guo et al. (2017)."""
SUMS: Final = ("loss", "hits", "counts", "confidence", "correct")
"""Attributes of ``ClassificationMetrics`` that are sums over samples."""


class Classification:
    """One class per image, from a model that returns logits [B, C].

    Args:
        classes: class names, in index order.
        label_smoothing: probability moved from the true class to all classes (Szegedy et al.,
            2016), 0 <= x < 1; in the training loss only.
        views: predictions are the mean logits of these views of an image, see ``views_of``.
    """

    monitor = Monitor("val/top1", "max")

    def __init__(self, classes: Sequence[str], label_smoothing: float, views: str) -> None:
        self.classes = list(classes)
        self.label_smoothing = label_smoothing
        self.views = views

    def losses(self, model: nn.Module, batch: ClassificationBatch) -> LossTerms:
        """The metric ``top1`` is of augmented images, before the step; of a mixed one it is against
        the label with the larger share.
        """
        logits = _at_least_float32(model(batch.inputs))
        pred = logits.detach().argmax(1)
        if batch.labels_b is None or batch.lam is None:
            loss = self._loss(logits, batch.labels, "mean")
            top1 = (pred == batch.labels).float()
            return LossTerms({"cross_entropy": whole_mean(loss, len(batch))}, {"top1": top1})
        # Cross-entropy is linear in the target, so the loss of a mixed target is the weighted mean.
        first = self._loss(logits, batch.labels, "none")
        second = self._loss(logits, batch.labels_b, "none")
        loss = torch.lerp(second, first, batch.lam).mean()
        top1 = (pred == torch.where(batch.lam >= 0.5, batch.labels, batch.labels_b)).float()
        return LossTerms({"cross_entropy": whole_mean(loss, len(batch))}, {"top1": top1})

    def predict(self, model: nn.Module, batch: ClassificationBatch) -> Tensor:
        """Logits [B, C], at least float32; with several views their mean."""
        views = views_of(batch.inputs, self.views)
        logits = [weight * _at_least_float32(model(view)) for weight, view in views]
        return torch.stack(logits).sum(0) if len(logits) > 1 else logits[0]

    def postprocess(self, predictions: Tensor, batch: ClassificationBatch) -> Tensor:
        """Returns the logits unchanged."""
        return predictions

    def writer(self, folder: Path) -> ClassWriter:
        return ClassWriter(folder, self.classes)

    def example_batch(
        self, count: int, inputs: Callable[[int], Any], metadata: Mapping[str, Any]
    ) -> ClassificationBatch:
        """All labels are 0."""
        index = torch.arange(count)
        return ClassificationBatch(index, inputs(count), torch.zeros_like(index))

    def metrics(self, device: torch.device) -> ClassificationMetrics:
        if len(self.classes) < 2:
            message = f"the data set has only the class {', '.join(self.classes) or 'none'}"
            raise UserError("dataset", message, "classification needs two: add a folder of images")
        return ClassificationMetrics(len(self.classes), device)

    def pictures(
        self,
        metrics: ClassificationMetrics,
        batch: ClassificationBatch,
        predictions: Tensor,
        to_images: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image]:
        probability, pred = predictions[:SHOWN].softmax(1).max(1)
        drawn = {
            "confusion_matrix": charts.confusion_matrix(metrics.confusion.cpu(), self.classes),
            "reliability": charts.reliability(
                metrics.counts.cpu().numpy(),
                metrics.confidence.cpu().numpy(),
                metrics.correct.cpu().numpy(),
                metrics.compute()["ece"],
            ),
            "sample_predictions": self._sheet(
                to_images(batch)[0][:SHOWN], batch.labels[:SHOWN], pred, probability
            ),
        }
        worst = metrics.worst
        if worst is None:
            drawn["confident_mistakes"] = pictures.note(f"no mistake in {metrics.samples} samples")
        else:
            mistakes = worst.batch.to(batch.labels.device)
            drawn["confident_mistakes"] = self._sheet(
                to_images(mistakes)[0], mistakes.labels, worst.pred, worst.probability
            )
        return drawn

    def training_pictures(
        self, batch: ClassificationBatch, to_images: Callable[[Any], list[Tensor]]
    ) -> Mapping[str, Image]:
        """``training_samples``: images with their class; of mixed ones both, with their shares."""
        captions = [self.classes[label] for label in batch.labels.tolist()]
        if batch.labels_b is not None and batch.lam is not None:
            second, shares = batch.labels_b.tolist(), batch.lam.tolist()
            captions = [
                f"{share:.0%} {one}\n{1 - share:.0%} {self.classes[other]}"
                for one, other, share in zip(captions, second, shares, strict=True)
            ]
        marks = [None] * len(batch)
        return {
            "training_samples": pictures.contact_sheet(to_images(batch)[0].cpu(), captions, marks)
        }

    def tables(
        self, metrics: ClassificationMetrics, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        """``per_class``: support (true samples), precision, recall and F1 in 0…1.

        Undefined values are NaN: the precision of a class that was never predicted, the recall of
        one without samples. ``confused`` counts the samples of a class that were predicted as
        ``most_confused_with``, which is empty if there are none.
        """
        counts = metrics.confusion.cpu()
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
                    "precision": _ratio(hits, predicted),
                    "recall": _ratio(hits, support),
                    "f1": _ratio(2 * hits, predicted + support),
                    "most_confused_with": self.classes[int(wrong.argmax())] if confused else "",
                    "confused": confused,
                }
            )
        return {"per_class": rows}

    def _loss(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            logits, labels, reduction=reduction, label_smoothing=self.label_smoothing
        )

    def _sheet(self, pixels: Tensor, labels: Tensor, pred: Tensor, probability: Tensor) -> Image:
        """Images with the true class, and below it the predicted one and its probability."""
        triples = list(zip(labels.tolist(), pred.tolist(), probability.tolist(), strict=True))
        captions = [
            f"{self.classes[label]}\n{self.classes[pred]} {probability:.0%}"
            for label, pred, probability in triples
        ]
        correct = [label == pred for label, pred, _ in triples]
        return pictures.contact_sheet(pixels.cpu(), captions, correct, explained=EXPLAINED)


def views_of(inputs: Any, views: str) -> Iterator[tuple[float, Any]]:
    """Views of the inputs of a network, with weights of sum 1 (Jordan, 2024, §3.5).

    Args:
        inputs: of any kind for ``none``; otherwise images [B, C, H, W].
        views: ``none``: the inputs. ``flip``: they and their mirror images. ``flip_shift``: these
            with half of the weight, and the same shifted by 1/32 of their size to the upper left
            and to the lower right, padded by reflection.
    """
    if views == "none":
        yield 1.0, inputs
        return
    shown = [(0.5, inputs)]
    if views == "flip_shift":
        height, width = inputs.shape[-2:]
        rows, columns = max(1, height // 32), max(1, width // 32)
        padded = F.pad(inputs, (columns, columns, rows, rows), mode="reflect")
        lower_right = padded[..., 2 * rows :, 2 * columns :]
        shown = [(0.25, inputs), (0.125, padded[..., :height, :width]), (0.125, lower_right)]
    for weight, view in shown:
        yield from ((weight, view), (weight, view.flip(-1)))


@dataclass(frozen=True)
class Mistakes:
    """Wrongly predicted samples by decreasing confidence, on the CPU.

    Attributes:
        batch: N samples, as the input of the model.
        pred: [N] int64, the predicted classes.
        probability: [N] float64 0…1, of the predicted classes.
    """

    batch: ClassificationBatch
    pred: Tensor
    probability: Tensor


class ClassificationMetrics:
    """``loss``, ``top1`` and ``top5`` (0…1) and ``ece`` over all samples, from float64 sums.

    With five classes or fewer there is no ``top5``, which would always be 1. ``ece`` is the
    expected calibration error over 15 bins of equal width (Guo et al., 2017), 0…1.

    Attributes:
        confusion: [C, C] int64 counts of samples: rows true classes, columns predicted ones.
        counts: [15] number of samples per bin of confidence; a bin includes its lower edge.
        confidence: [15] sum of the confidences in each bin.
        correct: [15] number of correct predictions in each bin.
        worst: the most confident mistakes, at most 24; ``None`` if there are none.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
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
        self.confusion = torch.zeros(
            self.classes, self.classes, dtype=torch.int64, device=self.device
        )
        self.samples = 0
        self.loss = self._zeros(1)
        self.hits = self._zeros(len(self.ranks))
        self.counts, self.confidence, self.correct = (self._zeros(BINS) for _ in range(3))
        self.worst: Mistakes | None = None

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        """Add a batch with its logits [B, C]."""
        labels = batch.labels
        logits = predictions.detach().double()
        self.samples += len(labels)
        self.loss += F.cross_entropy(logits, labels, reduction="sum")
        ordered = logits.nan_to_num(math.inf, math.inf, -math.inf)  # NaN is the largest in argmax
        rank, pred = _rank(ordered, labels), ordered.argmax(1)
        self.hits += torch.stack([(rank < k).sum() for k in self.ranks])
        probability, correct = logits.softmax(1).amax(1), rank == 0
        # NaN of a diverged network counts in the lowest bin; the sums are NaN then.
        bin_ = (probability.nan_to_num(0.0) * BINS).long().clamp(max=BINS - 1)
        within = (bin_ == torch.arange(BINS, device=bin_.device)[:, None]).double()
        self.counts += within.sum(1)
        self.confidence += (within * probability).sum(1)
        self.correct += (within * correct).sum(1)
        self.confusion.view(-1).index_add_(0, labels * self.classes + pred, torch.ones_like(labels))
        self._keep_worst(batch, pred, probability, correct)

    def compute(self) -> dict[str, float]:
        """Values by name; empty before the first sample."""
        if self.samples == 0:
            return {}
        loss, *rates = (torch.cat([self.loss, self.hits]) / self.samples).tolist()
        tops = {f"top{k}": rate for k, rate in zip(self.ranks, rates, strict=True)}
        ece = float((self.confidence - self.correct).abs().sum()) / self.samples
        return {"loss": loss, **tops, "ece": ece}

    def state(self) -> dict[str, Any]:
        """Sums and counts by name; ``confusion`` is the matrix."""
        sums = {name: getattr(self, name).cpu() for name in SUMS}
        return {
            **sums,
            "confusion": self.confusion.cpu(),
            "samples": self.samples,
            "worst": self.worst,
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the samples of another ``state``."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + state[name].to(self.device))
        self.confusion += state["confusion"].to(self.device)
        self.samples += state["samples"]
        self.worst = _worst_of(self.worst, state["worst"])

    def _keep_worst(
        self, batch: ClassificationBatch, pred: Tensor, probability: Tensor, correct: Tensor
    ) -> None:
        threshold = 0.0
        if self.worst is not None and len(self.worst.pred) == SHOWN:
            threshold = float(self.worst.probability[-1])
        chosen = (~correct & (probability > threshold)).nonzero()[:, 0]
        if not len(chosen):
            return
        chosen = chosen[probability[chosen].argsort(descending=True, stable=True)[:SHOWN]]
        worst = Mistakes(
            batch.map(lambda tensor: tensor[chosen].cpu()),
            pred[chosen].cpu(),
            probability[chosen].cpu(),
        )
        self.worst = _worst_of(self.worst, worst)

    def _zeros(self, count: int) -> Tensor:
        """Zeros on the device; float64, in which counts are exact."""
        return torch.zeros(count, dtype=torch.float64, device=self.device)


def _worst_of(one: Mistakes | None, two: Mistakes | None) -> Mistakes | None:
    """The ``SHOWN`` most confident mistakes of both; equally confident ones in the given order."""
    if one is None or two is None:
        return one or two
    probability = torch.cat([one.probability, two.probability])
    order = probability.argsort(descending=True, stable=True)[:SHOWN]
    pred = torch.cat([one.pred, two.pred])
    batch = one.batch.cat(two.batch).map(lambda tensor: tensor[order])
    return Mistakes(batch, pred[order], probability[order])


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] classes before the true one, by decreasing logit; of equal ones the first class is first.

    As in ``argmax``, so that ``top1`` is the diagonal of the confusion matrix: the order of
    ``topk`` among equal logits, of which half precision has many, is arbitrary.

    Args:
        logits: [B, C] without NaN.
        labels: [B] the true classes.
    """
    true = logits.gather(1, labels[:, None])
    is_earlier = torch.arange(logits.shape[1], device=labels.device) < labels[:, None]
    return ((logits > true) | (logits == true) & is_earlier).sum(1)


def _at_least_float32(logits: Tensor) -> Tensor:
    """Converts half precision to float32; leaves float32 and float64 unchanged."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
