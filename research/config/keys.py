"""Nested configurations as dotted keys: their values, and the differences of two."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

MISSING: Final = object()
"""Stands for the value of a key that a configuration does not have."""
WITHOUT_EFFECT: Final = frozenset(
    {
        "name", "tags", "device", "logging", "log_every", "save_every", "save_every_minutes",
        "keep", "resume", "run_dir", "trust", "version", "monitor", "workers",
        "pin_memory", "channels_last", "dataset.cache_dir", "dataset.on_device",
        "dataset.device_budget", "dataset.verify", "dataset.download",
    }
)  # fmt: skip
"""Settings, with those below them, on which the result of training does not depend."""


def leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value; an empty mapping is a value."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def setting_values(node: Mapping[str, Any]) -> dict[str, Any]:
    """Every dotted key with its value, without ``_target_`` and ``_partial_``."""
    return {k: v for k, v in leaves(node) if not k.rpartition(".")[2].startswith("_")}


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], but: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    """Both values of every dotted key whose values differ; ``MISSING`` stands for no value.

    Args:
        then: a configuration; a tuple in it equals a list, as in its file.
        now: another one.
        but: top-level keys that are not compared.
    """
    # Through JSON, so that tuples read back as lists compare equal.
    ours, theirs = (dict(leaves(json.loads(json.dumps(config)))) for config in (then, now))
    pairs = {
        key: (ours.get(key, MISSING), theirs.get(key, MISSING))
        for key in dict.fromkeys([*ours, *theirs])
        if key.partition(".")[0] not in but
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def is_below(key: str, keys: Collection[str]) -> bool:
    """Whether a dotted key, or one above it, is among ``keys``."""
    parts = key.split(".")
    return any(".".join(parts[: end + 1]) in keys for end in range(len(parts)))
