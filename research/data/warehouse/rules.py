"""Rules of the keys of a prepared store."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, PATH, TRUTH, Rule, changeable, number, one_of
from research.data.augment_rules import FLIP
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "manifest": PATH,
    "max_boxes": COUNT,
    "random_flip": FLIP,
    "verify": changeable(one_of("always", "once", "never")),
    "on_device": changeable(TRUTH),
    "device_budget": changeable(number(at_least=0)),
}


def faults(job: Job) -> Iterator[UserError]:
    yield from job.required(
        "dataset.manifest", "dataset.manifest=FOLDER, as python -m research.prepare wrote it"
    )
