"""Rules of the keys of RGB + X detectors."""

from __future__ import annotations

from research.config.rules import (
    BELOW_ONE,
    COUNT,
    FRACTION,
    PATH,
    Rule,
    list_of,
    number,
    one_of,
    whole,
)

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
    "score_threshold": BELOW_ONE,
    "nms_iou": FRACTION,
    "rpn_nms_iou": FRACTION,
    "max_detections": COUNT,
}
