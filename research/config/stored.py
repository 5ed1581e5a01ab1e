"""Validates configurations and metadata that are read from files, before anything is built.

A checkpoint, a weights file, a run folder or a store may come from someone else. Its configuration
is migrated to the current names and checked like a command line: types, ranges, no unknown keys,
and only ``_target_`` names that ``conf/`` has at the same path or that the user trusts. The files,
folders and addresses in it (``paths_in``) are used only for runs in the user's own ``runs/``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from research.config.checks import check_value
from research.config.group_rules import group_rules
from research.config.migrations import VERSION, migrated
from research.config.options import option_node, options
from research.config.rules import (
    TEXT,
    Rule,
    is_unicode,
    list_of,
    mapping_of,
    one_of,
    or_null,
    whole,
)
from research.config.schema import GROUPS, RUN_DEFAULTS, RUN_RULES, rule_for
from research.config.targets import TARGET, check_targets
from research.utils import secrets
from research.utils.errors import UserError

MAX_DEPTH: Final = 12
"""Levels of nesting."""
MAX_VALUES: Final = 20_000
"""In a configuration; every hundred characters of a text count as one more value."""
MAX_RECORD_VALUES: Final = 2_000_000
"""In metadata or a history, which has about thirty values per epoch."""
MAX_TEXT: Final = 10_000
"""Characters of one text, except tags."""
MAX_INTEGER: Final = 2**63
TAGS: Final = "tags"
"""Free text that no code reads."""
TRACKERS: Final = "logging"
CACHE: Final = "runs/cache"
"""Value of ``cache_dir`` where the folder that a file names is not used."""

Plain = dict[str, Any]
NOT_SET: Final = object()

SCALAR = Rule(
    "a number, text, true, false or null", lambda value: not isinstance(value, dict | list)
)
SIZE = whole(1, 2**16)
METADATA: Final[dict[str, Rule]] = {
    "name": TEXT,
    "classes": list_of(TEXT),
    "channels": list_of(TEXT, min_length=3),
    "dtype": one_of("uint8", "uint16"),
    "features": or_null(list_of(TEXT, min_length=1)),
    "feature_sizes": mapping_of(SIZE),
    "feature_keys": mapping_of(TEXT),
}
"""Metadata of a data set, see ``DataModule.metadata``."""
TRANSFORM: Final[dict[str, Rule]] = {
    "image_size": SIZE,
    "max_boxes": SIZE,
    "window": whole(1, 8),
    "source": one_of("pixels", "bitstream"),
    "resize": one_of("letterbox"),
    "fit": one_of("pad", "crop"),
    "channels": list_of(TEXT, min_length=3),
    "dtype": one_of("uint8", "uint16"),
    **dict.fromkeys(("feature", "key", "network", "preprocessing", "weights"), TEXT),
}
"""Entry ``transform`` of the metadata: how samples were preprocessed."""


def configuration(document: Any, where: str, trust: Collection[str] = ()) -> Plain:
    """Migrate and validate a configuration from a file.

    Args:
        document: content of the file.
        where: the file, for messages.
        trust: the user's own names that ``_target_`` may have in it.

    Returns:
        A configuration as from ``resolved``; missing settings have their defaults.

    Raises:
        UserError: for anything that a configuration may not contain.
    """
    try:
        config = with_defaults(migrated(_plain(document)))
        if config["version"] != VERSION:
            version = str(config["version"])[:40]
            raise UserError(
                "version", f"version={version}: this code reads up to {VERSION}", "update it"
            )
        check_targets(config, trust)
        for error in _problems(config, trust):
            raise error
    except UserError as error:
        raise refused(error, where, "configuration has") from None
    config["trust"] = sorted(trust)
    return config


def metadata(document: Any, where: str, *, foreign: bool = False) -> Plain:
    """Validate the metadata of a data set from a file.

    Args:
        document: content of the file.
        where: the file, for messages.
        foreign: whether the class of the data set is the user's own; other entries are then
            allowed, as plain values.

    Raises:
        UserError: for an unknown entry or an invalid value.
    """
    rules = METADATA | {"transform": mapping_of(SCALAR)}
    found = record(document, rules, where, "metadata", allow_unknown=foreign)
    if not foreign:
        transform(found.get("transform", {}), where)
    return {"classes": [], **found}


def transform(document: Any, where: str) -> Plain:
    """Validate how samples were preprocessed, from a file.

    Raises:
        UserError: for an unknown entry or an invalid value.
    """
    return record(document, TRANSFORM, where, "metadata.transform")


def unchecked(document: Any, where: str) -> Plain:
    """A configuration from a file, migrated but not validated; only to be compared with others.

    It may contain settings that no longer exist.

    Raises:
        UserError: if it is not a mapping of plain values.
    """
    try:
        return migrated(_plain(document))
    except UserError as error:
        raise refused(error, where, "configuration has") from None


def with_defaults(config: Plain) -> Plain:
    """A copy of a configuration in which missing settings have their defaults.

    Runs of earlier versions lack settings that were added later. If the default differs from what
    these runs did, the migration adds another value.
    """
    result = copy.deepcopy(config)
    for name, default in RUN_DEFAULTS.items():
        result.setdefault(name, copy.deepcopy(default))
    for group in GROUPS:
        node = result.get(group)
        if isinstance(node, dict):
            _fill(node, _shapes(group, node))
    return result


def paths_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every dotted key that names a file, a folder or an address, with its value."""
    rules = group_rules(config)
    return {
        key: value
        for key, value in _leaves(config, "", rules)
        if value and rule_for(key, None, rules).is_path
    }


