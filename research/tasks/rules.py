"""Rules of keys that several tasks have."""

from __future__ import annotations

from research.config.rules import MONITOR, Rule

RULES: dict[str, Rule] = {
    "monitor": MONITOR,
}
