"""Which prediction answers for which true box: one-to-one, by overlap, without gradient.

Both ways score a pair by its IoU. Where IoU says nothing (pairs that do not touch, as at the
start of training), the pair whose centres are nearest is preferred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

DISTANCE_WEIGHT: Final = 1e-9
"""Of the centres' distance beside IoU in the optimal assignment: it decides between ties alone."""


class Affinity(NamedTuple):
    """How well predictions answer for true boxes, pair by pair.

    Attributes:
        iou: [B, M, P] intersection over union, 0…1.
        distance: [B, M, P] distance of the centres, as a share of the frame's side.
    """

    iou: Tensor
    distance: Tensor


@torch.no_grad()
def affinity(boxes: Tensor, predictions: Tensor) -> Affinity:
    """Compare every true box [B, M, 4] with every prediction [B, P, 4]; both xyxy.

    Two boxes without area have IoU 0, and so has a prediction that is not a number.
    """
    boxes, predictions = boxes.float(), predictions.float()
    iou = torch.vmap(box_iou)(boxes, predictions).nan_to_num(0)
    apart = _centres(boxes)[:, :, None] - _centres(predictions)[:, None]
    return Affinity(iou, apart.norm(dim=-1).nan_to_num(0))


def greedy(pairs: Affinity, mask: Tensor) -> Tensor:
    """Take pairs in order of falling IoU, each true box and each prediction once.

    Of pairs with the same IoU the one with the nearest centres comes first, then the one with the
    lower true index, then the one with the lower prediction index.

    Args:
        pairs: [B, M, P].
        mask: [B, M] bool, true where a slot holds a true box.

    Returns:
        [B, M] int64, the prediction of each true box; -1 in empty slots and where predictions
        have run out.
    """
    frames, slots, count = pairs.iou.shape
    found = torch.full((frames, slots), -1, device=mask.device)
    iou = pairs.iou.masked_fill(~mask[..., None], -1)
    frame = torch.arange(frames, device=mask.device)
    rounds = min(int(mask.sum(1).max()), count) if mask.numel() else 0
    for _ in range(rounds):
        best = iou.flatten(1).amax(1)
        tied = iou == best[:, None, None]
        # The first of equal minima: the lower true index, then the lower prediction index.
        place = pairs.distance.where(tied, torch.inf).flatten(1).argmin(1)
        true, prediction = place // count, place % count
        found[frame, true] = torch.where(best >= 0, prediction, found[frame, true])
        iou[frame, true] = -1
        iou[frame, :, prediction] = -1
    return found


def hungarian(pairs: Affinity, mask: Tensor) -> Tensor:
    """The assignment with the greatest total IoU (Kuhn, 1955), solved by SciPy on the CPU.

    Of assignments with the same total the one with the nearest centres is taken. Arguments and
    result are those of ``greedy``.
    """
    found = torch.full(mask.shape, -1)
    score = (pairs.iou.double() - DISTANCE_WEIGHT * pairs.distance.double()).cpu().numpy()
    for frame, real in enumerate(mask.cpu().numpy()):
        (slots,) = real.nonzero()
        rows, predictions = linear_sum_assignment(score[frame, slots], maximize=True)
        found[frame, torch.from_numpy(slots[rows])] = torch.from_numpy(predictions)
    return found.to(mask.device)


MATCHERS: Final[Mapping[str, Callable[[Affinity, Tensor], Tensor]]] = {
    "greedy": greedy,
    "hungarian": hungarian,
}
"""By the name in ``model.matching``."""


def total_iou(pairs: Affinity, found: Tensor) -> Tensor:
    """[B], the sum of IoU over the pairs that a matching made; ``found`` as ``greedy`` gives it."""
    # A column of zeros in front for the boxes that have none.
    picked = F.pad(pairs.iou, (1, 0)).gather(2, found[..., None] + 1)
    return picked.sum((1, 2))


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
