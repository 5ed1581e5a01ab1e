"""What a folder of arrays says of itself: names of channels and classes, sequences."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from research.data.frames.frame import FrameSet
from research.data.rgbx.arrays import COLOURS, Form
from research.utils.errors import UserError

log = logging.getLogger(__name__)

DESCRIPTION = "rgbx.json"
"""What ``python -m research.prepare rgbx`` leaves, last of all, beside images and labels."""
LEDGER = ".prepared.jsonl"
"""What it has finished so far."""
USUAL = {1: ["thermal"], 2: ["thermal", "event"]}
"""Names of the channels after the colours where nobody names them, by their number."""


def extra_channels(root: Path, form: Form, given: Sequence[str] | None) -> list[str]:
    """Names of the channels after the colours.

    Args:
        root: of the data set; its ``rgbx.json`` may name them.
        form: of its files.
        given: by the user, who has the last word.

    Raises:
        UserError: when they are not as many as the files have, or nothing names them.
    """
    count, about, where = form.channels - len(COLOURS), root / DESCRIPTION, "dataset.x"
    names = None if given is None else list(given)
    if names is None and about.is_file():
        names, where = _described(about), str(about)
    if names is None:
        names = USUAL.get(count)
    if names is None:
        raise UserError(
            "dataset.x",
            f"{root}: {form}",
            "name those after red, green and blue: dataset.x=[thermal,event,…]",
        )
    if len(names) != count or len({*COLOURS, *names}) != form.channels:
        raise UserError(
            "dataset.x",
            f"{where}: {', '.join(names)} after red, green and blue, the files have {form}",
            f"give {count} different names",
        )
    return names


def grouped(found: FrameSet, folders: Sequence[Path], group_by: str | None) -> FrameSet:
    """The set with its groups by sequence; parts of a sequence in two splits stay two groups.

    Args:
        found: as it was read.
        folders: of images, below which paths are searched.
        group_by: see ``RgbxFolder``.

    Raises:
        UserError: for a path that does not match.
    """
    if group_by is None:
        return found
    frames, split = [], {}
    sequences: dict[str, set[str]] = {}
    for frame in found.frames:
        folder = next(folder for folder in folders if frame.image.is_relative_to(folder))
        path = frame.image.relative_to(folder).as_posix()
        match = re.search(group_by, path)
        if match is None:
            raise UserError(
                "dataset.group_by",
                f"dataset.group_by: {group_by!r} does not match {path}",
                f"it must match every path below {folder}",
            )
        sequence = next((part for part in match.groups() if part is not None), match[0])
        own = found.split.get(frame.group, "")
        group = f"{own}/{sequence}" if own else sequence
        sequences.setdefault(sequence, set()).add(own)
        frames.append(replace(frame, group=group))
        if own:
            split[group] = own
    if torn := [name for name, splits in sequences.items() if len(splits) > 1]:
        log.warning(
            "%s: its own splits share %d sequences (%s), so validation is easier than new scenes",
            found.root,
            len(torn),
            torn[0],
        )
    frames.sort(key=lambda frame: (frame.group, frame.name))
    return replace(found, frames=frames, split=dict(sorted(split.items())))


def _described(about: Path) -> list[str]:
    """Names of the X channels in ``rgbx.json``."""
    try:
        channels = json.loads(about.read_text(encoding="utf-8"))["channels"]
        if tuple(channels[: len(COLOURS)]) == COLOURS:
            return [str(name) for name in channels[len(COLOURS) :]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(
        "dataset.x", f'{about}: no "channels" that begin with red, green, blue', "mend or remove it"
    )
