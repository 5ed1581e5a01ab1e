"""TinyDet and BigDet: small single-class detectors that train from scratch on a laptop's CPU.

Both take frames [B, 3, H, W], floats 0…1, sides multiples of 32, and have the interface of
torchvision's detectors: in training mode ``model(images, targets)`` returns a dict of weighted
losses (``box``, ``objectness``, ``giou``); in evaluation mode ``model(images)`` returns one dict
per frame with ``boxes`` [n, 4] (xyxy, fractions of the frame), ``scores`` [n] and ``labels`` [n]
(all 0), sorted by score.

The components come from Darknet-53 (Redmon & Farhadi, 2018: residual blocks, one objectness per
cell, ignored predictions), DETR (Carion et al., 2020: one-to-one matching, L1 and GIoU losses)
and integral regression (Sun et al., 2018: soft-argmax).
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
    nms,
    remove_small_boxes,
)

from research.batch import Targets
from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD
from research.models.export import ExportForm
from research.models.matching import MATCHERS, affinity, lies_in
from research.utils.errors import UserError
from research.utils.whole_batch import whole_batch, whole_mean

STRIDE: Final = 32
SIZE_PRIOR: Final = 0.25
"""Width and height of every box before training, as a fraction of the frame."""
CELL_PRIOR: Final = 0.01
"""BigDet's objectness before training (Lin et al., 2017): most cells are empty."""
EPSILON: Final = 1e-7
"""Added to divisors, which are areas; that of torchvision's losses."""
MIN_SIDE: Final = 1e-4
"""Shortest side of a box, as a fraction of the frame; thinner boxes are dropped."""

Detections = dict[str, Tensor]


class Residual(nn.Module):
    """Darknet-53's residual block: 1×1 to half the channels, 3×3 back."""

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
        width: channels at stride 4; they double with every stage.
        depths: residual blocks at strides 8, 16 and 32.
    """

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        # Non-overlapping patches: on a CPU half the cost of a 7×7 convolution.
        layers: list[nn.Module] = [Normalise(), _conv(3, width, 4, stride=4, padding=0)]
        for depth in depths:
            layers.append(_conv(width, 2 * width, 3, stride=2))
            width *= 2
            layers.extend(Residual(width) for _ in range(depth))
        super().__init__(*layers)
        self.channels = width


class Normalise(nn.Module):
    """Normalise by ImageNet's mean and std, which are buffers outside the state dict."""

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
                f"the detectors take frames whose sides are multiples of {STRIDE} px, not "
                f"{width}×{height}",
                f"use data with dataset.image_size={near}",
            )
        return (images - self.mean) / self.std


