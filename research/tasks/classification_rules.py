"""Rules of the keys of ``task=classification``."""

from __future__ import annotations

from research.config.rules import BELOW_ONE, Rule

RULES: dict[str, Rule] = {
    "label_smoothing": BELOW_ONE,
}