def without_paths(config: Mapping[str, Any]) -> Plain:
    """A copy of a configuration that names no file, no address and no demo data."""
    result = copy.deepcopy(dict(config))
    for key, value in paths_in(result).items():
        *parts, last = key.split(".")
        node = result
        for part in parts:
            node = node[part]
        empty = None if value is True else type(value)()
        node[last] = CACHE if last == "cache_dir" else empty
    if "demo" in result["dataset"]:
        result["dataset"]["demo"] = None
    return {**result, "resume": None, "init_from": None, "run_dir": None, TRACKERS: {}}


def _problems(config: Plain, trust: Collection[str]) -> Iterator[UserError]:
    """An error for each setting that is unknown, missing or invalid; one at most per group."""
    rules = group_rules(config)
    for name, value in config.items():
        if name in RUN_RULES:
            yield from _check(name, value, RUN_DEFAULTS[name], rules)
        elif name not in GROUPS:
            yield _unknown(name)
    for group in GROUPS:
        node = config.get(group)
        if not isinstance(node, dict):
            yield UserError(group, f"no {group}")
        elif node.get(TARGET) not in trust:
            shapes = _shapes(group, node)
            if not shapes:
                yield UserError(group, f"{group}, which is none of {', '.join(options(group))}")
            errors = [list(_differences(group, node, shape, trust, rules)) for shape in shapes]
            yield from min(errors, key=len, default=[])[:1]


def _shapes(group: str, node: Plain) -> list[Plain]:
    """Settings of the options that a node may come from: those with the same ``_target_``."""
    nodes = [option_node(group, option) for option in options(group)]
    if group == TRACKERS:
        # Several trackers may be chosen at once.
        trackers = {name: value for each in nodes for name, value in each.items()}
        return [{name: trackers[name] for name in node if name in trackers}]
    return [each for each in nodes if each.get(TARGET) == node.get(TARGET)]


def _differences(
    path: str, node: Plain, shape: Plain, trust: Collection[str], rules: Mapping[str, Rule]
) -> Iterator[UserError]:
    """An error for each setting of a node that is not valid for an option of this shape."""
    for name in shape:
        if name not in node:
            yield UserError(f"{path}.{name}", f"no {path}.{name}")
    for name, value in node.items():
        key = f"{path}.{name}"
        if isinstance(value, dict) and value.get(TARGET) in trust:
            continue
        if name not in shape:
            yield _unknown(key)
        elif name.startswith("_"):
            if value != shape[name]:
                yield UserError(key, f"{key}={value}")
        elif isinstance(shape[name], dict) and isinstance(value, dict) and shape[name]:
            yield from _differences(key, value, shape[name], trust, rules)
        else:
            yield from _check(key, value, shape[name], rules)


def _unknown(key: str) -> UserError:
    return UserError(key, f"{key}, which is not a setting")


