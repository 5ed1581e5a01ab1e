"""Detection metrics: COCO's averages, precision and recall, presence, confusion matrix.

The matchers of ``research.models.matching`` belong to the training losses; here only
``matching_gap`` uses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from research.batch import DetectionBatch
from research.models.matching import affinity, greedy, hungarian, total_iou
from research.tasks.evaluated_frames import (
    Detections,
    EvaluatedFrame,
    match_detections,
    select,
    split_frames,
)
from research.tracking.tracker import Rows

if TYPE_CHECKING:  # imported with the first frame, after the first epoch of training
    from torchmetrics.detection import MeanAveragePrecision

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
"""COCO's averages: names here, names in torchmetrics."""
TWELVE: Final = {
    **COCO,
    "mAR_small": "mar_small",
    "mAR_medium": "mar_medium",
    "mAR_large": "mar_large",
}
"""The 12 numbers of pycocotools, in its order."""
COUNTED: Final = (
    "frames", "positives", "known_presence", "correct_presence", "scores", "labels", "hits",
    "best_iou", "matching", "confusion",
)  # fmt: skip
"""Attributes of ``DetectionMetrics`` that are counts or lists over frames."""
OBJECT: Final = "object"
"""The one class of a class-agnostic evaluation."""
BACKGROUND: Final = "(background)"


