"""Finds the rules of a group's keys, which are in files next to the code that the group builds.

The rules of ``_target_: research.data.pairs.source.PhotoPairs`` are in ``rules.py`` of each package
in its path (``research/data``, ``research/data/pairs``) and in ``source_rules.py`` next to
``source.py``; none of these files has to exist. The same holds for a ``_target_`` in a user's own
package. A nested node with a ``_target_``, such as ``dataset.augmentation``, has only the rules of
the last existing file of this list. A file of rules imports no torch and defines one or both of

- ``RULES``: the rule of each key, by its name in the node: ``policy`` for
  ``dataset.augmentation.policy``;
- ``faults(job)``: yields a ``UserError`` for each combination of values that cannot be trained.

A key without a rule accepts values of the type of its default in YAML.
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

LAUNCHER: Final = "hydra.launcher"
OF_GROUPS: Final = {
    "model": "research.models.rules",
    "dataset": "research.data.rules",
    "optimizer": "research.engine.optimizers_rules",
    "scheduler": "research.engine.schedules_rules",
    "compression": "research.compression.rules",
    "task": "research.tasks.rules",
    "logging": "research.tracking.rules",
    "hydra.sweeper": "research.sweeps.rules",
    LAUNCHER: "research.sweeps.launcher_rules",
}
"""The module with the rules for all options of a group; it need not exist."""
LIBRARIES: Final = ("torch", "torchvision", "timm", "mlflow", "optuna", "hydra")
"""Packages that have no files of rules; they are not imported to look for some."""
TARGET: Final = "_target_"


@dataclass(frozen=True)
class Job:
    """A composed configuration, as ``faults`` receives it.

    Attributes:
        settings: plain and nested, without declarations.
        choices: the chosen option of each group.
        overrides: the user's ``key=value`` arguments; ``None`` if they are not known.
        declared: the declarations of the chosen options.
        rules: rules by dotted key, from ``group_rules``.
    """

    settings: Mapping[str, Any]
    choices: Mapping[str, str | None]
    overrides: Sequence[str] | None
    declared: Declarations
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def required(self, key: str, example: str) -> Iterator[UserError]:
        """An error if a setting without a default is not set.

        Args:
            key: such as ``dataset.root``.
            example: the rest of the line after ``add``, with a value that would be accepted.
        """
        group, _, name = key.partition(".")
        if not self.settings[group][name]:
            option = f"{group}={self.choices.get(group)}"
            yield UserError(key, f"{key} is required for {option}", f"add {example}")


def group_rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """Rules by dotted key, for all keys of the groups that have one.

    Args:
        config: a configuration whose ``_target_`` names have been checked by ``check_targets``:
            modules of rules are imported by these names.
    """
    rules_by_key: dict[str, Rule] = {}
    for path, target in _nodes(config):
        for module in _modules(path, target):
            rules: Mapping[str, Rule] = getattr(module, "RULES", {})
            rules_by_key |= {f"{path}.{key}": rule for key, rule in rules.items()}
    return rules_by_key


def faults(job: Job) -> Iterator[UserError]:
    """All errors of the ``faults`` functions, group by group; each function is called once."""
    modules = [
        module
        for path, target in _nodes(job.settings)
        if path in job.settings or path not in OF_GROUPS
        for module in _modules(path, target)
    ]
    for module in dict.fromkeys(modules):
        if hasattr(module, "faults"):
            yield from module.faults(job)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Path and ``_target_`` (or None) of every group, and of every nested node that has one."""
    for group in OF_GROUPS:
        node = config.get(group)
        yield group, node.get(TARGET) if isinstance(node, Mapping) else None
        yield from _nested(group, node)


def _nested(path: str, node: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if isinstance(value, Mapping):
                if TARGET in value:
                    yield f"{path}.{name}", value[TARGET]
                yield from _nested(f"{path}.{name}", value)


@lru_cache(maxsize=1024)
def _modules(path: str, target: str | None) -> tuple[ModuleType, ...]:
    """The existing modules of rules for a node, the most general first."""
    names = [OF_GROUPS[path]] if path in OF_GROUPS else []
    package, _, _ = str(target or "").rpartition(".")
    parts = package.split(".")
    if package and parts[0] not in LIBRARIES:
        packages = [".".join([*parts[: end + 1], "rules"]) for end in range(len(parts))]
        # Those in OF_GROUPS are for the node of the group only, which has them already.
        names += [name for name in packages if name not in OF_GROUPS.values()]
        names.append(f"{package}_rules")
    files = [name for name in dict.fromkeys(names) if _exists(name)]
    if path not in OF_GROUPS:
        files = files[-1:]  # a nested node has its own keys: general rules do not apply
    return tuple(importlib.import_module(name) for name in files)


def _exists(name: str) -> bool:
    """Whether a module exists, without importing it or its parents."""
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
