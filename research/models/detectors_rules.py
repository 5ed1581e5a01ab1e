"""Rules of the keys of TinyDet and BigDet."""

from __future__ import annotations

from research.config.rules import COUNT, FRACTION, Rule, number, one_of, whole

RULES: dict[str, Rule] = {
    "width": whole(2),
    "max_boxes": COUNT,
    "matching": one_of("greedy", "hungarian"),
    "lambda_box": number(at_least=0),
    "lambda_obj": number(at_least=0),
    "lambda_iou": number(at_least=0),
    "lambda_att": number(at_least=0),
    "ignore_iou": FRACTION,
    "nms_iou": FRACTION,
}
