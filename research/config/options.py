"""Reads single option files of ``conf/``, without composition and interpolation."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
DECLARATIONS: Final = ("provides", "needs", "accepts")
"""Keys of an option that are no settings, see ``research.config.declarations``."""


def options(group: str) -> list[str]:
    """The options of a group; files that start with an underscore are parts of others."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_")


@lru_cache(maxsize=256)
def read_option(group: str, option: str) -> dict[str, Any]:
    """What an option's file says, on top of the parts that it takes from its group.

    Not to be changed by the caller.
    """
    own = read(CONF / group / f"{option}.yaml")
    parts = own.pop("defaults", ["_self_"])
    if "_self_" not in parts:
        parts = [*parts, "_self_"]
    found: dict[str, Any] = {}
    for part in parts:
        # Anything but a word overrides the choice of another group.
        if part == "_self_":
            found = _merged(found, own)
        elif isinstance(part, str):
            found = _merged(found, read_option(group, part))
    return found


def option_node(group: str, option: str) -> dict[str, Any]:
    """The settings of an option: ``read_option`` without its declarations."""
    return without_declarations(read_option(group, option))


def without_declarations(node: dict[str, Any]) -> dict[str, Any]:
    """The node of a group without what its option declares."""
    return {key: value for key, value in node.items() if key not in DECLARATIONS}


def read(path: Path) -> dict[str, Any]:
    """A YAML file as OmegaConf reads it; empty where it holds no mapping."""
    if not path.is_file():
        return {}
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        known = found.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        found[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return found
