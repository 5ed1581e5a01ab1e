"""Groups, splits and parts of annotated image folders; shared by the VOC, COCO and YOLO readers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.frame import FrameSet, SkipFrame
from research.data.frames.reading import and_join

ALL = "all"
"""Name of the only part of a source that is not divided into parts."""
SPLITS: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Words that name a split."""
NEUTRAL: Final = frozenset(
    [
        "images",
        "image",
        "imgs",
        "img",
        "pictures",
        "frames",
        "labels",
        "label",
        "annotations",
        "annotation",
        "instances",
        "person",
        "keypoints",
        "captions",
        "coco",
        "voc",
        "yolo",
        "set",
        "split",
        "data",
        "dataset",
        "dev",
        "info",
        "rgb",
        "visible",
        "thermal",
        "infrared",
        "lwir",
        "video",
    ]
)
"""Words that may stand beside one, as in ``instances_train2017`` and ``images_rgb_val``."""


def build_frame_set(
    builder: FrameSetBuilder, form: str, classes: list[str], parts: Mapping[str, str]
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
    parts = {name: part for name, part in parts.items() if name in builder.frames}
    if len(set(parts.values())) < 2:
        parts = {}  # a source with only train/ has no split of its own: validation data are drawn
        builder.remarks.split = ""
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
    """The split that a whole name stands for, else ''.

    ``train`` for ``train``, ``train2017``, ``instances_train2017``; not for ``train_station``.
    """
    parts = [re.sub(r"(19|20)\d\d$", "", part) for part in re.split(r"[\W_]+", word.lower())]
    words = [part for part in parts if part and part not in NEUTRAL]
    return SPLITS.get(words[0], "") if len(words) == 1 else ""


def splits_from_files(stems: Collection[str]) -> dict[str, str]:
    """The splits of annotation files, by stem.

    Also of names that differ only in a split, such as ``street_train`` and ``street_val``.
    """
    splits = {stem: split_from_name(stem) for stem in stems}
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for stem in stems:
        words = re.split(r"[\W_]+", stem.lower())
        found = [word for word in words if split_from_name(word)]
        if len(found) == 1:
            rest = tuple("" if word == found[0] else word for word in words)
            alike.setdefault(rest, {})[stem] = split_from_name(found[0])
    for same in alike.values():
        if len(set(same.values())) > 1:
            splits.update(same)
    return {stem: split for stem, split in splits.items() if split}


def split_from_path(folders: Iterable[str]) -> str:
    """The split named by the first folder (outermost first) that names one, else ''."""
    return next(filter(None, map(split_from_name, folders)), "")


def splits_from_folders(names: Iterable[str]) -> tuple[dict[str, str], str]:
    """The split of each image whose folder names one, and which folders do, in words."""
    parts, found = {}, set()
    for name in names:
        for folder in PurePosixPath(name).parent.parts:
            if split := split_from_name(folder):
                parts[name] = split
                found.add(folder)
                break
    folders = f"the folder{'s' * (len(found) > 1)} {and_join(sorted(found))}" if found else ""
    return parts, folders


def keep_split_frames(
    builder: FrameSetBuilder,
    declared: Mapping[str, Collection[str]],
    where: str,
    others: bool = False,
) -> dict[str, str]:
    """Frame name → split; frames in two splits, or in none, are left out.

    Args:
        builder: the frames.
        declared: the splits that a declaration gives to each image.
        where: the declaration, for messages.
        others: keep frames in no split.
    """
    parts = {}
    for name in list(builder.frames):
        splits = sorted(declared.get(name, ()))
        if len(splits) == 1:
            parts[name] = splits[0]
            continue
        if not splits and others:
            builder.remarks.note("images in no list, kept as if there were none", name)
            continue
        if splits:
            problem = f"is in {and_join(splits)} of {where}: keep it in one"
            reason = SkipFrame("invalid", problem, "in two splits")
        else:
            problem = f"is in no split of {where}: add it to one, or remove it"
            reason = SkipFrame("invalid", problem, "in no split")
        builder.drop(name, reason)
    return parts
