"""Rules of the keys of ``dataset.augmentation``, of RGB + X frames."""

from __future__ import annotations

from research.config.rules import FRACTION, Rule, number, pair

RULES: dict[str, Rule] = {
    "zoom": pair(number(above=0)),
    "brightness": FRACTION,
    "contrast": FRACTION,
    "noise": FRACTION,
    "modality_dropout": FRACTION,
}
