"""What makes two sweeps one study: objectives, search space and resolved configuration.

The words of a command line do not: after an edit of a YAML file the same words are another study.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from research.config import stored
from research.config.keys import MISSING, WITHOUT_EFFECT, is_below, leaves
from research.config.messages import format_change
from research.sweeps.objectives import Objective
from research.sweeps.space import Space, same_values

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
Changes = dict[str, tuple[Any, Any]]
"""Both values, stored and today's, of every key in which two searches differ."""

MAX_CHANGES: Final = 5


@dataclass(frozen=True)
class Search:
    """What a sweep looks for, and where.

    Attributes:
        objectives: what is optimised.
        monitor: ``METRIC:max`` or ``METRIC:min``.
        space: of the sweep.
        storage: URL of the storage, or the path of the journal.
        sampler: the name of its class.
        configuration: resolved, without the swept values.
        options: if options of groups are swept, the resolved configuration for each combination.
        settings: of sampler and pruner; they identify a study only if it has no name of its own.
    """

    objectives: Sequence[Objective]
    monitor: str
    space: Space
    storage: str
    sampler: str
    configuration: Config
    options: Mapping[str, Config]
    settings: Any

    def document(self) -> dict[str, Any]:
        """The entries of ``study.json``."""
        return {
            "objectives": [objective._asdict() for objective in self.objectives],
            "space": self.space.expressions,
            "fixed": self.space.identity,
            "storage": self.storage,
            "sampler": self.sampler,
            "monitor": self.monitor,
            "configuration": self.configuration,
            "options": self.options,
        }

    @property
    def sampling(self) -> str:
        return digest(self.settings, 16)

    def name(self, prefix: str) -> str:
        """The name of a new study."""
        document = self.document()
        parts = [document[key] for key in ("objectives", "space", "sampler", "monitor")]
        configurations = self.options or {"": self.configuration}
        compared = {
            words: compared_settings(
                config, self._swept(bool(self.options)), frozenset(stored.paths_in(config))
            )
            for words, config in configurations.items()
        }
        return f"{prefix}_{digest([*parts, local(self.storage), compared, self.sampling], 8)}"

    def changes(self, known: Mapping[str, Any]) -> Changes:
        """In what a study differs from this search; empty if it is the same.

        Args:
            known: its description, from ``read_description``.

        Raises:
            UserError: if a configuration in it is refused.
        """
        pairs: Changes = {}
        stored_names = [f"{each['name']}:{each['direction']}" for each in known["objectives"]]
        pairs["objectives"] = (
            ", ".join(stored_names),
            ", ".join(f"{name}:{direction}" for name, direction in self.objectives),
        )
        pairs["monitor"] = (known["monitor"], self.monitor)
        pairs["sampler"] = (known["sampler"], self.sampler)
        pairs["storage"] = (local(known["storage"]), local(self.storage))
        for key in dict.fromkeys([*known["space"], *self.space.expressions]):
            then, now = known["space"].get(key), self.space.expressions.get(key)
            if then is None or now is None or not same_values(then, now):
                pairs[key] = (MISSING if then is None else then, MISSING if now is None else now)
        pairs = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
        both = [words for words in self.options if words in known.get("options", {})]
        if not self.options or len(both) < len(self.options):
            then = known["configuration"]
            return pairs | self._changed(then, self.configuration, self._swept(options=False))
        swept = self._swept(options=True)
        for words in both:
            pairs |= self._changed(known["options"][words], self.options[words], swept)
        return pairs

    def _changed(self, then: Config, now: Config, swept: frozenset[str]) -> Changes:
        before = stored.with_defaults(stored.unchecked(then, "study.json"))
        return changed_settings(before, now, swept)

    def _swept(self, options: bool) -> frozenset[str]:
        """Keys that are not compared because each trial has its own value."""
        keys = {key.lstrip("+") for key in self.space.axes}
        groups = {word.partition("=")[0] for words in self.options for word in words.split(" ")}
        return frozenset(keys - groups if options else keys)


def changed_settings(then: Config, now: Config, swept: frozenset[str] = frozenset()) -> Changes:
    """The settings of two configurations that differ, and on which the result of a trial depends.

    Args:
        then: stored, migrated, with defaults; its content is not trusted.
        now: resolved and checked; it says which settings are paths.
        swept: keys that are left out, with those below them.
    """
    paths = frozenset(stored.paths_in(now))
    before, after = (compared_settings(each, swept, paths) for each in (then, now))
    pairs = {
        key: (before.get(key, MISSING), after.get(key, MISSING))
        for key in dict.fromkeys([*before, *after])
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def compared_settings(
    config: Config, swept: frozenset[str], paths: frozenset[str]
) -> dict[str, Any]:
    """Every dotted key on which the result of a trial depends, with its value.

    Args:
        config: resolved.
        swept: keys that are left out, with those below them.
        paths: keys whose values are files or folders, which are compared where they lie.
    """
    # Through JSON, so that tuples read back as lists compare equal.
    values = dict(leaves(json.loads(json.dumps(config))))
    return {
        key: local(value) if is_below(key, paths) else value
        for key, value in values.items()
        if not is_below(key, WITHOUT_EFFECT | swept)
    }


def local(value: Any) -> Any:
    """A path in one form, however it is written: relative to this folder if it lies in it."""
    if isinstance(value, list):
        return [local(entry) for entry in value]
    if not isinstance(value, str) or not value:
        return value
    scheme, found, path = value.partition(":///")
    if found and scheme.startswith("sqlite"):
        return f"{scheme}:///{local(path)}"
    if "://" in value or "\0" in value:
        return value
    real, here = os.path.realpath(value), os.path.realpath(".")
    return os.path.relpath(real, here) if Path(real).is_relative_to(here) else real


def format_changes(changes: Changes) -> str:
    """The first changes in words: ``epochs: 1 → 3``."""
    lines = [format_change(key, *pair) for key, pair in changes.items()]
    more = f" and {len(lines) - MAX_CHANGES} more" if len(lines) > MAX_CHANGES else ""
    return ", ".join(lines[:MAX_CHANGES]) + more


def digest(content: Any, length: int) -> str:
    """The first characters of a hash of plain values."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
