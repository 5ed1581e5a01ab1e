"""A baseline for detection: the best single box for all frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from research.utils.progress import track

MAX_CANDIDATES = 2000
STEPS = (0.08, 0.04, 0.02, 0.01, 0.005)


def best_constant_box(boxes: Tensor, mask: Tensor) -> Tensor:
    """The box with the highest mean IoU over the frames of a training split.

    Starts from the best of the target boxes, and moves one edge at a time by decreasing steps while
    the mean IoU increases.

    Args:
        boxes: [N, M, 4] xyxy, fractions of the frame.
        mask: [N, M] bool; frames without a box are ignored.

    Returns:
        [4] xyxy. The whole frame if no frame has a box.
    """
    non_empty = mask.any(1)
    boxes, mask = boxes[non_empty], mask[non_empty]
    if not len(boxes):
        return torch.tensor([0.0, 0.0, 1.0, 1.0])
    targets = boxes[mask]
    candidates = targets[:: -(-len(targets) // MAX_CANDIDATES)]
    scores = torch.stack(
        [
            constant_iou(box, boxes, mask).mean()
            for box in track(candidates, "finding the best box", unit="boxes")
        ]
    )
    best, score = candidates[scores.argmax()], scores.max()
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for edge in range(4):
                for delta in (-step, step):
                    moved = best.clone()
                    moved[edge] = (moved[edge] + delta).clamp(0, 1)
                    value = constant_iou(moved, boxes, mask).mean()
                    if value > score:
                        best, score, improved = moved, value, True
    return best


def constant_iou(box: Tensor, boxes: Tensor, mask: Tensor) -> Tensor:
    """[N] highest IoU of one box [4] with the target boxes of each frame."""
    overlap = box_iou(box[None], boxes.flatten(0, 1)).view(mask.shape)
    return overlap.masked_fill(~mask, 0).amax(1)
