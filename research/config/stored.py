"""Validates configurations and metadata that are read from files, before anything is built.

A checkpoint, a weights file, a run folder or a store may come from someone else. Its configuration
is migrated to the current names and checked like a command line: types, ranges, no unknown keys,
and only ``_target_`` names that ``conf/`` has at the same path or that the user trusts. The files,
folders and addresses in it (``places``) are used only for runs in the user's own ``runs/``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from research.config.checks import check_value
from research.config.group_rules import group_rules
from research.config.migrations import VERSION, current_column, migrated
from research.config.options import option_node, options
from research.config.rules import TEXT, Rule, list_of, mapping_of, one_of, or_null, whole
from research.config.schema import GROUPS, RUN_DEFAULTS, RUN_RULES, rule_for
from research.config.targets import TARGET, check_targets
from research.utils.errors import UserError

DEEPEST: Final = 12
"""Levels of nesting."""
MOST_VALUES: Final = 20_000
"""Of a configuration, with a value more for every hundred characters of its texts."""
MOST_KNOWN: Final = 2_000_000
"""Of metadata and of a history, an epoch of which has about thirty."""
LONGEST: Final = 10_000
"""Characters of one text; of a tag, as many as fit."""
TAGS: Final = "tags"
"""Free words, which nothing reads."""
TRACKERS: Final = "logging"
CACHE: Final = "runs/cache"
"""Where data sets keep what they measured, where the folder of a file does not count."""

Plain = dict[str, Any]
NOTHING: Final = object()

SCALAR = Rule(
    "a number, text, true, false or null", lambda value: not isinstance(value, dict | list)
)
SIZE = whole(1, 2**16)
METADATA: Final[dict[str, Rule]] = {
    "name": TEXT,
    "classes": list_of(TEXT),
    "channels": list_of(TEXT, least=3),
    "dtype": one_of("uint8", "uint16"),
    "features": or_null(list_of(TEXT, least=1)),
    "feature_sizes": mapping_of(SIZE),
    "feature_keys": mapping_of(TEXT),
}
"""What a data set says of itself, see ``DataModule.metadata``."""
TRANSFORM: Final[dict[str, Rule]] = {
    "image_size": SIZE,
    "max_boxes": SIZE,
    "window": whole(1, 8),
    "source": one_of("pixels", "bitstream"),
    "resize": one_of("letterbox"),
    "fit": one_of("pad", "crop"),
}
"""How its samples were made."""
STATE: Final[dict[str, Rule]] = {
    "epoch": whole(0),
    "step": whole(0),
    "batch": whole(0),
    "best": Rule("a number, or null", lambda value: value is None or type(value) in (int, float)),
    "best_epoch": whole(0),
    "history": list_of(Rule("a row of an epoch", lambda row: _is_row(row))),
}
"""How far a run has come, see ``research.engine.state.TrainState``."""


def _is_row(row: Any) -> bool:
    """Whether a row of a history has what the summary makes of it."""
    numbers = ("epoch", "epoch_time_sec")
    return mapping_of(SCALAR).holds(row) and all(type(row.get(n)) in (int, float) for n in numbers)


def configuration(document: Any, where: str, trust: Collection[str] = ()) -> Plain:
    """A configuration out of a file, under the names of today.

    Args:
        document: what the file holds.
        where: the file, for messages.
        trust: names of the user's own that ``_target_`` may have in it.

    Returns:
        a configuration as ``resolved`` gives it; what it lacks is at its default.

    Raises:
        UserError: for anything that may not stand in a configuration.
    """
    try:
        config = completed(migrated(_plain(document)))
        if config["version"] != VERSION:
            version = str(config["version"])[:40]
            raise UserError(
                "version", f"version={version}: this code reads up to {VERSION}", "update it"
            )
        check_targets(config, trust)
        for line in _problems(config, trust):
            raise UserError("config", line)
    except UserError as error:
        raise UserError("config", f"{where}: refused, its configuration has {error}") from None
    config["trust"] = sorted(trust)
    return config


def metadata(document: Any, where: str, *, foreign: bool = False) -> Plain:
    """What a data set said of itself, out of a file.

    Args:
        document: what the file holds.
        where: the file, for messages.
        foreign: of a data set that is not ours; other entries are then plain values.

    Raises:
        UserError: for an entry that is not known or may not be so.
    """
    found = _record(document, METADATA | {"transform": mapping_of(SCALAR)}, where, open_=foreign)
    if not foreign:
        transform(found.get("transform", {}), where)
    return {"classes": [], **found}


def transform(document: Any, where: str) -> Plain:
    """How samples were made, out of a file.

    Raises:
        UserError: for an entry that is not known or may not be so.
    """
    return _record(document, TRANSFORM, where)


def state(document: Any, where: str) -> Plain:
    """How far a run has come, out of a file; columns are called as today.

    Raises:
        UserError: for an entry that is not known or may not be so.
    """
    found = _record(document, STATE, where)
    rows = [{current_column(k): v for k, v in row.items()} for row in found.get("history", [])]
    return {**found, "history": rows}


def recorded(document: Any, where: str) -> Plain:
    """A configuration out of a file under the names of today, to be compared and not to be built.

    It may have settings that are no more.

    Raises:
        UserError: when it is none.
    """
    try:
        return migrated(_plain(document))
    except UserError as error:
        raise UserError("config", f"{where}: refused, its configuration has {error}") from None


def completed(config: Plain) -> Plain:
    """A configuration in which what it lacks stands at its default.

    A setting that came later is lacking in earlier runs. Where its default is not what these did,
    the migration says so.
    """
    found = copy.deepcopy(config)
    for name, default in RUN_DEFAULTS.items():
        found.setdefault(name, copy.deepcopy(default))
    for group in GROUPS:
        node = found.get(group)
        if isinstance(node, dict):
            _fill(node, _shapes(group, node))
    return found


def places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every dotted key that names a file, a folder or an address, with its value."""
    rules = group_rules(config)
    return {
        key: value
        for key, value in _leaves(config, "", rules)
        if value and rule_for(key, None, rules).place
    }


