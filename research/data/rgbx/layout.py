"""Channel names and sequences of a folder of RGB + X arrays."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from research.data.rgbx.arrays import COLOURS, ArraySpec
from research.data.texts import BadText, read_json
from research.utils.counts import counted
from research.utils.errors import UserError

log = logging.getLogger(__name__)

DESCRIPTION = "rgbx.json"
"""Names the channels of a folder of arrays."""
LEDGER = ".prepared.jsonl"
"""In a folder that an earlier version prepared, which wrote ``DESCRIPTION`` last."""
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
            f'list all as "channels" in {description}, or set dataset.x=[thermal,event,…]',
        )
    if len(names) != count or len({*COLOURS, *names}) != spec.channels:
        raise UserError(
            "dataset.x",
            f"{source}: {', '.join(names)} after red, green and blue, but the files have {spec}",
            f"set {count} different names in dataset.x",
        )
    return [*COLOURS, *names]


def group_by_sequence(
    where: Path, paths: Sequence[str], splits: Sequence[str], group_by: str
) -> list[str]:
    """The sequence of each frame; one in two splits of the source becomes two.

    Args:
        where: the data set, for messages.
        paths: path of each frame below its folder of images; it is searched.
        splits: split of each frame in the source; '' if the source has none.
        group_by: see ``RgbxFolder``.

    Raises:
        UserError: for a path that does not match.
    """
    groups = []
    sequences: dict[str, set[str]] = {}
    for path, own in zip(paths, splits, strict=True):
        match = re.search(group_by, path)
        if match is None:
            raise UserError(
                "dataset.group_by",
                f"dataset.group_by: {group_by!r} does not match {path}",
                f"use a pattern that matches every path in {where}",
            )
        sequence = next((part for part in match.groups() if part is not None), match[0])
        groups.append(f"{own}/{sequence}" if own else sequence)
        sequences.setdefault(sequence, set()).add(own)
    if shared := [name for name, found in sequences.items() if len(found) > 1]:
        log.warning(
            "%s: its own splits share %s (%s), so validation is not on new scenes",
            where,
            counted(len(shared), "sequences"),
            shared[0],
        )
    return groups


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
