"""Splits of labelled files: classes, held-out fractions, balanced subsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from research.data.texts import names_alike
from research.utils.counts import by_kind
from research.utils.errors import UserError

SplitT = TypeVar("SplitT")


@dataclass(frozen=True)
class Split:
    """The files of one split.

    Attributes:
        files: image paths.
        labels: class index of each file.
        skipped: counts of files that were found damaged, by kind.
    """

    files: list[Path]
    labels: list[int]
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.files)


def split_named(splits: Mapping[str, SplitT], split: str, where: object, no_test: str) -> SplitT:
    """One split of a data set.

    Args:
        splits: all of them.
        split: its name.
        where: the data set, for messages.
        no_test: how to get a test split.

    Raises:
        UserError: if the data set has no such split.
    """
    if split in splits:
        return splits[split]
    message = f"split={split}: {where} has {', '.join(splits)}"
    raise UserError("split", message, no_test if split == "test" else "")


def evenly_spaced(count: int, limit: int | None) -> NDArray[np.int64]:
    """Indices of at most ``limit`` of ``count`` samples, with the first and the last."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def class_of(name: str) -> str:
    """The class folder in a path relative to the root."""
    return name.split("/", 1)[0]


def common_classes(roots: list[Path], indexes: list[dict[str, str]], key: str) -> list[str]:
    """The sorted classes of all training roots, which must be equal or disjoint.

    Args:
        roots: the folders.
        indexes: the files of each folder, by relative path.
        key: the configuration key that names the folders.

    Raises:
        UserError: if they share some classes but not all.
    """
    classes = [{class_of(name) for name in index} for index in indexes]
    union = set().union(*classes)
    for root, own in zip(roots, classes, strict=True):
        shared = own & set().union(*(other for other in classes if other is not own))
        missing = sorted(union - own)
        if shared and missing:
            raise UserError(
                key,
                f"{key}: {root} has no class folder {missing[0]!r}, which another training folder "
                "has",
                "use training folders with the same classes, or with no class in common",
            )
    return sorted(union)


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a random fraction of every class; ``skipped`` stays with the first part."""
    rng = np.random.default_rng((seed, 1))
    labels = np.array(split.labels)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(len(members) - 1, max(1, round(len(members) * fraction)))
        held_out[rng.permutation(members)[:count]] = True
    return (
        _subset(split, np.flatnonzero(~held_out), split.skipped),
        _subset(split, np.flatnonzero(held_out), {}),
    )


def subsample(split: Split, limit: int, seed: int) -> Split:
    """A random subset of ``limit`` files, balanced over the classes."""
    indices = balanced_subset(np.array(split.labels), limit, np.random.default_rng((seed, 2)))
    return _subset(split, indices, split.skipped)


def balanced_subset(
    labels: NDArray[np.int64], limit: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sorted indices of ``limit`` random samples, equally many per class as far as possible."""
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    rank = np.empty(len(order), dtype=np.int64)
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])


def _subset(split: Split, indices: np.ndarray, skipped: dict[str, int]) -> Split:
    files = [split.files[index] for index in indices]
    labels = [split.labels[index] for index in indices]
    return Split(files, labels, skipped)


def check_num_classes(num_classes: int | None, classes: Sequence[str], where: str) -> None:
    """Compare ``dataset.num_classes`` with the classes in the data.

    Raises:
        UserError: if they differ.
    """
    if num_classes not in (None, len(classes)):
        raise UserError(
            "dataset.num_classes",
            f"dataset.num_classes={num_classes}: {where} has {len(classes)} classes",
            f"set dataset.num_classes={len(classes)}, or use other data",
        )


def check_same_classes(
    classes: Sequence[str], eval_classes: set[str], root: Path, key: str
) -> None:
    """Refuse classes of an evaluation folder that are not in training.

    Args:
        classes: the training classes.
        eval_classes: the classes of the evaluation folder.
        root: the evaluation folder.
        key: the configuration key that names it.

    Raises:
        UserError: if there are such classes.
    """
    unknown = sorted(eval_classes - set(classes))
    missing = sorted(set(classes) - eval_classes)
    for known, name in names_alike([*classes, *unknown]):
        if name in unknown:
            raise UserError(
                key,
                f"{key}: {root} has class folder {name!r}, which differs from {known!r} of "
                "training in letter case, spaces or Unicode form",
                "rename it",
            )
    if unknown:
        raise UserError(
            key,
            f"{key}: {root} has class folder {format_names(unknown)}, which no training folder has"
            + (f", and lacks {format_names(missing)}" if missing else ""),
            "rename or remove it",
        )


def format_names(names: Sequence[str]) -> str:
    """The first three names and the number of further ones."""
    first = ", ".join(repr(name) for name in names[:3])
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_not_empty(name: str, split: Split, key: str) -> None:
    """Refuse a split without a readable file.

    Args:
        name: name of the split.
        split: its files.
        key: the configuration key that names its folder.

    Raises:
        UserError: if there is no file.
    """
    if not split.files:
        kinds = by_kind(split.skipped)
        raise UserError(
            key,
            f"{key}: no readable image in the {name} split" + (f" ({kinds})" if kinds else ""),
            f"check the files in {key}",
        )
