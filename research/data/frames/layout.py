"""What the readers of annotated image folders share: groups, splits and parts of a source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from research.data.frames.frame import FrameSet, Reading

ALL = "all"
"""The part of a source that says nothing of parts."""


def finish(reading: Reading, form: str, classes: list[str], parts: dict[str, str]) -> FrameSet:
    """Settle groups, and the split by group.

    The only folder of a split is told from the others by the split alone, so where a validation
    split is still to be drawn its images are groups of their own.

    Args:
        reading: frames without groups.
        form: the format.
        classes: class names.
        parts: frame name → split, for the frames of which the source says it.
    """
    if len(set(parts.values())) < 2:
        parts = {}  # a source all in train/ leaves it to us to hold something out
    folders: dict[str, set[str]] = {}
    for name in reading.frames:
        folders.setdefault(str(PurePosixPath(name).parent), set()).add(parts.get(name, ""))
    by_folder = len(folders) > 1 and all(len(found) == 1 for found in folders.values())
    siblings = Counter(part for found in folders.values() for part in found)
    undrawn = bool(parts) and "val" not in parts.values()
    split = {}
    for name, frame in reading.frames.items():
        alone = undrawn and siblings[parts.get(name, "")] == 1
        group = str(PurePosixPath(name).parent) if by_folder and not alone else name
        reading.frames[name] = replace(frame, group=group)
        if name in parts:
            split[group] = parts[name]
    return reading.frame_set(form, classes, dict(sorted(split.items())))


def split_of(word: str) -> str:
    """``train``, ``val`` or ``test`` for a name like ``valid``, ``instances_train2017``; or ''."""
    found = re.search(r"(?:^|[^a-z])(train|val|test)(?:id|idation|ing)?(?:[^a-z]|$)", word.lower())
    return found[1] if found else ""


def split_in(folders: Iterable[str]) -> str:
    """The first split that the names of folders, outermost first, speak of; or ''."""
    return next(filter(None, map(split_of, folders)), "")


def number_in(text: str | None) -> Any:
    """The number that a text is, or None."""
    try:
        return float(text or "")
    except ValueError:
        return None
