"""Rules of the keys of photo pairs."""

from __future__ import annotations

from research.config.rules import (
    FRACTION,
    PATH,
    TEXT,
    Rule,
    list_of,
    mapping_of,
    number,
    one_of,
    or_null,
    whole,
)

RULES: dict[str, Rule] = {
    "labels": one_of("pairs", "votes"),
    "votes_file": PATH,
    "ties": one_of("drop", "soft"),
    "min_agreement": FRACTION,
    "min_reviewers": whole(0),
    "quick_experiment": number(above=0, at_most=1),
    "audit": one_of("warn", "error"),
    "fit": one_of("pad", "crop"),
    "features": list_of(TEXT, min_length=1),
    "feature_weights": mapping_of(or_null(PATH)),
}
