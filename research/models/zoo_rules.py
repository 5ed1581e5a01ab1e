"""Rules of the keys of networks of timm."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import MAPPING, Rule, or_null
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "kwargs": or_null(MAPPING),
}


def faults(job: Job) -> Iterator[UserError]:
    yield from job.required(
        "model.name", "model.name=NAME of a timm model, such as model.name=vit_tiny_patch16_224"
    )
