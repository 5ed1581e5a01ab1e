"""Rules of the keys of ``dataset.augmentation``, of images for classification."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, Rule, number, one_of, whole
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "policy": one_of("randaugment", "trivialaugment", "autoaugment_cifar"),
    "magnitude": whole(0, 30),
    "operations": COUNT,
    "erasing": number(at_least=0, at_most=1),
    "mixup": number(at_least=0),
    "cutmix": number(at_least=0),
    "mix_probability": number(at_least=0, at_most=1),
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
                " it changes pixels, which are never made",
                "leave it out, or add compression.source=pixels",
            )
