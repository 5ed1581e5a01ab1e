"""Finds the rules of the groups' keys, which are in files next to the code that a group builds.

The rules for ``_target_: research.data.pairs.source.PhotoPairs`` are in ``rules.py`` of each
package on its path (``research/data``, ``research/data/pairs``) and in ``source_rules.py``, if
these files exist. The same holds for a ``_target_`` in a user's own package. For a node inside a
group's node, such as ``dataset.augmentation``, only the last of these files is used. A file of
rules does not import torch. It defines one or both of

- ``RULES``: rules by the name of the key in its node, such as ``policy`` for
  ``dataset.augmentation.policy``;
- ``faults(job)``: yields a ``UserError`` for each combination of settings that cannot be trained.

A key without a rule must have the type of its default in YAML.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from research.config.declarations import Declarations
from research.config.rules import Rule
from research.utils.errors import UserError

OF_GROUPS: Final = {
    "model": "research.models.rules",
    "dataset": "research.data.rules",
    "optimizer": "research.engine.optimizers_rules",
    "scheduler": "research.engine.schedules_rules",
    "compression": "research.compression.rules",
    "task": "research.tasks.rules",
    "logging": "research.tracking.rules",
    "hydra.sweeper": "research.sweeps.rules",
}
"""Modules with the rules of every option of a group."""
LIBRARIES: Final = ("torch", "torchvision", "timm", "mlflow", "optuna", "hydra")
"""Packages without rule files, which are not imported to search for them."""
TARGET: Final = "_target_"


@dataclass(frozen=True)
class Job:
    """A composed configuration, as ``faults`` receives it.

    Attributes:
        settings: plain and nested, without declarations.
        choices: the chosen option of each group.
        overrides: the user's own, ``key=value`` each; None if they are not known.
        declared: declarations of the options.
        rules: by dotted key.
    """

    settings: Mapping[str, Any]
    choices: Mapping[str, str | None]
    overrides: Sequence[str] | None
    declared: Declarations
    rules: Mapping[str, Rule] = field(default_factory=dict)


def group_rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of a configuration's groups, by dotted key.

    Args:
        config: its ``_target_`` values must have been checked, since rule files are imported by
            these names.
    """
    rules: dict[str, Rule] = {}
    for path, target in _nodes(config):
        for module in _modules(path, target):
            own: Mapping[str, Rule] = getattr(module, "RULES", {})
            rules |= {f"{path}.{key}": rule for key, rule in own.items()}
    return rules


def faults(job: Job) -> Iterator[UserError]:
    """The faults of all groups; each file of rules is called once."""
    modules = [module for path, target in _nodes(job.settings) for module in _modules(path, target)]
    for module in dict.fromkeys(modules):
        if hasattr(module, "faults"):
            yield from module.faults(job)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Path and ``_target_`` of every group, and of every node below it that has a ``_target_``."""
    for group in OF_GROUPS:
        node = config.get(group)
        yield group, node.get(TARGET) if isinstance(node, Mapping) else None
        yield from _below(group, node)


def _below(path: str, node: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if isinstance(value, Mapping):
                if TARGET in value:
                    yield f"{path}.{name}", value[TARGET]
                yield from _below(f"{path}.{name}", value)


@lru_cache(maxsize=1024)
def _modules(path: str, target: str | None) -> tuple[ModuleType, ...]:
    """The modules with the rules of a node, the most general first."""
    names = [OF_GROUPS[path]] if path in OF_GROUPS else []
    package, _, _ = str(target or "").rpartition(".")
    parts = package.split(".")
    if package and parts[0] not in LIBRARIES:
        above = [".".join([*parts[: end + 1], "rules"]) for end in range(len(parts))]
        names += [*(name for name in above if name not in OF_GROUPS.values()), f"{package}_rules"]
    files = [name for name in dict.fromkeys(names) if _exists(name)]
    if path not in OF_GROUPS:
        files = files[-1:]  # the others are for the group's own node
    return tuple(importlib.import_module(name) for name in files)


def _exists(name: str) -> bool:
    """Whether the module has a file; imports nothing."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:
        return False
    if spec is None:
        return False
    if not rest:
        return True
    return any(
        Path(folder, *rest).with_suffix(".py").is_file()
        for folder in spec.submodule_search_locations or ()
    )
