"""Rules of the keys of the MLflow tracker."""

from __future__ import annotations

from research.config.rules import ADDRESS, Rule

RULES: dict[str, Rule] = {
    "uri": ADDRESS,
}
