"""A stored configuration under the settings that a user gives for its later use."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from research.config import stored
from research.config.checks import check_value
from research.config.compose import defaults_of
from research.config.messages import dotted, no_key
from research.config.schema import GROUPS, register
from research.errors import UserError

Config = Mapping[str, Any]
FREE = ("dataset.feature_weights",)
"""Keys that hold a mapping of the user's own names."""


def for_use(
    config: Config, overrides: Sequence[str], where: str, *, own: bool, data: bool
) -> dict[str, Any]:
    """The configuration with which a trained model is used again.

    Args:
        config: of a checkpoint, from ``stored.configuration``.
        overrides: ``key=value`` each, of the user.
        where: the file, for messages.
        own: it lies under the user's own ``runs/``, so that the files and folders it names count.
        data: its data set will be read.

    Raises:
        UserError: for an override that may not be, or folders that only a foreign file names.
    """
    if not own:
        given = {word.partition("=")[0] for word in overrides}
        named = {
            key: value
            for key, value in stored.places(config).items()
            if key.startswith("dataset.") and not key.startswith(("dataset.demo.", "dataset.cache"))
        }
        missing = [f"{k}={json.dumps(v)}" for k, v in named.items() if k not in given]
        if data and missing:
            raise UserError(
                f"{where}: it lies outside runs/, so that the files it names are not read; say "
                f"where the data are, such as {shlex.join(missing)}"
            )
        config = stored.without_places(config)
    return changed(config, overrides)


def changed(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """A run's configuration with settings changed; only keys that it has.

    Args:
        config: plain and nested; left as it is.
        overrides: ``key=value`` each.

    Raises:
        UserError: for a key that it has not, or a value that may not stand there.
    """
    register()
    defaults = dict(dotted(defaults_of(frozenset())))
    result = copy.deepcopy(dict(config))
    for word in overrides:
        key, _, text = word.partition("=")
        if key in GROUPS:
            raise UserError(f"{word}: the {key} of a run stays; settings of it are {key}.KEY=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(
                f"{word!r}: the value is not YAML; close brackets, quote lists"
            ) from None
        known = {**dict(dotted(result)), **{k: _value(result, k) for k in FREE if _has(result, k)}}
        above, last = _entry(key, known)
        if above and last:
            entries = {**(known.get(above) or {}), last: value}
            check_value(above, entries, None)
            key, value = above, entries
        elif key not in known:
            raise UserError(no_key(key, result, {}))
        else:
            check_value(key, value, defaults.get(key, known[key]))
        *parts, last = key.split(".")
        node = result
        for part in parts:
            node = node[part]
        node[last] = value
    return result


def _has(config: Config, key: str) -> bool:
    above, _, last = key.rpartition(".")
    return last in (_value(config, above) or {})


def _value(config: Config, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _entry(key: str, known: Config) -> tuple[str, str]:
    """A key of ``FREE`` and the name below it, which may have dots; nothing for another key."""
    for above in FREE:
        if above in known and key.startswith(f"{above}."):
            return above, key.removeprefix(f"{above}.")
    return "", ""
