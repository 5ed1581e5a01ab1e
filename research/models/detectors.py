"""TinyDet and BigDet: small detectors that train from scratch on a laptop's CPU.

Both take frames [B, 3, H, W], floats 0…1, sides multiples of 32, and speak as torchvision's
detectors do: in training mode ``model(images, targets)`` gives the parts of the loss, weighted,
by name (``box``, ``objectness``, ``giou``); in evaluation mode ``model(images)`` gives one dict a
frame with ``boxes`` [n, 4] (xyxy, shares of the frame), ``scores`` [n] and ``labels`` [n] (all 0:
neither tells classes apart), best first.

Sizes and shapes are ours; the parts are of Darknet-53 (Redmon & Farhadi, 2018: residual blocks,
one objectness a cell, the ignored predictions), DETR (Carion et al., 2020: one-to-one matching,
L1 and GIoU), and of integral regression (Sun et al., 2018: soft-argmax).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import (
    Conv2dNormActivation,
    box_convert,
    clip_boxes_to_image,
    generalized_box_iou_loss,
    nms,
    remove_small_boxes,
)

from research.batch import Targets
from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD
from research.models.matching import MATCHERS, affinity
from research.utils.errors import UserError

STRIDE: Final = 32
SIZE_PRIOR: Final = 0.25
"""Width and height of every box before training, as a share of the frame."""
CELL_PRIOR: Final = 0.01
"""BigDet's objectness before training (Lin et al., 2017): most cells hold nothing."""
SMALLEST: Final = 1e-4
"""Boxes thinner than this share of the frame are no detections."""

Detections = dict[str, Tensor]


class Residual(nn.Module):
    """Darknet-53's block: 1×1 to half the channels, 3×3 back, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, channels // 2, 1), _conv(channels // 2, channels, 3)
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class Trunk(nn.Sequential):
    """Frames [B, 3, H, W] in 0…1 to features [B, 8·width, H/32, W/32].

    Args:
        width: channels at stride 4; they double with every further halving.
        depths: residual blocks at strides 8, 16 and 32.
    """

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        # Patches that do not overlap: on a CPU half the cost of 7×7.
        layers: list[nn.Module] = [Normalise(), _conv(3, width, 4, stride=4, padding=0)]
        for depth in depths:
            layers.append(_conv(width, 2 * width, 3, stride=2))
            width *= 2
            layers.extend(Residual(width) for _ in range(depth))
        super().__init__(*layers)
        self.channels = width


class Normalise(nn.Module):
    """ImageNet's means and deviations; they belong to the network and are not in checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            near = max(STRIDE, round(width / STRIDE) * STRIDE)
            raise UserError(
                "dataset.image_size",
                f"the detectors take frames whose sides are multiples of {STRIDE}, not "
                f"{width}×{height}",
                f"prepare them with image_size={near}",
            )
        return (images - self.mean) / self.std


