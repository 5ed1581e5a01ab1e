"""Rules of the keys of detection tasks."""

from __future__ import annotations

from research.config.rules import FRACTION, Rule, number

RULES: dict[str, Rule] = {
    "iou": number(above=0, at_most=1),
    "score": FRACTION,
    "presence": FRACTION,
}
