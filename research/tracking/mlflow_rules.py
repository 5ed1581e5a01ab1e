"""Rules of the keys of ``logging.mlflow``."""

from __future__ import annotations

from research.config.rules import ADDRESS, Rule

RULES: dict[str, Rule] = {
    "uri": ADDRESS,
}
