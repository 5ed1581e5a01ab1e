"""Applies the overrides of a command to the stored configuration of a run."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from research.config import stored
from research.config.checks import check_value
from research.config.compose import defaults_of
from research.config.group_rules import group_rules
from research.config.keys import leaves, setting_values
from research.config.messages import unknown_key
from research.config.rules import Rule
from research.config.schema import GROUPS, register
from research.utils.documents import parse_typed
from research.utils.errors import UserError

Config = Mapping[str, Any]
TAGS = "tags"
WEIGHTS = "feature_weights"
"""Key of a data set whose value is a mapping of features to files."""


def for_use(
    config: Config, overrides: Sequence[str], where: str, *, own: bool, data: bool
) -> dict[str, Any]:
    """The configuration of a checkpoint, for use with the user's overrides.

    Args:
        config: of a checkpoint, from ``stored.configuration``.
        overrides: ``key=value`` each, of the user.
        where: the file, for messages.
        own: whether the file is under the user's own ``runs/``, so that files and folders named in
            it are used.
        data: whether the data set will be read.

    Raises:
        UserError: for an invalid override, or for data that only a file outside of ``runs/`` names.
    """
    if not own:
        overridden = {word.partition("=")[0] for word in overrides}
        paths = {
            key: value
            for key, value in stored.paths_in(config).items()
            if key.startswith("dataset.") and not key.startswith(("dataset.demo.", "dataset.cache"))
        }
        missing = [f"{k}={json.dumps(v)}" for k, v in paths.items() if k not in overridden]
        if data and missing:
            raise UserError(
                "dataset",
                f"{where}: it is outside runs/, so the data that it names are not read",
                f"set where the data are, such as {shlex.join(missing)}",
            )
        config = stored.without_paths(config)
    return changed(config, overrides)


def changed(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a run's configuration with changed values of existing keys.

    Args:
        config: plain and nested.
        overrides: ``key=value`` each.

    Raises:
        UserError: for a key that it does not have, or an invalid value.
    """
    register()
    rules = group_rules(config)
    result = copy.deepcopy(dict(config))
    for word in overrides:
        key, _, text = word.partition("=")
        if key in GROUPS:
            raise UserError(
                key,
                f"{word}: the {key} of a run is fixed",
                f"set its keys, {key}.KEY=value",
            )
        try:
            value = parse_typed(text)
        except ValueError:
            raise UserError(
                key, f"{word!r}: the value is not YAML", "close brackets, quote lists"
            ) from None
        set_value(result, key, value, rules)
    return result


def set_value(config: dict[str, Any], key: str, value: Any, rules: Mapping[str, Rule]) -> None:
    """Set an existing key of a run's configuration.

    Args:
        config: plain and nested; changed.
        key: dotted.
        value: of any type.
        rules: of the groups' keys.

    Raises:
        UserError: for a key that it does not have, or an invalid value.
    """
    group, _, rest = key.partition(".")
    part, _, name = rest.partition(".")
    if group == TAGS and rest:
        config[TAGS] = {**config[TAGS], rest: str(value)}
        return
    if part == WEIGHTS and part in (config.get(group) or {}):
        if name:  # of a feature, which may contain dots
            value = {**(config[group][part] or {}), name: value}
        key = f"{group}.{part}"
        check_value(key, value, None, rules)
    else:
        known = dict(leaves(config))
        if key not in known:
            raise unknown_key(key, config, {})
        default = setting_values(defaults_of(frozenset())).get(key, known[key])
        check_value(key, value, default, rules)
    *parts, last = key.split(".")
    node = config
    for part in parts:
        node = node[part]
    node[last] = value
