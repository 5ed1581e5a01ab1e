"""Object detection: losses, COCO metrics, precision and recall, pictures with boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from research.batch import DetectionBatch
from research.data.frames.letterbox import Letterbox
from research.inference.writers import BoxWriter
from research.tasks.detection_metrics import BACKGROUND, OBJECT, DetectionMetrics
from research.tasks.evaluated_frames import (
    Detections,
    EvaluatedFrame,
    in_file,
    select,
    split_frames,
)
from research.tasks.task import Monitor
from research.tracking.tracker import Rows
from research.viz import charts, pictures
from research.viz.boxes import draw_boxes, draw_ignored, draw_true
from research.viz.colours import PREDICTED_BOXES, Colour, class_colours

SHOWN: Final = 12
CELL: Final = 256
FEW: Final = 12
"""Maximum number of classes with their own curves."""
TRUE_EXPLAINED: Final = "Dashed: boxes of the data. Hatched: ignore regions."


class Detection:
    """Boxes in letterboxed frames, from a model with the interface of torchvision's detectors.

    In training mode ``model(images, targets)`` returns the losses by name, in evaluation mode
    ``model(images)`` returns ``Detections`` per frame, boxes as fractions of the frame.

    Args:
        classes: class names, in index order.
        class_agnostic: evaluate boxes without their classes.
        iou: smallest IoU of a match, for precision and recall, 0…1.
        score: smallest score of detections in precision and recall, and of written boxes, 0…1.
        presence: smallest score with which a frame counts as having an object, 0…1.
        monitor: the metric that selects the best epoch, ``NAME:max`` or ``NAME:min``.
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
        """A record per frame, boxes as fractions of the letterboxed frame."""
        detections: list[Detections] = model(batch.inputs)
        return detections

    def postprocess(self, predictions: list[Detections], batch: DetectionBatch) -> list[Detections]:
        """The same with boxes in pixels of the files, without those that have no area there."""
        size = batch.inputs.shape[-1]
        results = []
        for detections, (height, width) in zip(predictions, batch.sizes.tolist(), strict=True):
            letterbox = Letterbox.of(height, width, size)
            results.append(in_file(letterbox, detections))
        return results

    def writer(self, folder: Path) -> BoxWriter:
        named = not self.class_agnostic or len(self.classes) == 1
        classes = self.classes if named else [OBJECT]
        return BoxWriter(folder, self.score, self._name, self._colours, classes)

    def example_batch(
        self, count: int, inputs: Callable[[int], Any], metadata: Mapping[str, Any]
    ) -> DetectionBatch:
        """One box in the middle of each frame, of class 0."""
        images = inputs(count)
        boxes = torch.zeros(count, metadata["transform"].get("max_boxes", 1), 4)
        boxes[:, 0] = torch.tensor([0.25, 0.25, 0.75, 0.75])
        labels = torch.zeros(boxes.shape[:2], dtype=torch.int64)
        sizes = torch.full((count, 2), images.shape[-1], dtype=torch.int32)
        index = torch.arange(count)
        return DetectionBatch(index, images, boxes, boxes.any(-1), labels, sizes)

    def metrics(self, device: torch.device) -> DetectionMetrics:
        return DetectionMetrics(
            self.classes, self.class_agnostic, self.iou, self.score, self.presence
        )

    def tables(
        self, metrics: DetectionMetrics, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        """``coco``, ``per_class`` and ``confusion``, see ``DetectionMetrics``."""
        return {
            "coco": metrics.coco_table(),
            "per_class": metrics.per_class(),
            "confusion": metrics.confusion_table(),
        }

    def pictures(
        self,
        metrics: DetectionMetrics,
        batch: DetectionBatch,
        predictions: list[Detections],
        to_images: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image]:
        scores, labels = np.array(metrics.scores), np.array(metrics.labels)
        hits = np.array(metrics.hits, dtype=bool)
        title = f"detections at IoU {self.iou:g} over {metrics.frames} frames"
        drawn = {
            "detections": self._sheet(
                batch, predictions, [images[:SHOWN].cpu() for images in to_images(batch)]
            ),
            "precision_recall": charts.precision_recall(
                scores, hits, int(metrics.positives.sum()), title
            ),
            "confusion_matrix": charts.confusion_matrix(
                metrics.confusion, [*metrics.classes, BACKGROUND]
            ),
        }
        if 1 < len(metrics.classes) <= FEW:
            counts = metrics.positives.tolist()
            drawn["precision_recall_per_class"] = charts.precision_recall_per_class(
                {
                    name: (scores[labels == label], hits[labels == label], counts[label])
                    for label, name in enumerate(metrics.classes)
                },
                title,
            )
        drawn["matching_audit"] = (
            charts.matching_audit(*np.array(metrics.matching).T)
            if metrics.matching
            else pictures.note(f"no object in {metrics.frames} frames")
        )
        return drawn

    def training_pictures(
        self, batch: DetectionBatch, to_images: Callable[[Any], list[Tensor]]
    ) -> Mapping[str, Image]:
        """``training_samples``: frames, a picture per modality, with boxes and ignore regions."""
        panels = [images.cpu() for images in to_images(batch)]
        frames = batch.map(Tensor.cpu)
        ignored = torch.zeros_like(frames.mask) if frames.ignored is None else frames.ignored
        cells, captions = [], []
        for row, images in enumerate(zip(*panels, strict=True)):
            true, regions = frames.mask[row], ignored[row]
            objects, left_out = (
                (frames.boxes[row][chosen] * CELL).tolist() for chosen in (true, regions)
            )
            cells.append(_drawn(images, objects, left_out))
            names = Counter(self.classes[label] for label in frames.labels[row][true].tolist())
            captions.append(", ".join(f"{n} {name}" for name, n in names.items()) or "no object")
        marks = [None] * len(cells)
        paper = pictures.sheet(cells, captions, marks, _columns(panels), TRUE_EXPLAINED)
        return {"training_samples": paper}

    def _sheet(
        self, batch: DetectionBatch, predictions: list[Detections], panels: list[Tensor]
    ) -> Image:
        """Frames, one picture per modality: boxes of the data (dashed), ignore regions (hatched)
        and detections (with captions).
        """
        cells, captions, right = [], [], []
        shown = batch.map(lambda tensor: tensor[:SHOWN])
        frames = split_frames(shown, predictions[:SHOWN], self.class_agnostic)
        for images, frame in zip(zip(*panels, strict=True), frames, strict=True):
            confident = select(frame.detections, frame.detections["scores"] >= self.score)
            _, matches = frame.matched(confident, self.iou)
            hits = [true >= 0 for true in matches]
            texts = [
                self._name(label, score)
                for label, score in zip(
                    confident["labels"].tolist(), confident["scores"].tolist(), strict=True
                )
            ]
            colours = self._colours(confident["labels"].tolist())
            true = _in_cell(frame, frame.boxes)
            predicted = _in_cell(frame, confident["boxes"])
            ignored = _in_cell(frame, frame.regions)
            cells.append(_drawn(images, true, ignored, predicted, texts, colours))
            captions.append(
                f"{sum(hits)} of {len(frame.boxes)} found, {len(hits) - sum(hits)} false"
            )
            right.append(sum(hits) == len(hits) == len(frame.boxes))
        explained = (
            f"{TRUE_EXPLAINED} In colour: detections of a score of at least {self.score:g}, with "
            "their scores where there is room. ✓: all objects are found and nothing else."
        )
        return pictures.sheet(cells, captions, right, _columns(panels), explained)

    def _colours(self, labels: Sequence[int]) -> Sequence[Colour]:
        """By class; with a single class the best box has its own colour."""
        if self.class_agnostic or len(self.classes) == 1:
            return PREDICTED_BOXES
        return class_colours(labels)

    def _name(self, label: int, score: float) -> str:
        return f"{score:.2f}" if self.class_agnostic else f"{self.classes[label]} {score:.2f}"


def _drawn(
    images: Sequence[Tensor],
    true: Sequence[Sequence[float]],
    ignored: Sequence[Sequence[float]],
    predicted: Sequence[Sequence[float]] = (),
    captions: Sequence[str] = (),
    colours: Sequence[Colour] = PREDICTED_BOXES,
) -> Image:
    """The modalities of a frame side by side, each with all boxes, in pixels of a cell."""
    cells = (draw_ignored(pictures.cell(image, CELL), ignored) for image in images)
    return pictures.side_by_side(
        [draw_boxes(draw_true(each, true), predicted, captions, colours) for each in cells]
    )


def _columns(panels: Sequence[Tensor]) -> int:
    """Frames in a row of a sheet: four pictures, or the modalities of two frames."""
    return 4 if len(panels) == 1 else 2


def _in_cell(frame: EvaluatedFrame, boxes: Tensor) -> list[list[float]]:
    """Boxes in pixels of the file as boxes in pixels of a cell of the sheet."""
    fractions = (boxes / frame.sides).numpy()
    cell: list[list[float]] = (frame.letterbox.boxes(fractions) * CELL).tolist()
    return cell
