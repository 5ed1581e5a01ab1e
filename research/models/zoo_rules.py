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
    if job.settings["model"]["name"] is None:
        yield UserError(
            "model.name",
            f"model.name is required for model={job.choices.get('model')}",
            "add model.name=NAME of a timm model, such as model.name=vit_tiny_patch16_224",
        )