def _check(key: str, value: Any, default: Any, rules: Mapping[str, Rule]) -> Iterator[UserError]:
    try:
        # Interpolated and required values (???) may be of any type.
        any_type = isinstance(default, str) and (default == "???" or "${" in default)
        check_value(key, value, None if any_type else default, rules)
    except UserError as error:
        yield error


def _fill(node: Plain, shapes: Sequence[Plain]) -> None:
    """Add the missing keys for which all shapes have the same default."""
    for name in dict.fromkeys(name for shape in shapes for name in shape):
        defaults = [shape.get(name, NOT_SET) for shape in shapes]
        first = defaults[0]
        if name not in node:
            if all(default == first for default in defaults) and "${" not in str(first):
                node[name] = copy.deepcopy(first)
        elif isinstance(node[name], dict):
            below = [default for default in defaults if isinstance(default, dict)]
            same = [d for d in below if d.get(TARGET) == node[name].get(TARGET)]
            _fill(node[name], same)


def record(
    document: Any,
    rules: Mapping[str, Rule],
    where: str,
    section: str,
    *,
    allow_unknown: bool = False,
) -> Plain:
    """The document as plain values, each checked by its rule; ``section`` is prefixed to keys."""
    try:
        entries = _plain(document, MAX_RECORD_VALUES)
        for name, value in entries.items():
            if name not in rules and not allow_unknown:
                raise UserError(name, f"{name}, which is not known")
            if name in rules and not rules[name].is_valid(value):
                raise UserError(name, f"{name}={str(value)[:80]}: expected {rules[name].allowed}")
    except UserError as error:
        raise refused(error, where, "metadata have", section) from None
    return entries


def refused(error: UserError, where: str, has: str, section: str = "") -> UserError:
    """The error for a whole file, with the key of the setting or entry that is wrong."""
    key = ".".join(part for part in (section, error.key) if part) or "config"
    return UserError(key, f"{where}: refused, its {has} {error.message}", error.hint)


def _plain(document: Any, most: int = MAX_VALUES) -> Plain:
    """The document, if it is a mapping of at most ``most`` plain values; tuples become lists.

    Raises:
        UserError: for other values, interpolations, and documents that are too large or too deep.
            The key is empty if the document as a whole is wrong.
    """
    if not isinstance(document, Mapping):
        raise UserError("", "no mapping of settings")
    left = [most]

    def copied(node: Any, key: str, depth: int) -> Any:
        left[0] -= 1 + (len(node) // 100 if isinstance(node, str) else 0)
        if depth > MAX_DEPTH or left[0] < 0:
            raise UserError(key, f"{key[:80]}: too many values, or too deep")
        if isinstance(node, Mapping):
            for name in node:
                if not isinstance(name, str) or len(name) > MAX_TEXT or not is_unicode(name):
                    raise UserError(key, f"{key}: a key that is not text".removeprefix(": "))
            above = f"{key}." if key else ""
            return {name: copied(v, f"{above}{name}", depth + 1) for name, v in node.items()}
        if isinstance(node, list | tuple):
            return [copied(v, f"{key}.{index}", depth + 1) for index, v in enumerate(node)]
        if isinstance(node, str):
            is_tag = key.startswith(f"{TAGS}.")
            if "${" in node and not is_tag:
                raise UserError(
                    key, f"{key}={node[:80]}: an interpolation", "files must contain values"
                )
            if len(node) > MAX_TEXT and not is_tag:
                raise UserError(key, f"{key}: a text of {len(node):,} characters")
            if "\0" in node or not is_unicode(node):
                raise UserError(key, f"{key}: characters that no text has")
            return secrets.redacted(node)
        if type(node) is int and abs(node) > MAX_INTEGER:
            raise UserError(key, f"{key}: a number beyond 2^63")
        if node is None or type(node) in (bool, int, float):
            return node
        raise UserError(key, f"{key}: a {type(node).__name__}, not a plain value")

    result: Plain = copied(document, "", 0)
    return result


def _leaves(
    node: Mapping[str, Any], path: str, rules: Mapping[str, Rule]
) -> Iterator[tuple[str, Any]]:
    """As ``keys.leaves``, but mappings whose rule is of paths (feature to file) are values."""
    for name, value in node.items():
        key = f"{path}{name}"
        if isinstance(value, dict) and value and not rule_for(key, None, rules).is_path:
            yield from _leaves(value, f"{key}.", rules)
        else:
            yield key, value
