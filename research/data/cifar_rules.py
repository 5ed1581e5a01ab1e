"""Rules of the keys of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, TRUTH, Rule, changeable, number, whole
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "classes": Rule("10 or 100", lambda value: value in (10, 100)),
    "val_images": COUNT,
    "padding": whole(0),
    "on_device": changeable(TRUTH),
    "device_budget": changeable(number(at_least=0)),
}


def faults(job: Job) -> Iterator[UserError]:
    option, classes = job.choices.get("dataset"), job.settings["dataset"]["classes"]
    if option in ("cifar10", "cifar100") and option != f"cifar{classes}":
        yield UserError(
            "dataset.classes",
            f"dataset.classes={classes} with dataset={option}",
            f"choose dataset=cifar{classes}; dataset.num_classes only checks the number",
        )
