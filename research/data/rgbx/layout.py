"""Channel names and sequences of a folder of RGB + X arrays."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.data.frames.frame import (
    NORMALISED_SLACK,
    Frame,
    FrameSet,
    SkipFrame,
    normalize_box,
)
from research.data.rgbx.arrays import COLOURS, ArraySpec
from research.data.texts import BadText, read_json
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

DESCRIPTION = "rgbx.json"
"""Description of a prepared folder; ``python -m research.prepare rgbx`` writes it last."""
LEDGER = ".prepared.jsonl"
"""Arrays that ``python -m research.prepare rgbx`` has finished."""
DEFAULT_NAMES = {1: ["thermal"], 2: ["thermal", "event"]}
"""Default names of the X channels, by their number."""


def channel_names(root: Path, spec: ArraySpec, x: Sequence[str] | None) -> list[str]:
    """Names of all channels: the colours, then the X channels.

    Args:
        root: folder of the data set, whose ``rgbx.json`` may name the channels.
        spec: channels and type of its files.
        x: names of the X channels set by the user, which take precedence.

    Raises:
        UserError: if the number of names is wrong, or there are none.
    """
    count, description, source = spec.channels - len(COLOURS), root / DESCRIPTION, "dataset.x"
    names = None if x is None else list(x)
    if names is None and description.is_file():
        names, source = _read_description(description), str(description)
    if names is None:
        names = DEFAULT_NAMES.get(count)
    if names is None:
        raise UserError(
            "dataset.x",
            f"{root}: {spec}, and no names of the {count} after red, green and blue",
            "set dataset.x=[thermal,event,…]",
        )
    if len(names) != count or len({*COLOURS, *names}) != spec.channels:
        raise UserError(
            "dataset.x",
            f"{source}: {', '.join(names)} after red, green and blue, but the files have {spec}",
            f"set {count} different names in dataset.x",
        )
    return [*COLOURS, *names]


def group_by_sequence(
    frame_set: FrameSet, folders: Sequence[Path], group_by: str | None
) -> FrameSet:
    """Group frames by sequence; a sequence in two splits becomes two groups.

    Args:
        frame_set: the frames as read.
        folders: folders of images; paths below them are searched.
        group_by: see ``RgbxFolder``.

    Raises:
        UserError: for a path that does not match.
    """
    if group_by is None:
        return frame_set
    frames, split = [], {}
    sequences: dict[str, set[str]] = {}
    for frame in frame_set.frames:
        folder = next(folder for folder in folders if frame.image.is_relative_to(folder))
        path = frame.image.relative_to(folder).as_posix()
        match = re.search(group_by, path)
        if match is None:
            raise UserError(
                "dataset.group_by",
                f"dataset.group_by: {group_by!r} does not match {path}",
                f"use a pattern that matches every path below {folder}",
            )
        sequence = next((part for part in match.groups() if part is not None), match[0])
        own = frame_set.split.get(frame.group, "")
        group = f"{own}/{sequence}" if own else sequence
        sequences.setdefault(sequence, set()).add(own)
        frames.append(replace(frame, group=group))
        if own:
            split[group] = own
    if shared := [name for name, splits in sequences.items() if len(splits) > 1]:
        log.warning(
            "%s: its own splits share %d sequences (%s), so validation is not on new scenes",
            frame_set.root,
            len(shared),
            shared[0],
        )
    frames.sort(key=lambda frame: (frame.group, frame.name))
    return replace(frame_set, frames=frames, split=dict(sorted(split.items())))


def add_ignored(frame_set: FrameSet) -> FrameSet:
    """Add the ignore regions in ``rgbx.json`` to the frames of a prepared folder.

    ``"ignored": {STEM: [[class, [x0, y0, x1, y1]], …]}``: boxes as fractions of the array, by its
    path below ``images/`` without suffix.

    Raises:
        UserError: if they are not valid.
    """
    path = frame_set.root / DESCRIPTION
    if not path.is_file():
        return frame_set
    try:
        description = read_json(path)
    except BadText as error:
        log.warning("%s: %s; no ignore regions are read", path, error)
        return frame_set
    regions = description.get("ignored", {}) if isinstance(description, dict) else {}
    try:
        frames = [_with_regions(frame, regions, frame_set.classes) for frame in frame_set.frames]
    except (SkipFrame, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            "dataset.root",
            f"{path}: its ignore regions cannot be read ({one_line(error)})",
            "run the same python -m research.prepare rgbx command again",
        ) from None
    return replace(frame_set, frames=frames)


def source_reading(root: Path) -> str:
    """How the source of a prepared folder was read; empty if that is not recorded."""
    try:
        document = read_json(root / DESCRIPTION)
    except BadText:
        return ""
    reading = document.get("reading") if isinstance(document, dict) else None
    return reading if isinstance(reading, str) else ""


def _with_regions(
    frame: Frame, regions: Mapping[str, Sequence[Any]], classes: Sequence[str]
) -> Frame:
    stem = Path(frame.name).with_suffix("").as_posix().removeprefix("images/")
    rows = [(label, box) for label, box in regions.get(stem, ())]
    if any(type(label) is not int or label not in range(len(classes)) for label, _ in rows):
        raise SkipFrame("invalid", f"{stem}: a class that is none of {len(classes)}")
    boxes = [normalize_box(box, 1, 1, NORMALISED_SLACK, stem) for _, box in rows]
    if not rows:
        return frame
    return replace(
        frame,
        boxes=(*frame.boxes, *boxes),
        labels=(*frame.labels, *(label for label, _ in rows)),
        ignored=(False,) * len(frame.boxes) + (True,) * len(rows),
    )


def _read_description(path: Path) -> list[str]:
    """Names of the X channels in ``rgbx.json``."""
    try:
        channels = read_json(path)["channels"]
        if tuple(channels[: len(COLOURS)]) == COLOURS:
            return [str(name) for name in channels[len(COLOURS) :]]
    except (BadText, KeyError, TypeError):
        pass
    raise UserError(
        "dataset.x",
        f'{path}: no "channels" that begin with red, green, blue',
        "fix or remove it, or set dataset.x=[thermal,event]",
    )
