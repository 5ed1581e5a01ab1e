"""Rules of the keys of ``task=classification``."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import BELOW_ONE, Rule, one_of
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "label_smoothing": BELOW_ONE,
    "views": one_of("none", "flip", "flip_shift"),
}


def faults(job: Job) -> Iterator[UserError]:
    views, variant = job.settings["task"]["views"], job.settings["compression"]["variant"]
    if views != "none" and variant != "none":
        yield UserError(
            "task.views",
            f"task.views={views} with compression={variant}: views are made of pixels",
            "remove it, or set task.views=none",
        )
