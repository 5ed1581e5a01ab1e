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
from research.config.options import CONF, read
from research.utils.errors import UserError, one_line

TARGET: Final = "_target_"
PARTIAL: Final = "_partial_"
LIBRARIES: Final = ("research", "torch", "torchvision", "timm", "hydra", "optuna", "mlflow")
"""Of no user, so that nobody is advised to trust them."""
PACKAGE: Final = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def check_targets(config: Mapping[str, Any], own: Collection[str] = ()) -> None:
    """Refuse names that neither ``conf/`` nor the user has at their place.

    Args:
        config: plain and nested.
        own: names that the user allows, wherever they stand.

    Raises:
        UserError: for the first such name, and for other words of Hydra's instantiation.
    """
    for key, value in _marked(config, ""):
        path, _, word = key.rpartition(".")
        if word == PARTIAL and isinstance(value, bool):
            continue
        if word != TARGET:
            raise UserError(key, f"{key}: not a setting", "arguments are given by their names")
        if not isinstance(value, str) or not (value in packaged().get(path, ()) or value in own):
            raise UserError(key, _refused(key, value))


def build(config: Mapping[str, Any], path: str, **more: Any) -> Any:
    """The object that a node of a configuration describes.

    Nodes below it are built first where ``conf/`` names a ``_target_`` at their place, or where
    the user trusts theirs.

    Args:
        config: the whole configuration, checked.
        path: dotted, of the node.
        more: arguments beside those of the node.

    Returns:
        the object; with ``_partial_: true`` a function that makes it from the arguments that
        are missing.

    Raises:
        UserError: for a name that is not allowed or does not exist, or from what it names.
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
    """The class or function of that name, imported.

    Raises:
        UserError: when it is not allowed at that place, or does not exist.
    """
    check_targets(at(path, {TARGET: name}), own)
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}.{TARGET}",
            f"{path}.{TARGET}={name}: there is no such name to build ({one_line(error)})",
            "check its spelling, and that its module can be imported from here",
        ) from error


def target_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The dotted path of every node that has a ``_target_``, and that name."""
    for key, value in _marked(config, ""):
        path, _, word = key.rpartition(".")
        if word == TARGET:
            yield path, str(value)


def beyond(config: Mapping[str, Any]) -> list[str]:
    """The names in a configuration that are not those of ``conf/`` at their place, sorted."""
    names = {name for path, name in target_names(config) if name not in packaged().get(path, ())}
    return sorted(names)


def packaged() -> Mapping[str, frozenset[str]]:
    """Of each dotted path the names that ``conf/`` has there."""
    return named_in(CONF)


@lru_cache(maxsize=8)
def named_in(folder: Path) -> dict[str, frozenset[str]]:
    """Of each dotted path the names that the option files below a folder have there."""
    found: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        group = ".".join(file.relative_to(folder).parent.parts)
        package = PACKAGE.search(file.read_text(encoding="utf-8", errors="replace"))
        prefix = group if package is None else package[1].replace("_group_", group)
        prefix = prefix.removeprefix("_global_").lstrip(".")
        node = at(prefix, read(file)) if prefix else read(file)
        for key, value in _marked(node, ""):
            path, _, word = key.rpartition(".")
            if word == TARGET and isinstance(value, str):
                found.setdefault(path, set()).add(value)
    return {path: frozenset(names) for path, names in found.items()}


def named_by_user(sources: Sequence[Any]) -> set[str]:
    """All names in the option files of the folders that the user gives by ``--config-dir``.

    Args:
        sources: Hydra's ``runtime.config_sources``.
    """
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    own = [named_in(folder) for folder in folders if folder != CONF]
    return {name for paths in own for names in paths.values() for name in names}


def _refused(key: str, value: Any) -> str:
    path = key.rpartition(".")[0]
    allowed = packaged().get(path, ())
    current = current_target(value) if isinstance(value, str) else value
    if current != value:
        return f"{key}={value}: it is called {current} now"
    if not isinstance(value, str) or not re.fullmatch(r"\w+(\.\w+)+", value):
        return f"{key}={str(value)[:80]!r}: expected a dotted name"
    choices = (
        f"expected one of {', '.join(sorted(allowed))}" if allowed else "nothing is built here"
    )
    line = f"{key}={value[:80]}: {choices}"
    if value.partition(".")[0] in (*sys.stdlib_module_names, *LIBRARIES):
        return line
    return f"{line}; if it is code of yours, add trust=[{value[:80]}]"


def _marked(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every dotted key that begins with an underscore, in mappings and lists, with its value."""
    if isinstance(node, Mapping):
        pairs = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        pairs = [(str(place), value) for place, value in enumerate(node)]
    else:
        return
    for key, value in pairs:
        if key.startswith("_"):
            yield f"{path}{key}", value
        else:
            yield from _marked(value, f"{path}{key}.")


def at(path: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node at its place in an otherwise empty configuration."""
    found = dict(node)
    for part in reversed(path.split(".")):
        found = {part: found}
    return found
