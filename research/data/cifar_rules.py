"""Rules of the keys of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, TRUTH, Rule, changeable, number, one_of, whole
from research.data.augment_rules import FLIP
from research.utils.errors import UserError

SIDE = 32
"""Of the images, in pixels."""

RULES: dict[str, Rule] = {
    "classes": Rule("10 or 100", lambda value: value in (10, 100)),
    "val_images": COUNT,
    "padding": whole(0),
    "padding_mode": one_of("constant", "reflect"),
    "random_flip": FLIP,
    "on_device": changeable(TRUTH),
    "device_budget": changeable(number(at_least=0)),
}


def faults(job: Job) -> Iterator[UserError]:
    dataset = job.settings["dataset"]
    option, classes = job.choices.get("dataset"), dataset["classes"]
    if dataset["padding_mode"] == "reflect" and dataset["padding"] >= SIDE:
        yield UserError(
            "dataset.padding",
            f"dataset.padding={dataset['padding']} with dataset.padding_mode=reflect: images have "
            f"{SIDE} px",
            f"set at most {SIDE - 1}",
        )
    if option in ("cifar10", "cifar100") and option != f"cifar{classes}":
        yield UserError(
            "dataset.classes",
            f"dataset.classes={classes} with dataset={option}",
            f"choose dataset=cifar{classes}; dataset.num_classes only checks the number",
        )
