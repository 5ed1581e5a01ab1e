"""Reads single option files of ``conf/``, without composition and interpolation."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from research.utils.installation import CONF

WORDS: Final = ("provides", "needs", "accepts")
DEFAULT_BATCH_SIZE: Final = "default_batch_size"
DECLARATIONS: Final = (*WORDS, DEFAULT_BATCH_SIZE)
"""Keys of an option that are not settings, see ``research.config.declarations``."""


@cache
def options(group: str) -> list[str]:
    """The options of a group; files with a leading underscore are only parts of other options.

    The result is cached: do not modify it.
    """
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_")


@lru_cache(maxsize=256)
def read_option(group: str, option: str) -> dict[str, Any]:
    """Content of an option's file, merged over the files that it includes from its group.

    The result is cached: do not modify it.
    """
    own = read(CONF / group / f"{option}.yaml")
    parts = own.pop("defaults", ["_self_"])
    if "_self_" not in parts:
        parts = [*parts, "_self_"]
    merged: dict[str, Any] = {}
    for part in parts:
        # Entries that are not text override the option of another group.
        if part == "_self_":
            merged = _merged(merged, own)
        elif isinstance(part, str):
            merged = _merged(merged, read_option(group, part))
    return merged


def option_node(group: str, option: str) -> dict[str, Any]:
    """The settings of an option: ``read_option`` without its declarations."""
    return without_declarations(read_option(group, option))


def without_declarations(node: dict[str, Any]) -> dict[str, Any]:
    """The node of a group without the declarations of its option."""
    return {key: value for key, value in node.items() if key not in DECLARATIONS}


def read(path: Path) -> dict[str, Any]:
    """Content of a YAML file, interpolations unresolved; empty if it is not a mapping."""
    if not path.is_file():
        return {}
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}


def stamp(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Name, size and time of the option files below a folder.

    Of a folder of the user's own it is part of the key of every cache: in a notebook, its files
    are edited between two calls.
    """
    files = sorted(folder.rglob("*.yaml"))
    return tuple((file, (about := file.stat()).st_size, about.st_mtime_ns) for file in files)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        both = isinstance(lower, dict) and isinstance(value, dict)
        merged[key] = _merged(lower, value) if both else value  # type: ignore[arg-type]
    return merged
