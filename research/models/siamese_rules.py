"""Rules of the keys of Siamese rankers."""

from __future__ import annotations

from research.config.rules import COUNT, NOTHING, TEXT, Rule, list_of, one_of

RULES: dict[str, Rule] = {
    "feature_sizes": NOTHING,
    "backbone": TEXT,
    "freeze": one_of("none", "partial", "full"),
    "head": one_of("bradley_terry", "mlp"),
    "mlp_hidden_dims": list_of(COUNT),
}
