"""Rules of the keys of every task."""

from __future__ import annotations

from research.config.rules import MONITOR, Rule

RULES: dict[str, Rule] = {
    "monitor": MONITOR,
}