class DetectionMetrics:
    """Metrics over all frames of a split; values in 0…1.

    Boxes are compared in pixels of the files, without the letterbox and clipped to the image;
    detections without area in the image do not count (``in_file``).

    Ignore regions count as crowds do in COCO: they are no objects, and a detection that is
    matched to no object counts neither as right nor as wrong if a region of its class contains it,
    by the share of the detection's area. Frames with regions alone have no presence.

    - ``mAP``, ``mAP50``, ``mAP75``: COCO's average precision over IoU 0.50:0.95, at 0.50, at 0.75;
      ``mAP_small``, ``mAP_medium``, ``mAP_large``: of boxes of up to 32², 96² and more square
      pixels of the files (by the areas of a COCO source, if it declares others than the boxes');
      ``mAR_1``, ``mAR_10``, ``mAR_100``: COCO's average recall with at most so many detections per
      frame. ``coco_table`` has them and the recall by area.
    - ``precision``, ``recall``: of detections with at least ``score``. By decreasing score, each
      is matched to the unmatched ground-truth box with the highest IoU of at least ``iou``; a
      second detection of the same object is a false positive.
    - ``presence_accuracy``: frames for which it is predicted correctly whether they have an object.
    - ``mean_iou``: over frames with objects, the highest IoU of the best-scored detection (of any
      score) with a ground-truth box; 0 without detections.
    - ``matching_gap``: over frames with objects, optimal minus greedy matching of ground-truth
      boxes and detections, in IoU per ground-truth box.

    Undefined values, such as precision without detections, are NaN, which is never the best.

    Args:
        classes: class names, in index order.
        class_agnostic: see ``Detection``.
        iou: smallest IoU of a match, 0…1.
        score: smallest score of detections in precision, recall and confusion matrix, 0…1.
        presence: smallest score with which a frame counts as having an object, 0…1.

    Attributes:
        classes: the class names; ``object`` alone if class-agnostic.
        confusion: [C + 1, C + 1] counts, rows target and columns prediction, background last.
            Boxes without a match of their class are matched again regardless of class.
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
        self.reset()

    @cached_property
    def coco(self) -> MeanAveragePrecision:
        """The boxes of all frames."""
        from torchmetrics.detection import MeanAveragePrecision

        # COCO's own thresholds: torchmetrics' are rounded to float32, which misses a recall of
        # exactly 0.3 and changes the third digit on small splits.
        coco = MeanAveragePrecision(
            backend="faster_coco_eval",
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            extended_summary=True,
            sync_on_compute=False,
        )
        coco.warn_on_many_detections = False
        return coco

    def reset(self) -> None:
        vars(self).pop("coco", None)
        self.frames = 0
        self.positives = torch.zeros(len(self.classes), dtype=torch.int64)
        self.known_presence = self.correct_presence = 0
        self.scores: list[float] = []
        self.labels: list[int] = []
        self.hits: list[bool] = []
        self.best_iou: list[float] = []
        self.matching: list[tuple[float, float]] = []
        self.confusion = torch.zeros([len(self.classes) + 1] * 2, dtype=torch.int64)

    def update(self, predictions: list[Detections], batch: DetectionBatch) -> None:
        """Add a batch with the detections of its frames."""
        for frame in split_frames(batch, predictions, self.class_agnostic):
            self.coco.update([frame.detections], [frame.coco_target()])
            detections, matches = frame.matched(frame.detections, self.iou)
            self._update_counts(detections, frame, matches)
            if len(frame.boxes):
                self._update_matching(detections["boxes"] / frame.sides, frame.boxes / frame.sides)

    def state(self) -> dict[str, Any]:
        """Counts and lists by name; ``coco`` has the boxes of all frames."""
        return {"coco": self.coco.metric_state, **{name: getattr(self, name) for name in COUNTED}}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the frames of another ``state``."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + state[name])
        for name, frames in state["coco"].items():
            getattr(self.coco, name).extend(frames)
        # As after an update: torchmetrics computes nothing before the first, and keeps what it has
        # computed, such as for the progress of an evaluation, until the next.
        self.coco._update_count += state["frames"]
        self.coco._computed = None

    def _update_counts(
        self, detections: Detections, frame: EvaluatedFrame, matches: list[int]
    ) -> None:
        """Count a frame; ``detections`` are those that count, with their matches."""
        boxes, labels = frame.boxes, frame.labels
        self.frames += 1
        self.positives += torch.bincount(labels, minlength=len(self.classes))
        self.scores.extend(detections["scores"].tolist())
        self.labels.extend(detections["labels"].tolist())
        self.hits.extend(true >= 0 for true in matches)
        # Sorted by score: those that count come first and were matched first.
        count = int((detections["scores"] >= self.score).sum())
        confident = select(detections, slice(count))
        self._update_confusion(confident, boxes, labels, matches[:count])
        if len(boxes) or not len(frame.regions):
            present = bool((detections["scores"] >= self.presence).any())
            self.known_presence += 1
            self.correct_presence += present == bool(len(boxes))

    def _update_confusion(
        self, detections: Detections, boxes: Tensor, labels: Tensor, matches: list[int]
    ) -> None:
        """Count the detections and boxes of a frame in ``confusion``.

        ``matches`` is extended by matches between different classes.
        """
        unmatched = [index for index, true in enumerate(matches) if true < 0]
        free = [true for true in range(len(boxes)) if true not in matches]
        rest = {
            "boxes": detections["boxes"][unmatched],
            "labels": torch.zeros(len(unmatched), dtype=torch.int64),
        }
        rematched = match_detections(
            rest, boxes[free], torch.zeros(len(free), dtype=torch.int64), self.iou
        )
        for index, other in zip(unmatched, rematched, strict=True):
            matches[index] = free[other] if other >= 0 else -1
        background = len(self.classes)
        for label, true in zip(detections["labels"].tolist(), matches, strict=True):
            self.confusion[labels[true] if true >= 0 else background, label] += 1
        for true in set(range(len(boxes))) - set(matches):
            self.confusion[labels[true], background] += 1

    def _update_matching(self, detections: Tensor, boxes: Tensor) -> None:
        """Add a frame to ``mean_iou`` and ``matching_gap``; boxes are fractions of the image."""
        overlap = box_iou(detections[:1], boxes)
        self.best_iou.append(overlap.max().item() if len(overlap) else 0.0)
        pairs = affinity(boxes[None], detections[None])
        mask = torch.ones(1, len(boxes), dtype=torch.bool)
        self.matching.append(
            (
                total_iou(pairs, greedy(pairs, mask)).item() / len(boxes),
                total_iou(pairs, hungarian(pairs, mask)).item() / len(boxes),
            )
        )

    def compute(self) -> dict[str, float]:
        """Values by name; empty before the first frame."""
        if self.frames == 0:
            return {}
        coco = self.coco.compute()
        hits = [
            hit for hit, score in zip(self.hits, self.scores, strict=True) if score >= self.score
        ]
        greedy_iou, optimal_iou = np.array(self.matching).reshape(-1, 2).T
        return {
            **{name: _defined(coco[theirs].item()) for name, theirs in COCO.items()},
            "precision": _ratio(sum(hits), len(hits)),
            "recall": _ratio(sum(hits), int(self.positives.sum())),
            "presence_accuracy": _ratio(self.correct_presence, self.known_presence),
            "mean_iou": _ratio(sum(self.best_iou), len(self.best_iou)),
            "matching_gap": _ratio((optimal_iou - greedy_iou).sum(), len(self.matching)),
        }

    def per_class(self) -> Rows:
        """A row per class: number of boxes, COCO's AP and AP50, AR with 100 detections a frame."""
        coco: dict[str, Any] = self.coco.compute() if self.frames else {}
        indices = {label: index for index, label in enumerate(_labels(coco))}
        rows: list[dict[str, float | int | str]] = []
        for label, name in enumerate(self.classes):
            values = {"AP": math.nan, "AP50": math.nan, "AR": math.nan}
            if label in indices:
                # Thresholds, recalls, classes, areas (0: all), detections a frame (last: 100).
                precision = coco["precision"][:, :, indices[label], 0, -1]
                recall = coco["recall"][:, indices[label], 0, -1]
                values = {
                    "AP": _mean(precision),
                    "AP50": _mean(precision[0]),
                    "AR": _mean(recall),
                }
            rows.append({"class": name, "boxes": int(self.positives[label]), **values})
        return rows

    def coco_table(self) -> Rows:
        """The 12 numbers of pycocotools, a row each, with the number of frames and of objects."""
        coco = self.coco.compute() if self.frames else {}
        counts = {"frames": self.frames, "boxes": int(self.positives.sum())}
        return [
            {"metric": name, "value": _defined(coco[theirs].item() if coco else -1.0), **counts}
            for name, theirs in TWELVE.items()
        ]

    def confusion_table(self) -> Rows:
        """``confusion`` as a table."""
        names = [*self.classes, BACKGROUND]
        return [
            {"true class": name, **dict(zip(names, row, strict=True))}
            for name, row in zip(names, self.confusion.tolist(), strict=True)
        ]


def _labels(coco: dict[str, Any]) -> list[int]:
    """The classes of COCO's arrays, in their order."""
    labels = coco.get("classes", torch.empty(0)).reshape(-1).tolist()
    return labels if "precision" in coco else []


def _mean(values: Tensor) -> float:
    """Mean of the defined values, as in COCO."""
    values = values[values > -1]
    return values.mean().item() if len(values) else math.nan


def _defined(value: float) -> float:
    """COCO's -1 for an undefined value, as NaN."""
    return math.nan if value < 0 else value


def _ratio(part: float, whole: int) -> float:
    return float(part) / whole if whole else math.nan
