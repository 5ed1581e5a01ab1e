"""What detections are worth: COCO's averages, precision and recall, presence, confusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from research.batch import DetectionBatch
from research.data.frames.letterbox import Letterbox
from research.models.matching import affinity, greedy, hungarian, total_iou
from research.tracking.tracker import Rows

Detections = dict[str, Tensor]
"""Of one frame, best first: ``boxes`` [n, 4] xyxy, ``scores`` [n], ``labels`` [n]."""

COCO: Final = {
    "mAP": "map",
    "mAP50": "map_50",
    "mAP75": "map_75",
    "mAP_small": "map_small",
    "mAP_medium": "map_medium",
    "mAP_large": "map_large",
    "mAR_1": "mar_1",
    "mAR_10": "mar_10",
    "mAR_100": "mar_100",
}
"""COCO's averages: our names, torchmetrics' names."""
OBJECT: Final = "object"
"""What every box is where classes are not told apart."""
BACKGROUND: Final = "(background)"


class DetectionMetrics:
    """Judges detections over every frame seen, all as shares of 1.

    Boxes are compared in pixels of the files, without the letterbox and cut off at their edges.

    - ``mAP``, ``mAP50``, ``mAP75``: COCO's average precision over IoU 0.50:0.95, at 0.50, at 0.75;
      ``mAP_small``, ``mAP_medium``, ``mAP_large``: of boxes of up to 32², 96² and more square
      pixels of the files; ``mAR_1``, ``mAR_10``, ``mAR_100``: COCO's average recall with so many
      detections a frame.
    - ``precision``, ``recall``: of detections from ``score`` on. In order of falling score each
      takes the free true box that it overlaps most, by ``iou`` at least; a second detection of
      the same object is false.
    - ``presence_accuracy``: frames of which it is rightly said whether they hold an object.
    - ``mean_iou``: over frames with objects, the overlap of the best-scored detection, whatever
      its score, with the true box nearest to it; 0 where nothing was detected.
    - ``matching_gap``: over frames with objects, by how much the greedy matching of true boxes
      and detections falls short of the optimal one, in IoU per true box.

    What is not defined, such as a precision without detections, is NaN, which never is a best.

    Args:
        classes: class names, in index order.
        class_agnostic: see ``Detection``, as the others.
        iou: overlap from which a detection has found a true box, 0…1.
        score: detections from this score on count for precision, recall and confusions, 0…1.
        presence: a frame counts as holding an object from this score of a detection on, 0…1.

    Attributes:
        classes: what boxes are told apart by: the class names, or ``object`` alone.
        confusion: [C + 1, C + 1] counts, rows true and columns found, background last. What
            ``find`` leaves over on both sides is paired whatever its class.
    """

    names: Final = [
        *COCO,
        "precision",
        "recall",
        "presence_accuracy",
        "mean_iou",
        "matching_gap",
    ]

    def __init__(
        self,
        classes: Sequence[str],
        class_agnostic: bool,
        iou: float,
        score: float,
        presence: float,
    ) -> None:
        self.classes = [OBJECT] if class_agnostic else list(classes)
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
            extended_summary=True,
        )
        self.coco.warn_on_many_detections = False
        self.reset()

    def reset(self) -> None:
        self.coco.reset()
        self.frames = 0
        self.positives = torch.zeros(len(self.classes), dtype=torch.int64)
        self.right_presence = 0
        self.scores: list[float] = []
        self.labels: list[int] = []
        self.hits: list[bool] = []
        self.best_iou: list[float] = []
        self.audit: list[tuple[float, float]] = []
        self.confusion = torch.zeros([len(self.classes) + 1] * 2, dtype=torch.int64)

    def update(self, predictions: list[Detections], batch: DetectionBatch) -> None:
        """Take in the detections of a batch's frames."""
        frames = judged_frames(batch, predictions, self.class_agnostic)
        for (found, boxes, labels), (height, width) in zip(
            frames, batch.sizes.tolist(), strict=True
        ):
            letterbox = Letterbox.of(height, width, batch.inputs.shape[-1])
            found["boxes"] = in_file(letterbox, found["boxes"])
            boxes = in_file(letterbox, boxes)
            self.coco.update([found], [{"boxes": boxes, "labels": labels}])
            self._count(found, boxes, labels)
            if len(boxes):
                sides = torch.tensor([width, height, width, height])
                self._audit(found["boxes"] / sides, boxes / sides)

    def _count(self, found: Detections, boxes: Tensor, labels: Tensor) -> None:
        self.frames += 1
        self.positives += torch.bincount(labels, minlength=len(self.classes))
        matches = match(found, boxes, labels, self.iou)
        self.scores.extend(found["scores"].tolist())
        self.labels.extend(found["labels"].tolist())
        self.hits.extend(true >= 0 for true in matches)
        # Best first: what counts comes before all others, and was matched before them.
        count = int((found["scores"] >= self.score).sum())
        kept = {name: values[:count] for name, values in found.items()}
        self._confuse(kept, boxes, labels, matches[:count])
        seen = bool((found["scores"] >= self.presence).any())
        self.right_presence += seen == bool(len(boxes))

    def _confuse(
        self, found: Detections, boxes: Tensor, labels: Tensor, matches: list[int]
    ) -> None:
        over = [place for place, true in enumerate(matches) if true < 0]
        free = [true for true in range(len(boxes)) if true not in matches]
        rest = {"boxes": found["boxes"][over], "labels": torch.zeros(len(over), dtype=torch.int64)}
        anyhow = match(rest, boxes[free], torch.zeros(len(free), dtype=torch.int64), self.iou)
        for place, other in zip(over, anyhow, strict=True):
            matches[place] = free[other] if other >= 0 else -1
        background = len(self.classes)
        for label, true in zip(found["labels"].tolist(), matches, strict=True):
            self.confusion[labels[true] if true >= 0 else background, label] += 1
        for true in set(range(len(boxes))) - set(matches):
            self.confusion[labels[true], background] += 1

    def _audit(self, found: Tensor, boxes: Tensor) -> None:
        overlap = box_iou(found[:1], boxes)
        self.best_iou.append(overlap.max().item() if len(overlap) else 0.0)
        pairs = affinity(boxes[None], found[None])
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
            **{name: _defined(coco[theirs].item()) for name, theirs in COCO.items()},
            "precision": _share(sum(hits), len(hits)),
            "recall": _share(sum(hits), int(self.positives.sum())),
            "presence_accuracy": _share(self.right_presence, self.frames),
            "mean_iou": _share(sum(self.best_iou), len(self.best_iou)),
            "matching_gap": _share((optimal_iou - greedy_iou).sum(), len(self.audit)),
        }

    def per_class(self) -> Rows:
        """A row a class: its true boxes, COCO's AP and AP50, and AR with 100 detections a frame."""
        coco: dict[str, Any] = self.coco.compute() if self.frames else {}
        places = {label: place for place, label in enumerate(_labels(coco))}
        rows: list[dict[str, float | int | str]] = []
        for label, name in enumerate(self.classes):
            values = {"AP": math.nan, "AP50": math.nan, "AR": math.nan}
            if label in places:
                # Thresholds, recalls, classes, areas (0: all), detections a frame (last: 100).
                precision = coco["precision"][:, :, places[label], 0, -1]
                recall = coco["recall"][:, places[label], 0, -1]
                values = {
                    "AP": _mean(precision),
                    "AP50": _mean(precision[0]),
                    "AR": _mean(recall),
                }
            rows.append({"class": name, "boxes": int(self.positives[label]), **values})
        return rows

    def confused(self) -> Rows:
        """``confusion`` as a table."""
        names = [*self.classes, BACKGROUND]
        return [
            {"true class": name, **dict(zip(names, row, strict=True))}
            for name, row in zip(names, self.confusion.tolist(), strict=True)
        ]


