"""Matching of predicted boxes with true boxes, one-to-one, and with ignore regions.

Both matchers score a pair by its IoU, without gradient. Ties, such as pairs that do not overlap
early in training, are decided by the distance of the centres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

DISTANCE_WEIGHT: Final = 1e-9
"""Weight of the centres' distance in ``hungarian``, so small that it only breaks ties of IoU."""

COVERED: Final = 0.5
"""Share of a prediction's area from which it lies in an ignore region: COCO's overlap with a crowd
at its lowest threshold. Such a prediction is not background in a loss."""


class Affinity(NamedTuple):
    """Overlap and distance of every pair of a true box and a prediction.

    Attributes:
        iou: [B, M, P] intersection over union, 0…1.
        distance: [B, M, P] distance of the centres, as a fraction of the frame's side.
    """

    iou: Tensor
    distance: Tensor


@torch.no_grad()
def affinity(boxes: Tensor, predictions: Tensor) -> Affinity:
    """Compare every true box [B, M, 4] with every prediction [B, P, 4]; both xyxy.

    The IoU of two boxes without area, and of a prediction that is NaN, is 0.
    """
    boxes, predictions = boxes.float(), predictions.float()
    iou = torch.vmap(box_iou)(boxes, predictions).nan_to_num(0)
    offset = _centres(boxes)[:, :, None] - _centres(predictions)[:, None]
    return Affinity(iou, offset.norm(dim=-1).nan_to_num(0))


def greedy(pairs: Affinity, mask: Tensor) -> Tensor:
    """Match pairs in descending order of IoU, each true box and each prediction once.

    Ties are decided by the distance of the centres, then by the lower index of the true box, then
    by the lower index of the prediction.

    Args:
        pairs: [B, M, P].
        mask: [B, M] bool, True where a slot holds a true box.

    Returns:
        [B, M] int64, the index of each true box's prediction; -1 in empty slots and when there
        are fewer predictions than true boxes.
    """
    frames, slots, count = pairs.iou.shape
    matches = torch.full((frames, slots), -1, device=mask.device)
    iou = pairs.iou.masked_fill(~mask[..., None], -1)
    frame = torch.arange(frames, device=mask.device)
    # As many rounds as slots: to stop after the last true box, the host would wait for the device.
    for _ in range(min(slots, count)):
        best = iou.flatten(1).amax(1)
        tied = iou == best[:, None, None]
        # argmin returns the first of equal minima: the lower true index, then prediction index.
        index = pairs.distance.where(tied, torch.inf).flatten(1).argmin(1)
        true, prediction = index // count, index % count
        matches[frame, true] = torch.where(best >= 0, prediction, matches[frame, true])
        iou[frame, true] = -1
        iou[frame, :, prediction] = -1
    return matches


def hungarian(pairs: Affinity, mask: Tensor) -> Tensor:
    """The assignment with the largest total IoU (Kuhn, 1955), solved by SciPy on the CPU.

    Ties are decided by the distance of the centres. Arguments and result as for ``greedy``.
    """
    from scipy.optimize import linear_sum_assignment

    matches = torch.full(mask.shape, -1)
    score = (pairs.iou.double() - DISTANCE_WEIGHT * pairs.distance.double()).cpu().numpy()
    for frame, valid in enumerate(mask.cpu().numpy()):
        (slots,) = valid.nonzero()
        rows, predictions = linear_sum_assignment(score[frame, slots], maximize=True)
        matches[frame, torch.from_numpy(slots[rows])] = torch.from_numpy(predictions)
    return matches.to(mask.device, non_blocking=True)


MATCHERS: Final[Mapping[str, Callable[[Affinity, Tensor], Tensor]]] = {
    "greedy": greedy,
    "hungarian": hungarian,
}
"""Matchers by the value of ``model.matching``."""


@torch.no_grad()
def coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """[P, R] share of the area of each box that is inside each region, 0…1.

    That is the overlap by which COCO compares detections with crowds (``iscrowd``; pycocotools'
    ``maskUtils.iou``). It is 0 for boxes without area and for NaN.

    Args:
        boxes: [..., P, 4] xyxy.
        regions: [..., R, 4] xyxy.
    """
    boxes, regions = boxes[..., :, None, :], regions[..., None, :, :]
    low = torch.maximum(boxes[..., :2], regions[..., :2])
    high = torch.minimum(boxes[..., 2:], regions[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return (shared / area).nan_to_num(0, 0, 0)


def lies_in(boxes: Tensor, regions: Tensor, mask: Tensor) -> Tensor:
    """[..., P] bool, True for boxes at least ``COVERED`` of which is inside one region.

    Of boxes that reach beyond the frame, such as anchors, the part in it counts.

    Args:
        boxes: [..., P, 4] xyxy, fractions of the frame.
        regions: [..., R, 4] xyxy, fractions of the frame.
        mask: [..., R] bool, True where a slot holds an ignore region.
    """
    return ((coverage(boxes.clamp(0, 1), regions) >= COVERED) & mask[..., None, :]).any(-1)


def total_iou(pairs: Affinity, matches: Tensor) -> Tensor:
    """[B], the sum of IoU over matched pairs; ``matches`` as returned by ``greedy``."""
    # A column of zeros in front for unmatched boxes (-1).
    return F.pad(pairs.iou, (1, 0)).gather(2, matches[..., None] + 1).sum((1, 2))


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
