"""A floor to stand on: how far one box, the same for every frame, would get."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

CANDIDATES = 2000
STEPS = (0.08, 0.04, 0.02, 0.01, 0.005)


def best_constant_box(boxes: Tensor, mask: Tensor) -> Tensor:
    """The box with the highest mean IoU over a training split's frames.

    The best of the true boxes themselves, then improved one edge at a time by ever smaller steps
    while that helps.

    Args:
        boxes: [N, M, 4] xyxy, shares of the frame.
        mask: [N, M] bool; frames without a box are not judged.

    Returns:
        [4] xyxy. The whole frame when no frame has a box.
    """
    seen = mask.any(1)
    boxes, mask = boxes[seen], mask[seen]
    if not len(boxes):
        return torch.tensor([0.0, 0.0, 1.0, 1.0])
    true = boxes[mask]
    candidates = true[:: -(-len(true) // CANDIDATES)]
    scores = torch.stack([constant_iou(box, boxes, mask).mean() for box in candidates])
    best, score = candidates[scores.argmax()], scores.max()
    for step in STEPS:
        better = True
        while better:
            better = False
            for edge in range(4):
                for move in (-step, step):
                    moved = best.clone()
                    moved[edge] = (moved[edge] + move).clamp(0, 1)
                    value = constant_iou(moved, boxes, mask).mean()
                    if value > score:
                        best, score, better = moved, value, True
    return best


def constant_iou(box: Tensor, boxes: Tensor, mask: Tensor) -> Tensor:
    """[N] IoU of one box [4] with the nearest true box of each frame."""
    overlap = box_iou(box[None], boxes.flatten(0, 1)).view(mask.shape)
    return overlap.masked_fill(~mask, 0).amax(1)