def without_places(config: Mapping[str, Any]) -> Plain:
    """The same configuration without ``places``: no file, no address, nothing to be rendered."""
    found = copy.deepcopy(dict(config))
    for key, value in places(found).items():
        *parts, last = key.split(".")
        node = found
        for part in parts:
            node = node[part]
        node[last] = CACHE if last == "cache_dir" else type(value)()
    if "demo" in found["dataset"]:
        found["dataset"]["demo"] = None
    return {**found, "resume": None, "init_from": None, "run_dir": None, TRACKERS: {}}


def _problems(config: Plain, trust: Collection[str]) -> Iterator[str]:
    rules = group_rules(config)
    for name, value in config.items():
        if name in RUN_RULES:
            yield from _wrong(name, value, RUN_DEFAULTS[name], rules)
        elif name not in GROUPS:
            yield f"{name}, which is no setting"
    for group in GROUPS:
        node = config.get(group)
        if not isinstance(node, dict):
            yield f"no {group}"
        elif node.get(TARGET) not in trust:
            shapes = _shapes(group, node)
            if not shapes:
                yield f"{group}, which is none of {', '.join(options(group))}"
            found = [list(_differing(group, node, shape, trust, rules)) for shape in shapes]
            yield from min(found, key=len, default=[])[:1]


def _shapes(group: str, node: Plain) -> list[Plain]:
    """The options of a group that a node may be of: those with the same ``_target_``."""
    nodes = [option_node(group, option) for option in options(group)]
    if group == TRACKERS:
        # Of these there may be several at once.
        every = {name: value for each in nodes for name, value in each.items()}
        return [{name: every[name] for name in node if name in every}]
    return [each for each in nodes if each.get(TARGET) == node.get(TARGET)]


