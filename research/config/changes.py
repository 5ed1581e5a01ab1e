"""Applies the overrides of a command to the stored configuration of a run."""

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
from research.config.group_rules import group_rules
from research.config.messages import dotted, no_key
from research.config.schema import GROUPS, register
from research.utils.errors import UserError

Config = Mapping[str, Any]
WEIGHTS = "feature_weights"
"""The key of a data set that holds a mapping: of features to files."""


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
                "dataset",
                f"{where}: it lies outside runs/, so that the files it names are not read",
                f"say where the data are, such as {shlex.join(missing)}",
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
    defaults, rules = dict(dotted(defaults_of(frozenset()))), group_rules(config)
    result = copy.deepcopy(dict(config))
    for word in overrides:
        key, _, text = word.partition("=")
        if key in GROUPS:
            raise UserError(
                key, f"{word}: the {key} of a run stays", f"settings of it are {key}.KEY=value"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(
                key, f"{word!r}: the value is not YAML", "close brackets, quote lists"
            ) from None
        group, _, rest = key.partition(".")
        part, _, name = rest.partition(".")
        if part == WEIGHTS and part in (result.get(group) or {}):
            if name:  # of the user's own, which may have dots
                value = {**(result[group][part] or {}), name: value}
            key = f"{group}.{part}"
            check_value(key, value, None, rules)
        else:
            known = dict(dotted(result))
            if key not in known:
                raise no_key(key, result, {})
            check_value(key, value, defaults.get(key, known[key]), rules)
        *parts, last = key.split(".")
        node = result
        for part in parts:
            node = node[part]
        node[last] = value
    return result
