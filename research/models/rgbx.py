"""RGB + X detector: two MiT encoders that exchange features, FPN, Faster R-CNN.

The encoder is that of CMX (Zhang et al., 2023), the rest is torchvision's (Ren et al., 2015; Lin et
al., 2017). Batches are resized and normalised already, so torchvision's own resizing is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from research.batch import Targets
from research.models.detectors import MIN_SIDE, Detections
from research.models.dual import DualEncoder
from research.models.fusion import ONE_STREAM, TWO_STREAMS
from research.models.matching import lies_in
from research.models.mit import STAGES, STEM, VARIANTS
from research.models.pretrained import load_matching, report
from research.models.rules import HUB
from research.models.weight_files import KEY, find_weights, setting_text
from research.utils.errors import UserError
from research.utils.weights import state_dict
from research.utils.whole_batch import whole_mean

PREFIX: Final = "rgbx_mit_"
STRIDE: Final = 32
"""Stride of the last feature map; torchvision's own detectors pad to it as well."""
RATIOS: Final = (0.5, 1.0, 2.0)
ROI_SIDE: Final = 7
RPN_MATCHING: Final = {"fg_iou_thresh": 0.7, "bg_iou_thresh": 0.3, "positive_fraction": 0.5}
ROI_MATCHING: Final = {
    "fg_iou_thresh": 0.5,
    "bg_iou_thresh": 0.5,
    "positive_fraction": 0.25,
    "bbox_reg_weights": None,
}
"""Which anchors and proposals are positive and negative targets: torchvision's defaults."""


class RgbxDetector(nn.Module):
    """Normalised frames [B, 3 + X, H, W] to boxes, with the interface of torchvision's detectors.

    In training mode ``model(images, targets)`` returns the four losses (``loss_classifier``,
    ``loss_box_reg``, ``loss_objectness``, ``loss_rpn_box_reg``), in evaluation mode
    ``model(images)`` one dict per frame: ``boxes`` [n, 4] xyxy, fractions of the frame,
    ``scores`` [n] and ``labels`` [n] from 0, sorted by score. True boxes thinner than 1e-4 of the
    frame are left out. Negative anchors and proposals in an ignore region (``matching.lies_in``)
    are not sampled, as in Detectron's crowd filter (Girshick et al., 2018).

    Args:
        encoder: frames to feature maps at strides 4, 8, 16 and 32.
        fpn: feature maps to the feature pyramid.
        rpn: torchvision's region proposal network.
        roi_heads: torchvision's second stage.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        fpn: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.fpn = fpn
        self.rpn = rpn
        self.roi_heads = roi_heads
        for part in (rpn, roi_heads):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = CountingSampler(
                sampler.batch_size_per_image, sampler.positive_fraction
            )

    def forward(
        self, images: Tensor, targets: Targets | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        size = images.shape[-2:]
        # Anchor strides are computed by dividing sides. Padded at the right and bottom, where boxes
        # are clipped.
        bottom, right = (-int(side) % STRIDE for side in size)
        images = F.pad(images, (0, right, 0, bottom))
        maps = self.encoder(images)
        pyramid = self.fpn({str(level): features for level, features in enumerate(maps)})
        # Anchors take the features' dtype; in half precision coordinates would be off by pixels.
        pyramid = {level: features.float() for level, features in pyramid.items()}
        sizes = [(int(size[0]), int(size[1]))] * len(images)
        frame = torch.tensor([size[1], size[0]] * 2).to(images.device, non_blocking=True)
        true = None
        if self.training:
            assert targets is not None, "training needs targets"
            true = _as_torchvision(targets, frame)
        proposals, rpn_losses = self.rpn(ImageList(images, sizes), pyramid, true)
        if true is not None and targets is not None and targets.ignored is not None:
            proposals = [_outside(*each) for each in zip(proposals, true, strict=True)]
        detections, roi_losses = self.roi_heads(pyramid, proposals, sizes, true)
        if self.training:
            return {
                name: _mean_of(loss, part.fg_bg_sampler.count)
                for part, losses in ((self.roi_heads, roi_losses), (self.rpn, rpn_losses))
                for name, loss in losses.items()
            }
        return [
            {"boxes": d["boxes"] / frame, "scores": d["scores"], "labels": d["labels"] - 1}
            for d in detections
        ]

    def export_form(self) -> NoReturn:
        """Raises UserError: the graph depends on the number of proposals in a frame."""
        raise UserError(
            "RUN",
            "RGB + X detectors cannot be exported: the number of boxes in their second stage "
            "differs from frame to frame",
            "use research.load(RUN)",
        )

    def get_classifier(self) -> nn.Module:
        """As timm's networks: what depends on the number of classes."""
        predictor: nn.Module = self.roi_heads.box_predictor
        return predictor

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that order the parameters by depth, as timm's models have it.

        Both streams' blocks of one depth are one layer, and a stage's fusion belongs to its last.
        FPN, RPN and the boxes' head match nothing and so come last.

        Args:
            coarse: one group a stage instead of one a block.
        """
        stream = r"^encoder\.(?:rgb|x)\."
        fusion = [
            (rf"^encoder\.F[RF]Ms\.{index}\.", (index + 1,) if coarse else (index + 1, 99999))
            for index in range(STAGES)
        ]
        if coarse:
            return {"stages": [(stream + r"(?:patch_embed|block|norm)(\d)", None), *fusion]}
        return {
            "stem": stream + "patch_embed1",
            "blocks": [
                (stream + r"patch_embed(\d)", (0,)),
                (stream + r"block(\d)\.(\d+)", None),
                (stream + r"norm(\d)", (99999,)),
                *fusion,
            ],
        }


class CountingSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler of anchors or proposals, which keeps their number.

    torchvision's losses are means over them.

    Attributes:
        count: [] sampled in the last batch.
    """

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = super().__call__(matched_idxs)
        self.count = torch.stack([mask.sum() for mask in (*positive, *negative)]).sum()
        return positive, negative


