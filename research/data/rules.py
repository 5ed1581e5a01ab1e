"""Rules of keys that several data sets have.

Rules of one data set are in the ``*_rules.py`` next to it, or in the ``rules.py`` of its package.
"""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import (
    BELOW_ONE,
    COUNT,
    NOTHING,
    PATH,
    Rule,
    changeable,
    list_of,
    number,
    or_null,
    whole,
)
from research.utils.errors import UserError

RGB = ("red", "green", "blue")

RULES: dict[str, Rule] = {
    "image_size": whole(32),
    "mean": or_null(list_of(number(), min_length=3)),
    "std": or_null(list_of(number(above=0), min_length=3)),
    "num_classes": whole(2),
    "val_fraction": number(above=0, below=1),
    "test_fraction": BELOW_ONE,
    "split_seed": whole(0),
    "folds": whole(3),
    "fold": whole(0),
    "max_train_images": COUNT,
    "max_val_images": COUNT,
    "cache_dir": changeable(PATH),
    "root": PATH,
    "demo": NOTHING,
}


def faults(job: Job) -> Iterator[UserError]:
    dataset = job.settings["dataset"]
    for key in ("mean", "std"):
        values = dataset.get(key)
        if values and len(values) != len(RGB) and "channels" not in job.declared.provided:
            yield UserError(
                f"dataset.{key}",
                f"dataset.{key}={values}: expected a list of 3, for red, green and blue",
            )
    folds, fold = dataset.get("folds"), dataset.get("fold")
    if folds is not None and fold >= folds:
        yield UserError(
            "dataset.fold",
            f"dataset.fold={fold} with dataset.folds={folds}: expected from 0 to {folds - 1}",
        )
