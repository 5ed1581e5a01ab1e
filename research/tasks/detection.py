"""Detection: COCO's average precision, precision and recall, presence, drawn boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from research import pictures
from research.data.batch import DetectionBatch
from research.data.frames.letterbox import Letterbox
from research.models.matching import affinity, greedy, hungarian, total_iou
from research.reports import FrameReport
from research.tasks.task import Monitor
from research.tracking.tracker import Rows

Detections = dict[str, Tensor]
"""Of one frame, best first: ``boxes`` [n, 4] xyxy, ``scores`` [n], ``labels`` [n]."""

SHOWN: Final = 12
CELL: Final = 256


class Detection:
    """Boxes in letterboxed frames, from a model that speaks as torchvision's detectors do.

    In training mode ``model(images, targets)`` gives the parts of the loss by name, in evaluation
    mode ``model(images)`` gives ``Detections`` a frame, boxes as shares of the frame.

    Args:
        classes: class names, in index order.
        class_agnostic: judge boxes alone; for models that tell no classes apart.
        iou: overlap from which a detection has found a true box, for precision and recall, 0…1.
        score: detections from this score on count for precision and recall, 0…1.
        presence: a frame counts as holding an object from this score of a detection on, 0…1.
        monitor: the metric that picks the best epoch, ``NAME:max`` or ``NAME:min``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        class_agnostic: bool,
        iou: float,
        score: float,
        presence: float,
        monitor: str,
    ) -> None:
        self.monitor = Monitor(*monitor.rsplit(":", 1))
        self.classes = list(classes)
        self.class_agnostic = class_agnostic
        self.iou = iou
        self.score = score
        self.presence = presence

    def losses(self, model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(batch.inputs, batch.targets)
        return losses

    def predict(self, model: nn.Module, batch: DetectionBatch) -> list[Detections]:
        """One record a frame, boxes as shares of the letterboxed frame."""
        found: list[Detections] = model(batch.inputs)
        return found

    def answer(self, predictions: list[Detections], batch: DetectionBatch) -> list[Detections]:
        """The same with boxes in pixels of the files."""
        size = batch.inputs.shape[-1]
        answers = []
        for found, (height, width) in zip(predictions, batch.sizes.tolist(), strict=True):
            letterbox = Letterbox.of(height, width, size)
            boxes = torch.as_tensor(letterbox.inverse(found["boxes"].cpu().numpy()))
            answers.append({**found, "boxes": boxes.to(found["boxes"])})
        return answers

    def report(self, folder: Path, objectness: float | None) -> FrameReport:
        return FrameReport(folder, self.score if objectness is None else objectness, self._name)

    def metrics(self, device: torch.device) -> DetectionMetrics:
        return DetectionMetrics(self.class_agnostic, self.iou, self.score, self.presence)

    def tables(self, metrics: DetectionMetrics) -> Mapping[str, Rows]:
        """None: the metrics say it all."""
        return {}

    def pictures(
        self,
        metrics: DetectionMetrics,
        batch: DetectionBatch,
        predictions: list[Detections],
        view: Callable[[Any], Tensor],
    ) -> Mapping[str, Image]:
        drawn = {
            "detections": self._sheet(batch, predictions, view(batch.inputs)[:SHOWN].cpu()),
            "precision_recall": pictures.precision_recall(
                np.array(metrics.scores),
                np.array(metrics.hits, dtype=bool),
                metrics.positives,
                f"detections at IoU {self.iou:g} over {metrics.frames} frames",
            ),
        }
        if metrics.audit:
            drawn["matching_audit"] = pictures.matching_audit(*np.array(metrics.audit).T)
        return drawn

    def _sheet(self, batch: DetectionBatch, predictions: list[Detections], images: Tensor) -> Image:
        """Frames with their true boxes in green and, with scores, the boxes found."""
        cells, captions, right = [], [], []
        frames = _frames(batch, predictions, self.class_agnostic)
        for image, (found, boxes, labels) in zip(images, frames, strict=False):
            kept = {name: values[found["scores"] >= self.score] for name, values in found.items()}
            hits = find(kept, boxes, labels, self.iou)
            cell = pictures.from_pixels(image).resize((CELL, CELL), Resampling.BILINEAR)
            cell = pictures.draw_boxes(cell, (boxes * CELL).tolist(), colours=[pictures.TRUE_BOX])
            texts = [
                self._name(label, score)
                for label, score in zip(
                    kept["labels"].tolist(), kept["scores"].tolist(), strict=True
                )
            ]
            cells.append(pictures.draw_boxes(cell, (kept["boxes"] * CELL).tolist(), texts))
            captions.append(
                f"true boxes {len(boxes)}\nright {sum(hits)}, false {len(hits) - sum(hits)}"
            )
            right.append(sum(hits) == len(hits) == len(boxes))
        return pictures.sheet(cells, captions, right, columns=4)

    def _name(self, label: int, score: float) -> str:
        return f"{score:.2f}" if self.class_agnostic else f"{self.classes[label]} {score:.2f}"


class DetectionMetrics:
    """Judges detections over every frame seen, all as shares of 1.

    - ``mAP``, ``mAP50``, ``mAP75``: COCO's average precision over IoU 0.50:0.95, at 0.50, at 0.75;
      boxes are compared in pixels of the letterboxed frame.
    - ``precision``, ``recall``: of detections from ``score`` on. In order of falling score each
      takes the free true box that it overlaps most, by ``iou`` at least; a second detection of
      the same object is false.
    - ``presence_accuracy``: frames of which it is rightly said whether they hold an object.
    - ``mean_iou``: over frames with objects, the overlap of the best-scored detection, whatever
      its score, with the true box nearest to it; 0 where nothing was detected.
    - ``matching_gap``: over frames with objects, by how much the greedy matching of true boxes
      and detections falls short of the optimal one, in IoU per true box.

    What is not defined, such as a precision without detections, is NaN, which never is a best.

    Args: see ``Detection``.
    """

    names: Final = [
        "mAP",
        "mAP50",
        "mAP75",
        "precision",
        "recall",
        "presence_accuracy",
        "mean_iou",
        "matching_gap",
    ]

    def __init__(self, class_agnostic: bool, iou: float, score: float, presence: float) -> None:
        self.class_agnostic = class_agnostic
        self.iou = iou
        self.score = score
        self.presence = presence
        # COCO's own thresholds: torchmetrics' are rounded to float32, which misses a recall of
        # exactly 0.3 and changes the third digit on small splits.
        self.coco = MeanAveragePrecision(
            backend="faster_coco_eval",
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
        )
        self.coco.warn_on_many_detections = False
        self.reset()

    def reset(self) -> None:
        self.coco.reset()
        self.frames = 0
        self.positives = 0
        self.right_presence = 0
        self.scores: list[float] = []
        self.hits: list[bool] = []
        self.best_iou: list[float] = []
        self.audit: list[tuple[float, float]] = []

    def update(self, predictions: list[Detections], batch: DetectionBatch) -> None:
        """Take in the detections of a batch's frames."""
        height, width = batch.inputs.shape[-2:]
        pixels = torch.tensor([width, height, width, height])
        for found, boxes, labels in _frames(batch, predictions, self.class_agnostic):
            self.coco.update(
                [{**found, "boxes": found["boxes"] * pixels}],
                [{"boxes": boxes * pixels, "labels": labels}],
            )
            self._count(found, boxes, labels)

    def _count(self, found: Detections, boxes: Tensor, labels: Tensor) -> None:
        self.frames += 1
        self.positives += len(boxes)
        self.scores.extend(found["scores"].tolist())
        self.hits.extend(find(found, boxes, labels, self.iou))
        seen = bool((found["scores"] >= self.presence).any())
        self.right_presence += seen == bool(len(boxes))
        if len(boxes):
            overlap = box_iou(found["boxes"][:1], boxes)
            self.best_iou.append(overlap.max().item() if len(overlap) else 0.0)
            pairs = affinity(boxes[None], found["boxes"][None])
            mask = torch.ones(1, len(boxes), dtype=torch.bool)
            self.audit.append(
                (
                    total_iou(pairs, greedy(pairs, mask)).item() / len(boxes),
                    total_iou(pairs, hungarian(pairs, mask)).item() / len(boxes),
                )
            )

    def compute(self) -> dict[str, float]:
        """Flat names; empty when no frame was seen."""
        if self.frames == 0:
            return {}
        coco = self.coco.compute()
        hits = [
            hit for hit, score in zip(self.hits, self.scores, strict=True) if score >= self.score
        ]
        greedy_iou, optimal_iou = np.array(self.audit).reshape(-1, 2).T
        return {
            # COCO says -1 where there was nothing to find.
            **{
                name: math.nan if value < 0 else value
                for name, value in (
                    ("mAP", coco["map"].item()),
                    ("mAP50", coco["map_50"].item()),
                    ("mAP75", coco["map_75"].item()),
                )
            },
            "precision": _share(sum(hits), len(hits)),
            "recall": _share(sum(hits), self.positives),
            "presence_accuracy": _share(self.right_presence, self.frames),
            "mean_iou": _share(sum(self.best_iou), len(self.best_iou)),
            "matching_gap": _share((optimal_iou - greedy_iou).sum(), len(self.audit)),
        }


def find(found: Detections, boxes: Tensor, labels: Tensor, iou: float) -> list[bool]:
    """Which detections, best first, find a true box of their class that none before them found.

    Args:
        found: of one frame, best first.
        boxes: [m, 4] true boxes, xyxy.
        labels: [m] their classes.
        iou: overlap from which a box is found.
    """
    overlap = box_iou(found["boxes"], boxes)
    overlap = overlap.masked_fill(found["labels"][:, None] != labels, -1)
    hits = []
    for row in overlap:
        best = int(row.argmax()) if len(boxes) else -1
        hit = best >= 0 and row[best].item() >= iou
        if hit:
            overlap[:, best] = -1
        hits.append(hit)
    return hits


def _frames(
    batch: DetectionBatch, predictions: list[Detections], class_agnostic: bool
) -> list[tuple[Detections, Tensor, Tensor]]:
    """Frame by frame on the CPU: what was found, the true boxes, their classes."""
    boxes, mask, labels = (tensor.cpu() for tensor in batch.targets)
    frames = []
    for found, box, real, label in zip(predictions, boxes, mask, labels, strict=True):
        found = {name: values.cpu() for name, values in found.items()}
        true = label[real]
        if class_agnostic:
            found["labels"], true = torch.zeros_like(found["labels"]), torch.zeros_like(true)
        frames.append((found, box[real], true))
    return frames


def _share(part: float, whole: int) -> float:
    return float(part) / whole if whole else math.nan
