"""Rules of the keys of ``dataset.augmentation``, of images for classification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from research.config.group_rules import Job
from research.config.rules import COUNT, FRACTION, Rule, number, one_of, whole
from research.utils.errors import UserError

ALTERNATING: Final = "alternating"
FLIP: Final = Rule(
    f"true or false, or {ALTERNATING}",
    lambda value: isinstance(value, bool) or value == ALTERNATING,
    ("true", "false", ALTERNATING),
)
"""Of ``random_flip``, see ``research.data.transforms.flipped``."""

RULES: dict[str, Rule] = {
    "policy": one_of("randaugment", "trivialaugment", "autoaugment_cifar"),
    "magnitude": whole(0, 30),
    "operations": COUNT,
    "erasing": FRACTION,
    "mixup": number(at_least=0),
    "cutmix": number(at_least=0),
    "mix_probability": FRACTION,
}


def faults(job: Job) -> Iterator[UserError]:
    if job.settings["compression"].get("source") != "bitstream":
        return
    augmentation = job.settings["dataset"]["augmentation"]
    for key in ("policy", "erasing"):
        if augmentation[key]:
            yield UserError(
                f"dataset.augmentation.{key}",
                f"dataset.augmentation.{key}={augmentation[key]} with compression.source=bitstream:"
                " it changes pixels, but only coefficients are read",
                "remove it, or add compression.source=pixels",
            )
