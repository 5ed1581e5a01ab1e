"""Rules of the keys of FastNet."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, Rule, list_of, number
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "widths": list_of(COUNT, min_length=1),
    "bias_scale": number(above=0),
    "logit_scale": number(above=0),
}


def faults(job: Job) -> Iterator[UserError]:
    groups, side = len(job.settings["model"]["widths"]), job.settings["dataset"].get("image_size")
    # The whitening takes a pixel, each group halves the side and rounds down.
    if side is not None and side - 1 < 2**groups:
        yield UserError(
            "model.widths",
            f"model.widths: {groups} groups halve {side - 1} px {groups} times",
            f"use fewer, or set dataset.image_size={2**groups + 1} or more",
        )
