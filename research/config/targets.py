"""The ``_target_`` names that are allowed at each path of a configuration; builds their objects.

A name is allowed at the paths at which the files of ``conf/`` have it. The user adds names of their
own on a command line, by ``--config-dir`` or ``trust=[…]``; a file that is read adds none. Nothing
is built from a ``_target_`` at any other path.
"""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from research.config.migrations import current_target
from research.config.options import read
from research.utils.errors import UserError, one_line
from research.utils.installation import CONF

TARGET: Final = "_target_"
PARTIAL: Final = "_partial_"
LIBRARIES: Final = ("research", "torch", "torchvision", "timm", "hydra", "optuna", "mlflow")
"""Packages that are not the user's own code: messages never advise ``trust=`` for them."""
PACKAGE: Final = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def check_targets(config: Mapping[str, Any], own: Collection[str] = ()) -> None:
    """Check that every ``_target_`` is allowed at its path.

    Args:
        config: plain and nested.
        own: names that the user allows, at any path.

    Raises:
        UserError: for a name that is not allowed, or another of Hydra's special keys (``_args_``).
    """
    for key, value in _special_keys(config, ""):
        path, _, word = key.rpartition(".")
        if word == PARTIAL and isinstance(value, bool):
            continue
        if word != TARGET:
            raise UserError(key, f"{key}: not a setting", "arguments are set by their names")
        allowed = {*packaged_targets().get(path, ()), *own}
        if not isinstance(value, str) or value not in allowed:
            raise UserError(key, _refused(key, value))


def build(config: Mapping[str, Any], path: str, **more: Any) -> Any:
    """Build the object of a node with a ``_target_``; nodes below it are built first.

    Args:
        config: the whole configuration, checked.
        path: dotted path of the node.
        more: arguments in addition to those of the node.

    Returns:
        The object; with ``_partial_: true`` a ``functools.partial`` that makes it.

    Raises:
        UserError: for a name that is not allowed or does not exist, or from the class itself.
    """
    node: Any = config
    for part in path.split("."):
        node = node[part]
    arguments = {
        key: build(config, f"{path}.{key}")
        if isinstance(value, Mapping) and TARGET in value
        else value
        for key, value in node.items()
        if key not in (TARGET, PARTIAL)
    }
    make = partial(locate(path, node[TARGET], config["trust"]), **{**arguments, **more})
    return make if node.get(PARTIAL) else make()


def locate(path: str, name: str, own: Collection[str]) -> Any:
    """Import the class or function ``name`` for the node at ``path``.

    Raises:
        UserError: if it is not allowed at this path, or does not exist.
    """
    check_targets(nested(path, {TARGET: name}), own)
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}.{TARGET}",
            f"{path}.{TARGET}={name}: there is no such class or function ({one_line(error)})",
            "check its spelling, and that its module can be imported from this folder",
        ) from error


def target_nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted path and ``_target_`` of every node that has one."""
    for key, value in _special_keys(config, ""):
        path, _, word = key.rpartition(".")
        if word == TARGET:
            yield path, str(value)


def user_targets(config: Mapping[str, Any]) -> list[str]:
    """The ``_target_`` names that ``conf/`` does not have at their path, sorted."""
    nodes = target_nodes(config)
    return sorted({name for path, name in nodes if name not in packaged_targets().get(path, ())})


def packaged_targets() -> Mapping[str, frozenset[str]]:
    """The allowed names by dotted path."""
    return targets_in(CONF)


@lru_cache(maxsize=8)
def targets_in(folder: Path) -> dict[str, frozenset[str]]:
    """The ``_target_`` names in the option files below a folder, by dotted path."""
    names_at: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        group = ".".join(file.relative_to(folder).parent.parts)
        package = PACKAGE.search(file.read_text(encoding="utf-8", errors="replace"))
        prefix = group if package is None else package[1].replace("_group_", group)
        prefix = prefix.removeprefix("_global_").lstrip(".")
        node = nested(prefix, read(file)) if prefix else read(file)
        for key, value in _special_keys(node, ""):
            path, _, word = key.rpartition(".")
            if word == TARGET and isinstance(value, str):
                names_at.setdefault(path, set()).add(value)
    return {path: frozenset(names) for path, names in names_at.items()}


def config_dir_targets(sources: Sequence[Any]) -> set[str]:
    """All ``_target_`` names in the option files of ``--config-dir``.

    Args:
        sources: Hydra's ``runtime.config_sources``.
    """
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    return {name for folder in folders if folder != CONF for name in targets_of(folder)}


def targets_of(folder: Path) -> set[str]:
    """All ``_target_`` names in the option files below a folder."""
    return {name for names in targets_in(folder).values() for name in names}


def _refused(key: str, value: Any) -> str:
    path = key.rpartition(".")[0]
    allowed = packaged_targets().get(path, ())
    current = current_target(value) if isinstance(value, str) else value
    if current != value:
        return f"{key}={value}: it is called {current} now"
    if not isinstance(value, str) or not re.fullmatch(r"\w+(\.\w+)+", value):
        return f"{key}={str(value)[:80]!r}: expected a dotted name"
    names = ", ".join(sorted(allowed))
    group = path.partition(".")[0]
    choices = (
        f"allowed here are {names}, each chosen by {group}=OPTION"
        if names
        else "no object is built at this path"
    )
    line = f"{key}={value[:80]}: {choices}"
    if value.partition(".")[0] in (*sys.stdlib_module_names, *LIBRARIES):
        return line
    return f"{line}; if it is your own code, add trust=[{value[:80]}]"


def _special_keys(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every entry with a leading underscore, in mappings and lists."""
    if isinstance(node, Mapping):
        pairs = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        pairs = [(str(index), value) for index, value in enumerate(node)]
    else:
        return
    for key, value in pairs:
        if key.startswith("_"):
            yield f"{path}{key}", value
        else:
            yield from _special_keys(value, f"{path}{key}.")


def nested(path: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with only this node, at its dotted path."""
    config = dict(node)
    for part in reversed(path.split(".")):
        config = {part: config}
    return config