class RawDetections(nn.Module):
    """A detector's boxes [B, P, 4] and scores [B, P] of all P cells, before suppression."""

    def __init__(self, detector: TinyDet | BigDet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits, *_ = self.detector.raw_outputs(images)
        count = images.shape[0]  # len would make the batch size a constant of the exported file
        return boxes.reshape(count, -1, 4), logits.sigmoid().reshape(count, -1)


class TinyDet(nn.Module):
    """At most one object per frame: one presence logit and one box (0.3 M parameters at width 16).

    An attention map locates the object: its expected position (soft-argmax) plus a predicted
    offset is the box's centre. The attention-weighted features, concatenated with the frame's mean
    features, predict offset, size and presence. If a frame has several true boxes, the largest is
    the target. The attention has a loss of its own, the cross-entropy of the cell that holds the
    centre: trained through the box loss alone it takes several times as many epochs. A frame with
    ignore regions but no true box has no loss: its presence is unknown.

    Args:
        width: channels at stride 4, even.
        lambda_box: weight of the L1 distance of the box, summed over its coordinates.
        lambda_obj: weight of the presence's binary cross-entropy.
        lambda_iou: weight of the GIoU loss; 0 turns it off.
        lambda_att: weight of the attention's cross-entropy; 0 turns it off.
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
        _init_head(self.head, presence=0.5)

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
        """Boxes [B, 4] xyxy, presence logits [B], attention logits [B, H, W]; all float32."""
        features = self.trunk(images)
        # In half precision a coordinate would be off by a pixel.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            grid = _centres(features)
            attention = self.attend(features)[:, 0]
            weights = attention.flatten(1).softmax(1)
            attended = torch.einsum("bp,bcp->bc", weights, features.flatten(2))
            outputs = self.head(torch.cat([attended, features.mean((2, 3))], 1))
            centre = weights @ grid + outputs[:, :2].tanh() / 2
            box = torch.cat([centre, outputs[:, 2:4].sigmoid()], 1)
            return box_convert(box, "cxcywh", "xyxy"), outputs[:, 4], attention

    def export_form(self) -> ExportForm:
        limits = {"nms_iou": 1.0, "max_boxes": 1}
        return ExportForm(RawDetections(self).eval(), ("images",), ("boxes", "scores"), limits)

    def _losses(
        self, boxes: Tensor, logits: Tensor, attention: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        present = targets.mask.any(1)
        sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
        largest = sides.prod(-1).where(targets.mask, -1).argmax(1)
        target = targets.boxes[torch.arange(len(boxes), device=boxes.device), largest]
        box, giou = _box_losses(boxes, target, present)
        known: int | Tensor = len(logits)
        if targets.ignored is None:
            objectness = F.binary_cross_entropy_with_logits(logits, present.float())
        else:
            counted = present | ~targets.ignored.any(1)
            known = counted.sum()
            objectness = F.binary_cross_entropy_with_logits(
                logits, present.float(), counted.float(), reduction="sum"
            ) / known.clamp(min=1)
        height, width = attention.shape[-2:]
        x, y = ((target[:, :2] + target[:, 2:]) / 2).T
        column = (x * width).long().clamp(max=width - 1)
        cell = (y * height).long().clamp(max=height - 1) * width + column
        entropy = F.cross_entropy(attention.flatten(1), cell, reduction="none")
        return {
            "box": self.lambda_box * box,
            "objectness": self.lambda_obj * whole_mean(objectness, known),
            "giou": self.lambda_iou * giou,
            "attention": self.lambda_att * (entropy * present).sum() / whole_batch(present.sum()),
        }


class BigDet(nn.Module):
    """Several objects per frame, up to ``max_boxes`` (0.86 M parameters at width 24).

    Every cell of a grid at stride 32 predicts an objectness and a box: its centre is within one
    cell of the cell's centre, its sides are any fraction of the frame. True boxes are matched
    one-to-one with the cells' boxes, see ``research.models.matching``. Matched cells learn the box
    and objectness 1, other cells objectness 0; unmatched cells whose box overlaps a true box by
    more than ``ignore_iou`` are ignored (Redmon & Farhadi, 2018, §2.1), and so are those whose box
    lies in an ignore region (``matching.lies_in``). In evaluation the best ``max_boxes`` cells
    after non-maximum suppression are returned.

    Args:
        width: channels at stride 4, even.
        max_boxes: most detections of a frame.
        matching: ``greedy`` or ``hungarian``.
        lambda_box: weight of the L1 distance of matched boxes, summed over the coordinates.
        lambda_obj: weight of the objectness' binary cross-entropy, summed over the cells. Both
            are divided by the number of matched boxes in the batch, this one by no less than the
            number of frames, so that the loss of empty frames stays small.
        lambda_iou: weight of the GIoU loss of matched boxes; 0 turns it off.
        ignore_iou: see above, 0…1; 1 ignores no cells.
        nms_iou: IoU threshold of non-maximum suppression, 0…1.

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
        _init_head(self.head, presence=CELL_PRIOR)

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
        """Boxes [B, P, 4] xyxy and objectness logits [B, P] of all P cells; float32."""
        outputs = self.head(self.neck(self.trunk(images))).float()
        height, width = outputs.shape[-2:]
        grid = _centres(outputs)
        outputs = outputs.flatten(2).mT
        x, y = outputs[..., :2].tanh().unbind(-1)
        centre = grid + torch.stack([x / width, y / height], -1)
        box = torch.cat([centre, outputs[..., 2:4].sigmoid()], 2)
        return box_convert(box, "cxcywh", "xyxy"), outputs[..., 4]

    def export_form(self) -> ExportForm:
        limits = {"nms_iou": self.nms_iou, "max_boxes": self.max_boxes}
        return ExportForm(RawDetections(self).eval(), ("images",), ("boxes", "scores"), limits)

    def _losses(self, boxes: Tensor, logits: Tensor, targets: Targets) -> dict[str, Tensor]:
        pairs = affinity(targets.boxes, boxes)
        matches = MATCHERS[self.matching](pairs, targets.mask)
        matched = matches >= 0
        index = matches.clamp(min=0)
        matched_boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        box, giou = _box_losses(matched_boxes, targets.boxes, matched)

        target = torch.zeros_like(logits).scatter_add(1, index, matched.to(logits.dtype))
        overlaps = (pairs.iou * targets.mask[..., None]).amax(1) > self.ignore_iou
        if targets.ignored is not None:
            overlaps |= lies_in(boxes, targets.boxes, targets.ignored)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        counted = entropy * ((target > 0) | ~overlaps)
        count = matched.sum()
        objectness = counted.sum() / whole_batch(count, torch.full_like(count, len(logits)))
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


def _init_head(head: nn.Linear | nn.Conv2d, presence: float) -> None:
    """Initialize to centred boxes of ``SIZE_PRIOR`` and this presence, nearly input-independent."""
    assert head.bias is not None
    nn.init.normal_(head.weight, std=0.01)
    with torch.no_grad():
        priors = head.bias.new_tensor([SIZE_PRIOR, SIZE_PRIOR, presence])
        head.bias[:2] = 0
        head.bias[2:] = priors.logit()


def _centres(features: Tensor) -> Tensor:
    """[H·W, 2]: x and y of the cells' centres, fractions of the frame, row-major."""
    height, width = features.shape[-2:]
    y, x = (
        (torch.arange(count, device=features.device, dtype=features.dtype) + 0.5) / count
        for count in (height, width)
    )
    return torch.cartesian_prod(y, x).flip(1)


def _box_losses(boxes: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """L1 (summed over coordinates) and GIoU loss, means over the valid pairs; 0 if there are none.

    Args:
        boxes: [..., 4] xyxy.
        target: [..., 4] xyxy.
        valid: [...] bool.
    """
    count = whole_batch(valid.sum())
    distance = (boxes - target).abs().sum(-1)
    giou = giou_loss(boxes, target)
    return (distance * valid).sum() / count, (giou * valid).sum() / count


def giou_loss(boxes: Tensor, target: Tensor) -> Tensor:
    """1 − GIoU (Rezatofighi et al., 2019) of each pair of boxes [..., 4] xyxy, [...] in 0…2.

    Equal to torchvision's ``generalized_box_iou_loss``, which indexes by a mask, so that the host
    waits for the device in every step.
    """
    low, high = torch.minimum(boxes, target), torch.maximum(boxes, target)
    overlap = low[..., 2:] - high[..., :2]
    intersection = _area(overlap).where((overlap > 0).all(-1), 0)
    union = _area(boxes[..., 2:] - boxes[..., :2]) + _area(target[..., 2:] - target[..., :2])
    union = union - intersection
    hull = _area(high[..., 2:] - low[..., :2])
    return 1 - intersection / (union + EPSILON) + (hull - union) / (hull + EPSILON)


def _area(sides: Tensor) -> Tensor:
    """[...] from [..., 2]; the derivative of ``prod`` would count its zeros on the host."""
    return sides[..., 0] * sides[..., 1]


def _detections(boxes: Tensor, scores: Tensor, nms_iou: float, limit: int) -> Detections:
    """Non-maximum suppression of one frame's boxes [P, 4] and scores [P]; at most ``limit``."""
    boxes = clip_boxes_to_image(boxes, (1, 1))
    valid = remove_small_boxes(boxes, MIN_SIDE)
    boxes, scores = boxes[valid], scores[valid]
    keep = nms(boxes, scores, nms_iou)[:limit]
    labels = torch.zeros(len(keep), dtype=torch.int64, device=boxes.device)
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels}
