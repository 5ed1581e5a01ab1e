"""Renamed keys, ``_target_`` names, columns and metrics, by version.

A rename is one entry of ``MIGRATIONS``. It is applied to every configuration that is read from a
file, before the configuration is checked, compared or used; to the tables of run folders; and to
the settings that identify a study. For an old key on a command line, the error names the new one.
An old name must never be used again with another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final


@dataclass(frozen=True, eq=False)  # hashed by identity
class Migration:
    """The names that one version changed.

    Attributes:
        keys: dotted keys of the configuration, old to new.
        targets: values of ``_target_``, old to new.
        columns: names of columns and metrics, old to new.
        added: values of new dotted keys for runs before this version; only if their behaviour
            differs from the default.
        only: settings of the runs for which ``added`` is; empty: all.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)


SCHEDULES: Final = ("constant", "cosine", "exponential", "linear", "multistep", "one_cycle", "step")

MIGRATIONS: Final[list[Migration]] = [
    # 1 → 2: optimizers and schedules moved into the engine, rendered data into demos.
    Migration(
        targets={
            "research.optimizers.by_name": "research.engine.optimizers.by_name",
            **{
                f"research.schedules.{name}": f"research.engine.schedules.{name}"
                for name in SCHEDULES
            },
            "research.data.demo.Scenes": "research.demos.scenes.Scenes",
            "research.data.pairs.demo.PhotoDemo": "research.demos.photos.PhotoDemo",
            "research.data.rgbx.demo.RgbxDemo": "research.demos.rgbx.RgbxDemo",
            "research.data.warehouse.demo.DemoStore": "research.demos.store.DemoStore",
        }
    ),
    # 2 → 3: how batches are loaded is a setting of the run, not of the data set.
    Migration(keys={f"dataset.{key}": key for key in ("batch_size", "workers", "pin_memory")}),
    # 3 → 4: the refinement of reconstruction is a setting; it worked at full resolution.
    Migration(
        added={"compression.refinement": "pixels"}, only={"compression.variant": "reconstruction"}
    ),
]
"""One entry per version, from version 1 to 2 on."""

VERSION: Final = 1 + len(MIGRATIONS)
"""Version of the names that this code writes."""
MONITORS: Final = ("monitor", "task.monitor")
"""Keys whose value starts with the name of a metric."""


def migrated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with the current names.

    Args:
        config: plain and nested; of version 1 if it has no ``version``.
    """
    result = _copied(config)
    version = result.setdefault("version", 1)
    known = type(version) is int and 1 <= version <= VERSION
    for step in MIGRATIONS[version - 1 :] if known else ():
        for old, new in step.keys.items():
            # With both, the old key stays, and is refused as unknown.
            if _has(result, old) and not _has(result, new):
                _put(result, new, _pop(result, old))
        if all(
            _has(result, key) and _get(result, key) == value for key, value in step.only.items()
        ):
            for key, value in step.added.items():
                if not _has(result, key):
                    _put(result, key, value)
    _rename_targets(result)
    for key in MONITORS:
        if _has(result, key) and isinstance(_get(result, key), str):
            metric, colon, mode = _get(result, key).partition(":")
            _put(result, key, f"{current_column(metric)}{colon}{mode}")
    if known:
        result["version"] = VERSION
    return result


def current_key(key: str) -> str:
    """The current name of a dotted key of any version, also of a key below a renamed one."""
    return _current_key(key, tuple(MIGRATIONS))


@lru_cache(maxsize=4096)  # a comparison asks for the same keys in every run
def _current_key(key: str, steps: tuple[Migration, ...]) -> str:
    for step in steps:
        for old, new in step.keys.items():
            if key == old or key.startswith(f"{old}."):
                key = new + key.removeprefix(old)
                break
    return key


def current_word(word: str) -> str:
    """An override ``key=value`` of any version with the current names."""
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    prefix = key.removesuffix(bare)
    value = current_target(value) if bare.endswith("_target_") else value
    return f"{prefix}{current_key(bare)}{equals}{value}"


def current_target(name: str) -> str:
    """The current name of a ``_target_`` of any version."""
    for step in MIGRATIONS:
        name = step.targets.get(name, name)
    return name


def current_column(name: str) -> str:
    """The current name of a column or metric of any version."""
    for step in MIGRATIONS:
        name = step.columns.get(name, name)
    return name


def _copied(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list | tuple) else node


def _rename_targets(node: Any) -> None:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _rename_targets(child)
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        node["_target_"] = current_target(node["_target_"])


def _parent(config: dict[str, Any], key: str, *, make: bool = False) -> dict[str, Any] | None:
    node: Any = config
    for part in key.split(".")[:-1]:
        node = node.setdefault(part, {}) if make else node.get(part)
        if not isinstance(node, dict):
            return None
    return node


def _has(config: dict[str, Any], key: str) -> bool:
    node = _parent(config, key)
    return node is not None and key.rpartition(".")[2] in node


def _get(config: dict[str, Any], key: str) -> Any:
    node = _parent(config, key)
    assert node is not None
    return node[key.rpartition(".")[2]]


def _pop(config: dict[str, Any], key: str) -> Any:
    """Remove a key, and mappings that are empty without it; returns its value."""
    node = _parent(config, key)
    assert node is not None
    above, _, last = key.rpartition(".")
    value = node.pop(last)
    if above and not node:
        _pop(config, above)
    return value


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    node = _parent(config, key, make=True)
    if node is not None:
        node[key.rpartition(".")[2]] = value
