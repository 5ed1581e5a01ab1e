"""Groups, splits and parts of annotated image folders; shared by the VOC, COCO and YOLO readers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from research.data.frames.frame import FrameSet, FrameSetBuilder

ALL = "all"
"""Name of the only part of a source that is not divided into parts."""


def build_frame_set(
    builder: FrameSetBuilder, form: str, classes: list[str], parts: dict[str, str]
) -> FrameSet:
    """Assign groups to the frames, and splits to the groups.

    A group is the folder of an image if there are several folders and none contains images of two
    splits; otherwise every image is its own group. If the source has no validation split, a
    split with a single folder is divided into single images too: validation groups are then drawn
    from them.

    Args:
        builder: frames without groups.
        form: name of the format.
        classes: class names.
        parts: frame name → split, for the frames that the source assigns to a split.
    """
    if len(set(parts.values())) < 2:
        parts = {}  # a source with only train/ has no split of its own: validation data are drawn
    folders: dict[str, set[str]] = {}
    for name in builder.frames:
        folders.setdefault(str(PurePosixPath(name).parent), set()).add(parts.get(name, ""))
    by_folder = len(folders) > 1 and all(len(splits) == 1 for splits in folders.values())
    siblings = Counter(part for splits in folders.values() for part in splits)
    undrawn = bool(parts) and "val" not in parts.values()
    split = {}
    for name, frame in builder.frames.items():
        alone = undrawn and siblings[parts.get(name, "")] == 1
        group = str(PurePosixPath(name).parent) if by_folder and not alone else name
        builder.frames[name] = replace(frame, group=group)
        if name in parts:
            split[group] = parts[name]
    return builder.build(form, classes, dict(sorted(split.items())))


def split_from_name(word: str) -> str:
    """``train``, ``val`` or ``test`` for names like ``valid``, ``instances_train2017``; else ''."""
    match = re.search(r"(?:^|[^a-z])(train|val|test)(?:id|idation|ing)?(?:[^a-z]|$)", word.lower())
    return match[1] if match else ""


def split_from_path(folders: Iterable[str]) -> str:
    """The split named by the first folder (outermost first) that names one, else ''."""
    return next(filter(None, map(split_from_name, folders)), "")


def parse_number(text: str | None) -> Any:
    """The text as a float, or None if it is not a number."""
    try:
        return float(text or "")
    except ValueError:
        return None