def _differing(
    path: str, node: Plain, shape: Plain, trust: Collection[str], rules: Mapping[str, Rule]
) -> Iterator[str]:
    """What a node has that an option of this shape may not have, a line each."""
    for name in shape:
        if name not in node:
            yield f"no {path}.{name}"
    for name, value in node.items():
        key = f"{path}.{name}"
        if isinstance(value, dict) and value.get(TARGET) in trust:
            continue
        if name not in shape:
            yield f"{key}, which is no setting"
        elif name.startswith("_"):
            if value != shape[name]:
                yield f"{key}={value}"
        elif isinstance(shape[name], dict) and isinstance(value, dict) and shape[name]:
            yield from _differing(key, value, shape[name], trust, rules)
        else:
            yield from _wrong(key, value, shape[name], rules)


def _wrong(key: str, value: Any, default: Any, rules: Mapping[str, Rule]) -> Iterator[str]:
    try:
        # Interpolations and what each option must say are of any type.
        open_ = isinstance(default, str) and (default == "???" or "${" in default)
        check_value(key, value, None if open_ else default, rules)
    except UserError as error:
        yield str(error)


def _fill(node: Plain, shapes: Sequence[Plain]) -> None:
    """Add the keys that all shapes have with one default."""
    for name in dict.fromkeys(name for shape in shapes for name in shape):
        defaults = [shape.get(name, NOTHING) for shape in shapes]
        first = defaults[0]
        if name not in node:
            if all(default == first for default in defaults) and "${" not in str(first):
                node[name] = copy.deepcopy(first)
        elif isinstance(node[name], dict):
            below = [default for default in defaults if isinstance(default, dict)]
            same = [d for d in below if d.get(TARGET) == node[name].get(TARGET)]
            _fill(node[name], same)


def _record(document: Any, rules: Mapping[str, Rule], where: str, *, open_: bool = False) -> Plain:
    try:
        found = _plain(document, MOST_KNOWN)
        for name, value in found.items():
            if name not in rules and not open_:
                raise UserError("config", f"{name}, which is not known")
            if name in rules and not rules[name].holds(value):
                raise UserError(
                    "config", f"{name}={str(value)[:80]}: expected {rules[name].allowed}"
                )
    except UserError as error:
        raise UserError("config", f"{where}: refused, its metadata have {error}") from None
    return found


def _plain(document: Any, most: int = MOST_VALUES) -> Plain:
    """The document, if it is a mapping of plain values; tuples become lists.

    Raises:
        UserError: for other values, interpolations, and what is too large to be a configuration.
    """
    if not isinstance(document, Mapping):
        raise UserError("config", "no mapping of settings")
    left = [most]

    def copied(node: Any, key: str, depth: int) -> Any:
        left[0] -= 1 + (len(node) // 100 if isinstance(node, str) else 0)
        if depth > DEEPEST or left[0] < 0:
            raise UserError("config", f"{key[:80]}: too many values, or too deep")
        if isinstance(node, Mapping):
            for name in node:
                if not isinstance(name, str) or len(name) > LONGEST:
                    raise UserError("config", f"{key}: a key that is no text")
            return {name: copied(v, f"{key}.{name}", depth + 1) for name, v in node.items()}
        if isinstance(node, list | tuple):
            return [copied(v, f"{key}.{place}", depth + 1) for place, v in enumerate(node)]
        if isinstance(node, str):
            free = key.startswith(f"{TAGS}.")
            if "${" in node and not free:
                raise UserError(
                    "config", f"{key}={node[:80]}: an interpolation", "a file holds values"
                )
            if len(node) > LONGEST and not free:
                raise UserError("config", f"{key}: a text of {len(node):,} characters")
            return node
        if node is None or type(node) in (bool, int, float):
            return node
        raise UserError("config", f"{key}: a {type(node).__name__}, no plain value")

    found: Plain = {}
    for name, value in document.items():
        if not isinstance(name, str):
            raise UserError("config", "a key that is no text")
        found[name] = copied(value, name, 1)
    return found


def _leaves(
    node: Mapping[str, Any], path: str, rules: Mapping[str, Rule]
) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{path}{name}"
        if isinstance(value, dict) and value and not rule_for(key, None, rules).place:
            yield from _leaves(value, f"{key}.", rules)
        else:
            yield key, value