class TinyDet(nn.Module):
    """At most one object a frame: one presence logit and one box (0.3 M parameters at width 16).

    An attention map says where the object is: its expected position (soft-argmax) is the box's
    centre, up to an offset; the features that it gathers, beside the frame's mean features, give
    offset, size and presence. Where a frame has several true boxes the largest is the target. The
    map is taught where to look by a loss of its own, the cross-entropy of the cell that holds the
    centre: through the box alone it takes several times as many epochs to find out.

    Args:
        width: channels at stride 4, even.
        lambda_box: weight of the L1 distance of the box, summed over its coordinates.
        lambda_obj: weight of the presence's binary cross-entropy.
        lambda_iou: weight of the GIoU loss; 0 leaves it without effect.
        lambda_att: weight of the attention's cross-entropy; 0 leaves it without effect.
    """

    def __init__(
        self,
        width: int,
        lambda_box: float,
        lambda_obj: float,
        lambda_iou: float,
        lambda_att: float,
    ) -> None:
        super().__init__()
        self.lambda_att = lambda_att
        self.lambda_box = lambda_box
        self.lambda_obj = lambda_obj
        self.lambda_iou = lambda_iou
        self.trunk = Trunk(width, (1, 2, 2))
        channels = self.trunk.channels
        self.attend = nn.Conv2d(channels, 1, 1)
        self.head = nn.Linear(2 * channels, 5)
        _start_head(self.head, presence=0.5)

    def forward(
        self, images: Tensor, targets: Targets | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        boxes, logits, attention = self.raw_outputs(images)
        if self.training:
            assert targets is not None, "training needs targets"
            return self._losses(boxes, logits, attention, targets)
        return [
            _detections(box[None], score[None], 1.0, 1)
            for box, score in zip(boxes, logits.sigmoid(), strict=True)
        ]

    def raw_outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [B, 4], xyxy, presence logits [B], attention logits [B, H, W], float32."""
        features = self.trunk(images)
        grid = _centres(features)
        # A coordinate in half precision would be a pixel off.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            attention = self.attend(features)[:, 0]
            weights = attention.flatten(1).softmax(1)
            gathered = torch.einsum("bp,bcp->bc", weights, features.flatten(2))
            said = self.head(torch.cat([gathered, features.mean((2, 3))], 1))
            centre = weights @ grid + said[:, :2].tanh() / 2
            box = torch.cat([centre, said[:, 2:4].sigmoid()], 1)
            return box_convert(box, "cxcywh", "xyxy"), said[:, 4], attention

    def _losses(
        self, boxes: Tensor, logits: Tensor, attention: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        present = targets.mask.any(1)
        sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
        largest = sides.prod(-1).where(targets.mask, -1).argmax(1)
        true = targets.boxes[torch.arange(len(boxes), device=boxes.device), largest]
        box, giou = _box_losses(boxes, true, present)
        objectness = F.binary_cross_entropy_with_logits(logits, present.float())
        height, width = attention.shape[-2:]
        column, row = ((true[:, :2] + true[:, 2:]) / 2 * true.new_tensor([width, height])).T
        cell = row.long().clamp(max=height - 1) * width + column.long().clamp(max=width - 1)
        missed = F.cross_entropy(attention.flatten(1), cell, reduction="none")
        return {
            "box": self.lambda_box * box,
            "objectness": self.lambda_obj * objectness,
            "giou": self.lambda_iou * giou,
            "attention": self.lambda_att * (missed * present).sum() / present.sum().clamp(min=1),
        }


class BigDet(nn.Module):
    """Several objects a frame, up to ``max_boxes`` (0.86 M parameters at width 24).

    Every cell of a grid at stride 32 says whether it answers for an object (objectness) and where
    the box is: its centre within one cell of the cell's own, its sides any share of the frame.
    True boxes are matched one-to-one with the cells' boxes, see ``research.models.matching``;
    matched cells learn the box and objectness 1, the others objectness 0, but for those whose box
    overlaps a true one by more than ``ignore_iou``: they learn nothing (Redmon & Farhadi, 2018,
    §2.1). In evaluation the best ``max_boxes`` cells after suppression fill the slots.

    Args:
        width: channels at stride 4, even.
        max_boxes: slots for detections.
        matching: ``greedy`` or ``hungarian``.
        lambda_box: weight of the L1 distance of matched boxes, summed over the coordinates.
        lambda_obj: weight of the objectness' binary cross-entropy, summed over the cells. Both
            are divided by the number of matched boxes in the batch, this one by no less than the
            number of frames, so that a batch of empty frames is no outburst.
        lambda_iou: weight of the GIoU loss of matched boxes; 0 leaves it without effect.
        ignore_iou: see above, 0…1; 1 ignores nothing.
        nms_iou: of two detections that overlap more than this the better one stays, 0…1.

    Raises:
        UserError: for an unknown ``matching``.
    """

    def __init__(
        self,
        width: int,
        max_boxes: int,
        matching: str,
        lambda_box: float,
        lambda_obj: float,
        lambda_iou: float,
        ignore_iou: float,
        nms_iou: float,
    ) -> None:
        super().__init__()
        if matching not in MATCHERS:
            raise UserError(
                "model.matching",
                f"model.matching={matching}: expected one of {', '.join(MATCHERS)}",
            )
        self.max_boxes = max_boxes
        self.matching = matching
        self.lambda_box = lambda_box
        self.lambda_obj = lambda_obj
        self.lambda_iou = lambda_iou
        self.ignore_iou = ignore_iou
        self.nms_iou = nms_iou
        self.trunk = Trunk(width, (1, 2, 2))
        channels = self.trunk.channels
        self.neck = _conv(channels, channels // 2, 3)
        self.head = nn.Conv2d(channels // 2, 5, 1)
        _start_head(self.head, presence=CELL_PRIOR)

    def forward(
        self, images: Tensor, targets: Targets | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        boxes, logits = self.raw_outputs(images)
        if self.training:
            assert targets is not None, "training needs targets"
            return self._losses(boxes, logits, targets)
        return [
            _detections(cells, scores, self.nms_iou, self.max_boxes)
            for cells, scores in zip(boxes, logits.sigmoid(), strict=True)
        ]

    def raw_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, P, 4], xyxy, and objectness logits [B, P] of all P cells, float32."""
        said = self.head(self.neck(self.trunk(images))).float()
        cell = 1 / said.new_tensor([said.shape[3], said.shape[2]])
        grid = _centres(said)
        said = said.flatten(2).mT
        centre = grid + said[..., :2].tanh() * cell
        box = torch.cat([centre, said[..., 2:4].sigmoid()], 2)
        return box_convert(box, "cxcywh", "xyxy"), said[..., 4]

    def _losses(self, boxes: Tensor, logits: Tensor, targets: Targets) -> dict[str, Tensor]:
        pairs = affinity(targets.boxes, boxes)
        found = MATCHERS[self.matching](pairs, targets.mask)
        matched = found >= 0
        place = found.clamp(min=0)
        answering = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        box, giou = _box_losses(answering, targets.boxes, matched)

        taken = torch.zeros_like(logits).scatter_add(1, place, matched.to(logits.dtype))
        near = (pairs.iou * targets.mask[..., None]).amax(1) > self.ignore_iou
        entropy = F.binary_cross_entropy_with_logits(logits, taken, reduction="none")
        counted = entropy * ((taken > 0) | ~near)
        objectness = counted.sum() / matched.sum().clamp(min=len(logits))
        return {
            "box": self.lambda_box * box,
            "objectness": self.lambda_obj * objectness,
            "giou": self.lambda_iou * giou,
        }


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None
) -> nn.Module:
    """Convolution (padded to keep the size over the stride), batch norm, SiLU."""
    return Conv2dNormActivation(inputs, outputs, kernel, stride, padding, activation_layer=nn.SiLU)


