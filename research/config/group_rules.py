"""The rules of the groups' keys, which stand beside the code that a group builds.

``_target_: research.data.pairs.source.PhotoPairs`` has rules in ``rules.py`` of each package on
the way (``research/data``, ``research/data/pairs``) and in ``source_rules.py``, as far as there are
such files. So has a ``_target_`` of a user's own package. A node inside a group's node, such as
``dataset.augmentation``, has the nearest of these files alone. A file of rules
imports no torch and has

- ``RULES``: what each key may be, by its name in the node, ``policy`` for
  ``dataset.augmentation.policy``;
- ``faults(job)``: combinations that cannot be trained, as ``UserError`` to be raised.

Either may be left out. Keys without a rule are of the type of their default in YAML.
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
"""The rules that hold for every option of a group."""
LIBRARIES: Final = ("torch", "torchvision", "timm", "mlflow", "optuna", "hydra")
"""Have no rules of ours; looking for them would import them."""
TARGET: Final = "_target_"


@dataclass(frozen=True)
class Job:
    """A composed configuration, as rules see it.

    Attributes:
        settings: plain and nested, without declarations.
        choices: the chosen option of each group.
        overrides: the user's own, ``key=value`` each; ``None`` where they are not known.
        declared: what the options declare.
        rules: of every dotted key that has one.
    """

    settings: Mapping[str, Any]
    choices: Mapping[str, str | None]
    overrides: Sequence[str] | None
    declared: Declarations
    rules: Mapping[str, Rule] = field(default_factory=dict)


def group_rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """The rule of every dotted key of a configuration's groups that has one.

    Args:
        config: whose every ``_target_`` has been checked, since rules are imported by its name.
    """
    found: dict[str, Rule] = {}
    for path, target in _nodes(config):
        for module in _modules(path, target):
            rules: Mapping[str, Rule] = getattr(module, "RULES", {})
            found |= {f"{path}.{key}": rule for key, rule in rules.items()}
    return found


def faults(job: Job) -> Iterator[UserError]:
    """What the rules of the groups find wrong, group by group; each file of rules is asked once."""
    modules = [module for path, target in _nodes(job.settings) for module in _modules(path, target)]
    for module in dict.fromkeys(modules):
        if hasattr(module, "faults"):
            yield from module.faults(job)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """The path of every group, and of every node below it that has a ``_target_``, with that."""
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
    """The modules of rules for a node, the most general first."""
    names = [OF_GROUPS[path]] if path in OF_GROUPS else []
    package, _, _ = str(target or "").rpartition(".")
    parts = package.split(".")
    if package and parts[0] not in LIBRARIES:
        above = [".".join([*parts[: end + 1], "rules"]) for end in range(len(parts))]
        names += [*(name for name in above if name not in OF_GROUPS.values()), f"{package}_rules"]
    files = [name for name in dict.fromkeys(names) if _exists(name)]
    if path not in OF_GROUPS:
        files = files[-1:]  # those above are of the group's own node
    return tuple(importlib.import_module(name) for name in files)


def _exists(name: str) -> bool:
    """Whether there is a file of that module; nothing is imported to find out."""
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