class _ProposalNetwork(RegionProposalNetwork):
    """torchvision's, but negative anchors in an ignore region belong to no sample."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        for label, boxes, target in zip(labels, anchors, targets, strict=True):
            if "ignored" in target:
                label[_inside(boxes, target) & (label == 0)] = -1
        return labels, matched


class _ProposalHead(RPNHead):
    """torchvision's RPN head with float32 outputs in any precision, as its losses need them."""

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(features)
        return [part.float() for part in logits], [part.float() for part in deltas]


class _BoxPredictor(FastRCNNPredictor):
    """As ``_ProposalHead``."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(features)
        return logits.float(), deltas.float()


def rgbx_detector(
    name: str,
    num_classes: int,
    x_channels: int,
    fusion: str,
    norm: str,
    drop_path_rate: float,
    fpn_channels: int,
    anchor_sizes: Sequence[float],
    representation_size: int,
    rpn_samples: int,
    rois: int,
    proposals_train: int,
    proposals: int,
    score_threshold: float,
    nms_iou: float,
    rpn_nms_iou: float,
    max_detections: int,
    pretrained: str | bool | None,
) -> RgbxDetector:
    """Build an RGB + X detector.

    Args:
        name: ``rgbx_mit_b0`` … ``rgbx_mit_b5``.
        num_classes: classes without background.
        x_channels: channels beside RGB.
        fusion: ``cross_attention`` (CMX), ``sum``, ``concat`` (a 1×1 convolution), or ``rgb_only``
            and ``x_only``: one stream on part of the channels.
        norm: normalisation of the fused maps in cross attention: ``batch``, ``frozen`` or
            ``group``.
        drop_path_rate: stochastic depth of each stream, 0 <= x < 1.
        fpn_channels: channels of every pyramid level.
        anchor_sizes: sides in pixels, one for each of the five levels, strides 4 … 64.
        representation_size: width of the box head.
        rpn_samples: anchors sampled per frame for the RPN's loss.
        rois: proposals sampled per frame for the box head's loss.
        proposals_train: proposals kept per level before NMS and per frame after it, in training.
        proposals: the same in evaluation.
        score_threshold: detections with a lower score are dropped, 0…1.
        nms_iou: IoU threshold of non-maximum suppression per class, 0…1.
        rpn_nms_iou: the same for proposals.
        max_detections: most detections of a frame.
        pretrained: see ``load_pretrained``: ImageNet weights of an MiT for both streams, with its
            authors' parameter names or those of transformers, by default NVIDIA's of the hub; or
            weights of a whole detector of this kind.

    Raises:
        UserError: for an unknown value, data without X, or weights that do not fit.
    """
    _check(name, x_channels, fusion, anchor_sizes)
    encoder = DualEncoder(name.removeprefix(PREFIX), x_channels, fusion, norm, drop_path_rate)
    fpn = FeaturePyramidNetwork(list(encoder.dims), fpn_channels, LastLevelMaxPool())
    rpn = _proposal_network(
        fpn_channels, anchor_sizes, rpn_samples, proposals_train, proposals, rpn_nms_iou
    )
    roi_heads = RoIHeads(
        MultiScaleRoIAlign([str(level) for level in range(STAGES)], ROI_SIDE, sampling_ratio=2),
        TwoMLPHead(fpn_channels * ROI_SIDE**2, representation_size),
        _BoxPredictor(representation_size, num_classes + 1),
        **ROI_MATCHING,
        batch_size_per_image=rois,
        score_thresh=score_threshold,
        nms_thresh=nms_iou,
        detections_per_img=max_detections,
    )
    detector = RgbxDetector(encoder, fpn, rpn, roi_heads)
    if pretrained is not None:
        _load(detector, name, pretrained)
    return detector


def _load(detector: RgbxDetector, name: str, source: str | bool) -> None:
    """As ``load_pretrained``, for an MiT or a whole detector."""
    file = find_weights(source, name, f"{HUB}nvidia/mit-{name.removeprefix(PREFIX)}")
    state, where = state_dict(file.path, KEY), setting_text(source)
    if not any(key.startswith(("encoder.rgb.", "encoder.x.")) for key in state):
        detector.encoder.load(state, where, file)
        return
    inputs = [f"encoder.x.{STEM.removesuffix('.weight')}"]
    report(load_matching(detector, state, where, inputs), where, file)


def _proposal_network(
    channels: int,
    anchor_sizes: Sequence[float],
    samples: int,
    proposals_train: int,
    proposals: int,
    nms_iou: float,
) -> RegionProposalNetwork:
    anchors = tuple((size,) for size in anchor_sizes)
    counts = {"training": proposals_train, "testing": proposals}
    return _ProposalNetwork(
        AnchorGenerator(anchors, (RATIOS,) * len(anchors)),
        _ProposalHead(channels, len(RATIOS)),
        **RPN_MATCHING,
        batch_size_per_image=samples,
        pre_nms_top_n=counts,
        post_nms_top_n=counts,
        nms_thresh=nms_iou,
    )


def _check(name: str, x_channels: int, fusion: str, anchor_sizes: Sequence[float]) -> None:
    names = [PREFIX + variant for variant in VARIANTS]
    if name not in names:
        raise UserError("model.name", f"model.name={name}: expected one of {', '.join(names)}")
    known = (*TWO_STREAMS, *ONE_STREAM)
    if fusion not in known:
        raise UserError(
            "model.fusion", f"model.fusion={fusion}: expected one of {', '.join(known)}"
        )
    if x_channels < 1 and fusion != "rgb_only":
        raise UserError(
            "model.fusion",
            f"model.fusion={fusion}: the data have no channel beside RGB",
            "use model.fusion=rgb_only",
        )
    if len(anchor_sizes) != STAGES + 1:
        raise UserError(
            "model.anchor_sizes",
            f"model.anchor_sizes: expected {STAGES + 1} sides in pixels, one for each level of the "
            f"pyramid, not {len(anchor_sizes)}",
        )


def _as_torchvision(targets: Targets, frame: Tensor) -> list[dict[str, Tensor]]:
    """Targets of each frame with boxes in pixels and labels from 1; ``frame`` is (W, H, W, H)."""
    sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
    # The box targets are logarithms of sides; one loss that is not finite ends the run.
    valid = targets.mask & (sides > MIN_SIDE).all(-1)
    true = [
        {"boxes": boxes[mask] * frame, "labels": labels[mask] + 1}
        for boxes, labels, mask in zip(targets.boxes, targets.labels, valid, strict=True)
    ]
    if targets.ignored is not None:
        for target, boxes, ignored in zip(true, targets.boxes, targets.ignored, strict=True):
            target |= {"regions": boxes, "ignored": ignored, "frame": frame}
    return true


def _inside(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """[n] bool, True for boxes [n, 4] in pixels that lie in an ignore region of their frame."""
    return lies_in(boxes / target["frame"], target["regions"], target["ignored"])


def _outside(proposals: Tensor, target: dict[str, Tensor]) -> Tensor:
    """The proposals of a frame, without those in an ignore region that are no positive sample."""
    overlap = box_iou(target["boxes"], proposals) >= ROI_MATCHING["fg_iou_thresh"]
    return proposals[~_inside(proposals, target) | overlap.any(0)]


def _mean_of(mean: Tensor, count: Tensor) -> Tensor:
    """``whole_mean`` of a loss that torchvision divides by ``count``; 0 without a sample.

    There is none if the frames are ignore regions from edge to edge.
    """
    return whole_mean(mean.where(count > 0, 0), count)
