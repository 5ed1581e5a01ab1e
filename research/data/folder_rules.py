"""Rules of the keys of image folders: ``dataset=imagefolder`` and the options based on it."""

from __future__ import annotations

from collections.abc import Iterator

from research.compression.rules import BLOCK
from research.config.group_rules import Job
from research.config.rules import PATH, Rule, list_of, number, or_null, pair, whole
from research.data.augment_rules import FLIP
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "train_dirs": list_of(PATH),
    "val_dir": or_null(PATH),
    "test_dir": PATH,
    "crop_scale": pair(number(above=0, at_most=1)),
    "crop_ratio": pair(number(above=0)),
    "crop_pct": or_null(number(above=0, at_most=1)),
    "stored_size": whole(16),
    "random_flip": FLIP,
}


def faults(job: Job) -> Iterator[UserError]:
    dataset = job.settings["dataset"]
    stored, size = dataset["stored_size"], dataset["image_size"]
    if stored is not None and job.settings["compression"].get("source") != "bitstream":
        yield UserError(
            "dataset.stored_size",
            f"dataset.stored_size={stored}: reading files like a store of coefficients needs "
            "coefficients from their bitstream",
            "add compression.source=bitstream, or remove dataset.stored_size",
        )
    if stored is not None and size is None:
        yield UserError(
            "dataset.image_size",
            f"dataset.stored_size={stored} needs the size of its crops",
            "add dataset.image_size=SIZE",
        )
    elif stored is not None and (stored % BLOCK or stored < size):
        yield UserError(
            "dataset.stored_size",
            f"dataset.stored_size={stored}: expected a multiple of {BLOCK}, at least "
            f"dataset.image_size={size}",
        )
    if job.settings["evaluate_at_end"] == "test" and dataset["test_dir"] is None:
        yield UserError(
            "evaluate_at_end",
            "evaluate_at_end=test: dataset.test_dir is not set",
            "add dataset.test_dir=FOLDER, or evaluate_at_end=val",
        )
    yield from job.required("dataset.train_dirs", "'dataset.train_dirs=[FOLDER]'")
