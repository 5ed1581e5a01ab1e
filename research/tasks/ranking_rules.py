"""Rules of the keys of ``task=ranking``."""

from __future__ import annotations

from research.config.rules import Rule, one_of

RULES: dict[str, Rule] = {
    "target": one_of("soft", "majority"),
}
