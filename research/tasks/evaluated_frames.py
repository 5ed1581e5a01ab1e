"""Detections beside the ground truth of their frames, in pixels of the files.

``match_detections`` is the IoU matching of precision, recall and the confusion matrix. The matchers
of ``research.models.matching`` belong to the training losses.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from research.batch import DetectionBatch
from research.data.frames.letterbox import Letterbox
from research.models.matching import coverage

Detections = dict[str, Tensor]
"""Of one frame, by decreasing score: ``boxes`` [n, 4] xyxy, ``scores`` [n], ``labels`` [n]."""
MIN_SIDE: Final = 0.01
"""Shortest side of a detection in pixels of the file, as in torchvision's detectors."""


class EvaluatedFrame(NamedTuple):
    """Detections and ground truth of one frame, on the CPU, boxes in pixels of its file.

    Attributes:
        letterbox: of the file.
        detections: those with area in the image.
        boxes: [m, 4] float64 ground-truth boxes.
        labels: [m] their classes.
        areas: [m] their areas, where those are declared.
        regions: [r, 4] float64 ignore regions.
        region_labels: [r] their classes.
    """

    letterbox: Letterbox
    detections: Detections
    boxes: Tensor
    labels: Tensor
    areas: Tensor | None
    regions: Tensor
    region_labels: Tensor

    @property
    def sides(self) -> Tensor:
        """[4] width, height, width, height of the file in pixels."""
        return torch.from_numpy(self.letterbox.sides)

    def coco_target(self) -> dict[str, Tensor]:
        """Ground truth for torchmetrics, with ignore regions as crowds."""
        target = {
            "boxes": torch.cat([self.boxes, self.regions]),
            "labels": torch.cat([self.labels, self.region_labels]),
            "iscrowd": torch.tensor([0] * len(self.boxes) + [1] * len(self.regions)),
        }
        if self.areas is not None:
            # torchmetrics takes the area of the box where it is 0.
            areas = self.areas.double().clamp(min=1e-9)
            target["area"] = torch.cat([areas, torch.zeros(len(self.regions)).double()])
        return target

    def matched(self, detections: Detections, iou: float) -> tuple[Detections, list[int]]:
        """Those of the detections that count, and their matches, see ``match_detections``."""
        matches = match_detections(detections, self.boxes, self.labels, iou)
        inside = coverage(detections["boxes"], self.regions) >= iou
        ignored = (inside & (detections["labels"][:, None] == self.region_labels)).any(1)
        counted = [true >= 0 or not out for true, out in zip(matches, ignored, strict=True)]
        kept = select(detections, torch.tensor(counted, dtype=torch.bool))
        return kept, [true for true, counts in zip(matches, counted, strict=True) if counts]


def match_detections(
    detections: Detections, boxes: Tensor, labels: Tensor, iou: float
) -> list[int]:
    """Match each detection, by decreasing score, to an unmatched ground-truth box of its class.

    Args:
        detections: of one frame, by decreasing score; ``boxes`` and ``labels``.
        boxes: [m, 4] ground-truth boxes, xyxy.
        labels: [m] their classes.
        iou: smallest IoU of a match.

    Returns:
        indices of ground-truth boxes, -1 without a match.
    """
    overlap = box_iou(detections["boxes"], boxes)
    overlap = overlap.masked_fill(detections["labels"][:, None] != labels, -1)
    matches = []
    for row in overlap:
        best = int(row.argmax()) if len(boxes) else -1
        if best >= 0 and row[best].item() >= iou:
            overlap[:, best] = -1
            matches.append(best)
        else:
            matches.append(-1)
    return matches


def select(detections: Detections, chosen: Tensor | slice) -> Detections:
    """The chosen ones of a frame's detections."""
    return {name: values[chosen] for name, values in detections.items()}


def in_file(letterbox: Letterbox, detections: Detections) -> Detections:
    """A frame's detections with boxes in pixels of the file, clipped to the image.

    Those with a side under ``MIN_SIDE`` there are left out: they lie in the border of the
    letterbox. Everything that shows, writes or evaluates detections gets them from here.

    Args:
        letterbox: of the file.
        detections: with boxes [n, 4] xyxy as fractions of the letterboxed frame.
    """
    found = detections["boxes"]
    boxes = torch.from_numpy(letterbox.inverse(found.float().cpu().numpy())).to(found.device)
    has_area = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)
    return select({**detections, "boxes": boxes}, has_area)


def true_in_file(letterbox: Letterbox, boxes: Tensor) -> Tensor:
    """Ground-truth boxes in pixels of the file, float64.

    Edges at hundredths of a pixel, up to the rounding of 32-bit fractions, are exactly there again:
    COCO sorts boxes by areas of exactly 32² and 96².

    Args:
        letterbox: of the file.
        boxes: [n, 4] xyxy as fractions of the letterboxed frame, float32.
    """
    pixels = torch.from_numpy(letterbox.inverse(boxes.double().numpy()))
    error = torch.finfo(torch.float32).eps * letterbox.sides.max()
    exact = pixels.round(decimals=2)
    return torch.where((pixels - exact).abs() <= error, exact, pixels)


def split_frames(
    batch: DetectionBatch, predictions: list[Detections], class_agnostic: bool
) -> list[EvaluatedFrame]:
    """Detections and ground truth of each frame of a batch."""
    none = torch.zeros_like(batch.mask)
    slots = [
        batch.boxes,
        batch.mask,
        batch.labels,
        none if batch.ignored is None else batch.ignored,
    ]
    areas = [None] * len(batch) if batch.areas is None else batch.areas.cpu()
    frames = []
    for found, size, area, *own in zip(
        predictions, batch.sizes.tolist(), areas, *(tensor.cpu() for tensor in slots), strict=True
    ):
        height, width = size
        letterbox = Letterbox.of(height, width, batch.inputs.shape[-1])
        detections = in_file(letterbox, {name: values.cpu() for name, values in found.items()})
        detections["boxes"] = detections["boxes"].double()
        boxes, mask, labels, ignored = own
        if class_agnostic:
            detections["labels"] = torch.zeros_like(detections["labels"])
            labels = torch.zeros_like(labels)
        boxes = true_in_file(letterbox, boxes)
        true = boxes[mask], labels[mask], None if area is None else area[mask]
        frames.append(EvaluatedFrame(letterbox, detections, *true, boxes[ignored], labels[ignored]))
    return frames
