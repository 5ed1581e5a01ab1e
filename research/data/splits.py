"""The splits of image folders: which files, which classes, what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from research.utils.errors import UserError


@dataclass(frozen=True)
class Split:
    """The files of one split.

    Attributes:
        files: image paths.
        labels: one class index a file.
        left_out: files left out by the index, counted by kind of damage.
    """

    files: list[Path]
    labels: list[int]
    left_out: dict[str, int]


def class_of(name: str) -> str:
    """The class folder of a path relative to its root."""
    return name.split("/", 1)[0]


def common_classes(roots: list[Path], indexes: list[dict[str, str]]) -> list[str]:
    """The sorted classes of all roots, which must agree or be disjoint."""
    classes = [{class_of(name) for name in index} for index in indexes]
    union = set().union(*classes)
    for root, own in zip(roots, classes, strict=True):
        shared = own & set().union(*(other for other in classes if other is not own))
        missing = sorted(union - own)
        if shared and missing:
            raise UserError(
                "dataset.train_dirs",
                f"dataset.train_dirs: {root} has no class folder {missing[0]!r}, which another "
                "training folder has",
                "training folders must hold the same classes, or share none",
            )
    return sorted(union)


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Hold out a share of every class, drawn by ``seed``; damage counts stay with training."""
    rng = np.random.default_rng((seed, 1))
    labels = np.array(split.labels)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(len(members) - 1, max(1, round(len(members) * fraction)))
        held[rng.permutation(members)[:count]] = True
    return (
        _subset(split, np.flatnonzero(~held), split.left_out),
        _subset(split, np.flatnonzero(held), {}),
    )


def spread(split: Split, limit: int, seed: int) -> Split:
    """``limit`` files, as many of each class as of any other while they last."""
    chosen = spread_over(np.array(split.labels), limit, np.random.default_rng((seed, 2)))
    return _subset(split, chosen, split.left_out)


def spread_over(
    labels: NDArray[np.int64], limit: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The sorted places of ``limit`` samples, as many of each class while they last."""
    order = rng.permutation(len(labels))
    drawn = labels[order]
    rank = np.empty(len(order), dtype=np.int64)
    for label in np.unique(drawn):
        members = np.flatnonzero(drawn == label)
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])


def _subset(split: Split, chosen: np.ndarray, left_out: dict[str, int]) -> Split:
    files = [split.files[index] for index in chosen]
    labels = [split.labels[index] for index in chosen]
    return Split(files, labels, left_out)


def check_num_classes(asked: int | None, classes: Sequence[str], where: str) -> None:
    """Refuse a number of classes that is not the data's.

    Raises:
        UserError: when they differ.
    """
    if asked not in (None, len(classes)):
        raise UserError(
            "dataset.num_classes",
            f"dataset.num_classes={asked}: {where} has {len(classes)} classes",
            "leave it out, or give the data that were meant",
        )


def check_same_classes(classes: Sequence[str], found: set[str], root: Path, key: str) -> list[str]:
    """Compare an evaluation folder's classes with those of training.

    Args:
        classes: of training.
        found: the evaluation folder's.
        root: the evaluation folder.
        key: that named it.

    Returns:
        Classes that the evaluation folder lacks, sorted.

    Raises:
        UserError: when it has some that training lacks, naming them.
    """
    unknown = sorted(found - set(classes))
    missing = sorted(set(classes) - found)
    if unknown:
        raise UserError(
            key,
            f"{key}: {root} holds class folder {listed(unknown)}, which no training folder has"
            + (f", and lacks {listed(missing)}" if missing else "")
            + "; rename or remove it",
        )
    return missing


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(repr(name) for name in names[:3])
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def nothing_left(which: str, split: Split) -> str:
    """What to tell of a split in which no file can be read."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(split.left_out.items()))
    return (
        f"no readable image in the {which} split"
        + (f" ({kinds})" if kinds else "")
        + "; check the folders in dataset.train_dirs and dataset.val_dir"
    )
