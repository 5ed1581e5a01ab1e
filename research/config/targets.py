"""The ``_target_`` names that are allowed at each path of a configuration; builds their objects.

A name is allowed at the paths at which the files of ``conf/`` have it. The user adds names of their
own on a command line, by ``--config-dir`` or ``trust=[…]``; a file that is read adds none. Nothing
is built from a ``_target_`` at any other path.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from research.config import arguments
from research.config.migrations import current_target
from research.config.options import read, stamp
from research.utils.errors import UserError, one_line
from research.utils.installation import CONF

TARGET: Final = "_target_"
PARTIAL: Final = "_partial_"
LIBRARIES: Final = ("research", "torch", "torchvision", "timm", "hydra", "optuna", "mlflow")
"""Packages that are not the user's own code: messages never advise ``trust=`` for them."""
SHOWN: Final = 3
"""Names in a message, the most similar ones."""
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
            raise _refused(key, value, config)


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
    values = {
        key: build(config, f"{path}.{key}") if _is_built(value) else value
        for key, value in _arguments(node).items()
    }
    name, is_partial = node[TARGET], bool(node.get(PARTIAL))
    make = locate(path, name, config["trust"])
    count = arguments.OF_NODES.get(path, arguments.Given()).count
    given = arguments.Given((*more,), count, is_all=not is_partial)
    arguments.check(path, name, make, [*values], given)
    make = partial(make, **{**values, **more})
    return make if is_partial else make()


def check_arguments(
    config: Mapping[str, Any],
    own: Collection[str],
    file_of: Callable[[str], str] = lambda path: "",
    *,
    only_own: bool = False,
) -> None:
    """Check that the keys of every node are the arguments of its class, which is imported.

    Args:
        config: the whole configuration, checked by ``check_targets``.
        own: names that the user allows.
        file_of: the file in which the node of a path is written, for the message.
        only_own: check only classes of the user's own; the others need heavy libraries.

    Raises:
        UserError: for a class that does not exist, a key that it does not take, or an argument
            that is missing.
    """
    for path, node in _built_nodes(config, ""):
        name = node[TARGET]
        if only_own and name in packaged_targets().get(path, ()):
            continue
        made_here = path in arguments.OF_NODES or path.startswith("logging.")
        usual = arguments.Given(is_all=made_here or not node.get(PARTIAL))
        make = locate(path, name, own)
        given = arguments.OF_NODES.get(path, usual)
        arguments.check(path, name, make, [*_arguments(node)], given, file_of(path))


def _built_nodes(config: Mapping[str, Any], above: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dotted path and content of every node that is built: those of groups, and those in them."""
    for key, value in config.items():
        path = f"{above}{key}"
        if _is_built(value):
            yield path, value
            yield from _nodes_in(path, value)
        elif isinstance(value, Mapping) and not above:  # the trackers of ``logging``
            yield from _built_nodes(value, f"{path}.")


def _nodes_in(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in node.items():
        if _is_built(value):
            yield f"{path}.{key}", value
            yield from _nodes_in(f"{path}.{key}", value)


def _is_built(value: Any) -> bool:
    return isinstance(value, Mapping) and TARGET in value


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in (TARGET, PARTIAL)}


def locate(path: str, name: str, own: Collection[str]) -> Any:
    """Import the class or function ``name`` for the node at ``path``.

    Raises:
        UserError: if it is not allowed at this path, or does not exist.
    """
    check_targets(nested(path, {TARGET: name}), own)
    key = f"{path}.{TARGET}"
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            key,
            f"{key}={name}: there is no such class or function ({one_line(error)})",
            "check its spelling, and that its module can be imported from this folder",
        ) from error
    if not callable(found):
        message = f"{key}={name}: a {type(found).__name__}, not a class or function"
        raise UserError(key, message, "name a class in it")
    return found


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
    return _targets_in(CONF, ())


def targets_in(folder: Path) -> dict[str, frozenset[str]]:
    """The ``_target_`` names in the option files below a folder, by dotted path."""
    return _targets_in(folder, stamp(folder))


@lru_cache(maxsize=8)
def _targets_in(folder: Path, stamp: Any) -> dict[str, frozenset[str]]:
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


def own_names(config: Mapping[str, Any]) -> list[str]:
    """As ``user_targets``, without names that no user's own code can have."""
    return [name for name in user_targets(config) if _may_be_own(name)]


def trust_word(names: Collection[str]) -> str:
    """``trust=[…]`` with these names, as typed; not yet quoted for a shell."""
    return f"trust=[{','.join(sorted(names))}]"


def _may_be_own(name: str) -> bool:
    is_name = re.fullmatch(r"\w+(\.\w+)+", name) is not None
    return is_name and name.partition(".")[0] not in (*sys.stdlib_module_names, *LIBRARIES)


def _refused(key: str, value: Any, config: Mapping[str, Any]) -> UserError:
    """The error for a name that is not allowed at its path."""
    shown = f"{key}={str(value)[:80]}"
    if not isinstance(value, str) or not re.fullmatch(r"\w+(\.\w+)+", value):
        return UserError(key, f"{shown!r}: expected a dotted name")
    current = current_target(value)
    if current != value:
        return UserError(key, f"{shown}: it is called {current} now")
    if _may_be_own(value):
        # All of them, since each trust= replaces the one before.
        word = shlex.quote(trust_word({value, *own_names(config)}))
        return UserError(
            key, f"{shown}: not from this project", f"if it is your own code, add {word}"
        )
    path = key.rpartition(".")[0]
    allowed = packaged_targets().get(path, frozenset())
    group = path.partition(".")[0]
    if not allowed:
        return UserError(key, f"{shown}: no object is built at this path")
    close = difflib.get_close_matches(value, sorted(allowed), SHOWN, cutoff=0)
    more = [f"{len(allowed) - SHOWN} more"] if len(allowed) > SHOWN else []
    names = ", ".join([*close, *more])
    message = f"{shown}: allowed here are {names}"
    return UserError(key, message, f"each is chosen by {group}=OPTION")


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
