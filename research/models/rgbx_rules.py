"""Rules of the keys of RGB + X detectors."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import (
    BELOW_ONE,
    COUNT,
    FRACTION,
    Rule,
    list_of,
    number,
    one_of,
    whole,
)
from research.models.rules import HUB, is_local
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
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


def faults(job: Job) -> Iterator[UserError]:
    pretrained = job.settings["model"]["pretrained"]
    if pretrained in (None, True) or is_local(pretrained) or pretrained.startswith(HUB):
        return
    yield UserError(
        "model.pretrained",
        f"model.pretrained={pretrained}: there are no weights of this name for MiT encoders",
        f"set it to true, {HUB}ORG/NAME, a weights file or a run",
    )