def _start_head(head: nn.Linear | nn.Conv2d, presence: float) -> None:
    """Start at centred boxes of ``SIZE_PRIOR`` and at this presence, almost whatever is seen."""
    assert head.bias is not None
    nn.init.normal_(head.weight, std=0.01)
    with torch.no_grad():
        shares = head.bias.new_tensor([SIZE_PRIOR, SIZE_PRIOR, presence])
        head.bias[:2] = 0
        head.bias[2:] = shares.logit()


def _centres(features: Tensor) -> Tensor:
    """[H·W, 2] float32: x and y of the cells' centres as shares of the frame, row by row."""
    height, width = features.shape[-2:]
    y, x = (
        (torch.arange(count, device=features.device, dtype=torch.float32) + 0.5) / count
        for count in (height, width)
    )
    return torch.cartesian_prod(y, x).flip(1)


def _box_losses(boxes: Tensor, true: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """L1 (summed over coordinates) and GIoU loss, means over the valid pairs; 0 without any.

    Args:
        boxes: [..., 4] xyxy.
        true: [..., 4] xyxy.
        valid: [...] bool.
    """
    count = valid.sum().clamp(min=1)
    distance = (boxes - true).abs().sum(-1)
    giou = generalized_box_iou_loss(boxes, true)
    return (distance * valid).sum() / count, (giou * valid).sum() / count


def _detections(boxes: Tensor, scores: Tensor, nms_iou: float, limit: int) -> Detections:
    """What is left of one frame's boxes [P, 4] and scores [P]: at most ``limit``, best first."""
    boxes = clip_boxes_to_image(boxes, (1, 1))
    whole = remove_small_boxes(boxes, SMALLEST)
    boxes, scores = boxes[whole], scores[whole]
    kept = nms(boxes, scores, nms_iou)[:limit]
    labels = torch.zeros(len(kept), dtype=torch.int64, device=boxes.device)
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels}
