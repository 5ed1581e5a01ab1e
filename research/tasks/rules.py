"""What every task's keys may be."""

from __future__ import annotations

from research.config.rules import MONITOR, Rule

RULES: dict[str, Rule] = {
    "monitor": MONITOR,
}