def match(found: Detections, boxes: Tensor, labels: Tensor, iou: float) -> list[int]:
    """The true box that each detection finds, best first: of its class, and found by none before.

    Args:
        found: of one frame, best first; ``boxes`` and ``labels``.
        boxes: [m, 4] true boxes, xyxy.
        labels: [m] their classes.
        iou: overlap from which a box is found.

    Returns:
        indices of true boxes, -1 for what finds none.
    """
    overlap = box_iou(found["boxes"], boxes)
    overlap = overlap.masked_fill(found["labels"][:, None] != labels, -1)
    matches = []
    for row in overlap:
        best = int(row.argmax()) if len(boxes) else -1
        if best >= 0 and row[best].item() >= iou:
            overlap[:, best] = -1
            matches.append(best)
        else:
            matches.append(-1)
    return matches


def find(found: Detections, boxes: Tensor, labels: Tensor, iou: float) -> list[bool]:
    """Which detections find a true box, see ``match``."""
    return [true >= 0 for true in match(found, boxes, labels, iou)]


def in_file(letterbox: Letterbox, boxes: Tensor) -> Tensor:
    """Boxes in pixels of the file.

    Args:
        letterbox: of the file.
        boxes: [n, 4] xyxy as shares of the letterboxed frame.
    """
    return torch.from_numpy(letterbox.inverse(boxes.float().cpu().numpy())).to(boxes.device)


def judged_frames(
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


def _labels(coco: dict[str, Any]) -> list[int]:
    """The classes that COCO's arrays have a place for, in their order."""
    labels = coco.get("classes", torch.empty(0)).reshape(-1).tolist()
    return labels if "precision" in coco else []


def _mean(values: Tensor) -> float:
    """COCO's: over what is defined."""
    values = values[values > -1]
    return values.mean().item() if len(values) else math.nan


def _defined(value: float) -> float:
    """COCO says -1 where there was nothing to find."""
    return math.nan if value < 0 else value


def _share(part: float, whole: int) -> float:
    return float(part) / whole if whole else math.nan
