"""Rules of the keys of RGB + X arrays; those of their augmentation are in ``transform_rules``."""

from __future__ import annotations

from collections.abc import Iterator

from research.config.group_rules import Job
from research.config.rules import COUNT, NAME, REGEX, TEXT, Rule, list_of, one_of, or_null
from research.utils.errors import UserError

RULES: dict[str, Rule] = {
    "x": list_of(NAME, min_length=1),
    "class_names": list_of(TEXT, min_length=1),
    "group_by": or_null(REGEX),
    "missing_labels": one_of("negative", "error"),
    "statistics_images": COUNT,
}


def faults(job: Job) -> Iterator[UserError]:
    yield from job.required(
        "dataset.root", "dataset.root=FOLDER, a store or a folder with images/ and labels/"
    )
