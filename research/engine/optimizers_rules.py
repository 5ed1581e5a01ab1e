"""Rules of the keys of optimizers."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import BELOW_ONE, MAPPING, Rule, list_of, number, one_of
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "lr": number(above=0),
    "momentum": BELOW_ONE,
    "weight_decay": number(at_least=0),
    "betas": list_of(BELOW_ONE, 2),
    "alpha": BELOW_ONE,
    "eps": number(above=0),
    "library": one_of("timm", "torch"),
    "kwargs": MAPPING,
}


def faults(job: Job) -> Iterator[UserError]:
    optimizer = job.settings["optimizer"]
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        yield UserError(
            "optimizer.nesterov",
            "optimizer.nesterov=true with optimizer.momentum=0: nesterov needs a momentum",
            "set one, such as optimizer.momentum=0.9",
        )
