"""Rules of the keys of RGB + X detectors."""

from __future__ import annotations

from research.config.rules import COUNT, PATH, SHARE, Rule, list_of, number, one_of, whole

RULES: dict[str, Rule] = {
    "pretrained": PATH,
    "x_channels": COUNT,
    "fusion": one_of("cross_attention", "sum", "concat", "rgb_only", "x_only"),
    "norm": one_of("batch", "frozen", "group"),
    "fpn_channels": COUNT,
    "anchor_sizes": list_of(number(above=0), 5, increasing=True),
    "representation_size": COUNT,
    "rpn_samples": whole(2),
    "rois": whole(2),
    "proposals_train": COUNT,
    "proposals": COUNT,
    "score_threshold": SHARE,
    "nms_iou": number(at_least=0, at_most=1),
    "rpn_nms_iou": number(at_least=0, at_most=1),
    "max_detections": COUNT,
}
