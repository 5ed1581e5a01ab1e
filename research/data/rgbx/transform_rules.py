"""Rules of the keys of ``dataset.augmentation``, of RGB + X frames."""

from __future__ import annotations

from research.config.rules import Rule, number, pair

RULES: dict[str, Rule] = {
    "zoom": pair(number(above=0)),
    "brightness": number(at_least=0, at_most=1),
    "contrast": number(at_least=0, at_most=1),
    "noise": number(at_least=0, at_most=1),
    "modality_dropout": number(at_least=0, at_most=1),
}
