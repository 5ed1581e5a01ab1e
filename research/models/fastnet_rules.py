"""Rules of the keys of FastNet."""

from __future__ import annotations

from research.config.rules import COUNT, Rule, list_of, number

RULES: dict[str, Rule] = {
    "widths": list_of(COUNT, min_length=1),
    "bias_scale": number(above=0),
    "logit_scale": number(above=0),
}
