"""What a version is to be made of: samples, the recipe, and the hash that names the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from research.data.index import ProgressCallback
from research.data.warehouse.checksums import sha256_of
from research.data.warehouse.manifest import SCHEMA, Tensor
from research.utils.errors import UserError

STAMPED_AT_ONCE = 512
"""Files in flight: a task for each of a million at once would fill the memory."""


@dataclass(frozen=True)
class Item:
    """One sample to be made.

    Attributes:
        name: unique in the source, a relative path.
        group: what it must stay together with.
        file: the image.
        target: what is known of it, as JSON can hold it.
    """

    name: str
    group: str
    file: Path
    target: Any


class Made(NamedTuple):
    """A sample's rows by tensor name, and why it was not read the direct way ('' if it was)."""

    arrays: dict[str, NDArray[np.generic]]
    detour: str = ""


class Recipe(Protocol):
    """How a file becomes a sample. Small and picklable: it travels to every process."""

    @property
    def kind(self) -> str:
        """``frames`` or ``coefficients``."""
        ...

    def transform(self) -> dict[str, Any]:
        """Its settings, for the manifest and the version."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What ``make`` gives."""
        ...

    def line(self, item: Item) -> dict[str, Any]:
        """What ``samples.jsonl`` says of an item beside its name, group and hash."""
        ...

    def make(self, item: Item) -> Made:
        """One sample.

        Raises:
            DamagedImage: when the file cannot be read.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """Everything that a version is made from.

    Attributes:
        recipe: how.
        classes: class names in index order.
        items: the samples in order, those of a group together.
        splits: group to split, in the order of the items.
        reports: group to counts of what was left out before.
        runs: counts of the source by run, for the manifest.
        damage: what was left out before, by kind.
        thresholds: the limits that the source was held to.
    """

    recipe: Recipe
    classes: list[str]
    items: list[Item]
    splits: dict[str, str]
    reports: dict[str, dict[str, int]] = field(default_factory=dict)
    runs: dict[str, dict[str, int]] = field(default_factory=dict)
    damage: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)


class Stamp(NamedTuple):
    """The content of a file, and what tells cheaply that it has changed since."""

    sha256: str
    bytes: int
    modified_ns: int


def version_of(plan: Plan, stamps: Sequence[Stamp]) -> str:
    """Hash of data and transform: the same wherever the files lie and whatever their dates."""
    splits: dict[str, list[str]] = {}
    for group, split in plan.splits.items():
        splits.setdefault(split, []).append(group)
    content = {
        "schema": SCHEMA,
        "kind": plan.recipe.kind,
        "transform": plan.recipe.transform(),
        "classes": plan.classes,
        "splits": splits,
        "reports": plan.reports,
        "runs": plan.runs,
        "damage": plan.damage,
    }
    digest = sha256(_canonical(content))
    for item, stamp in zip(plan.items, stamps, strict=True):
        digest.update(_canonical([item.name, item.group, stamp.sha256, item.target]))
    return digest.hexdigest()[:16]


def _canonical(content: object) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{text}\n".encode()


def stamp_files(
    items: Sequence[Item], workers: int, progress: ProgressCallback | None
) -> list[Stamp]:
    """The content of every item's file.

    Raises:
        UserError: for a file that cannot be read.
    """
    stamps: list[Stamp] = []
    # Hashing and reading let go of the interpreter: threads are enough.
    with ThreadPoolExecutor(min(16, 2 * workers)) as pool:
        for start in range(0, len(items), STAMPED_AT_ONCE):
            stamps += pool.map(_stamp, items[start : start + STAMPED_AT_ONCE])
            if progress is not None:
                progress("hashing files", len(stamps), len(items))
    return stamps


def _stamp(item: Item) -> Stamp:
    try:
        stat = item.file.stat()
        return Stamp(sha256_of(item.file), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(
            "source",
            f"{item.file}: {error.strerror or error}",
            "restore the file or remove its label",
        ) from None
