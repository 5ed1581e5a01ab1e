"""Runs that share their settings, and short names for what they share."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from research.comparison.collect import Recorded
from research.config.messages import shown
from research.config.rules import nearest
from research.utils.errors import UserError

NOT_GROUPED = (
    "seed", "run_dir", "name", "tags", "logging", "device", "resume", "trust", "version",
)  # fmt: skip
"""Settings that make no group of their own: chance, and where things lie."""
NAMES = ("name", "backbone", "variant", "_target_")
"""Last parts of keys that say by themselves what a group of the configuration is."""
NOT_SET = "–"
LONGEST = 28
"""Characters of one value in a label."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing that is looked at.

    Attributes:
        label: short, and no other group's.
        settings: text of every setting in which the groups differ.
        runs: at least one.
        values: by seed, the mean of the metric over the runs of this seed.
    """

    label: str
    settings: dict[str, str]
    runs: list[Recorded]
    values: dict[int, float]

    def cost(self, name: str) -> float | None:
        """Mean over the runs that know it."""
        known = [run.costs[name] for run in self.runs if name in run.costs]
        return sum(known) / len(known) if known else None


def grouped(runs: Sequence[Recorded], metric: str, by: Sequence[str] = ()) -> list[Group]:
    """The runs by their settings.

    Args:
        runs: each with a value of the metric.
        metric: what is compared.
        by: dotted keys and groups of the configuration; empty for all in which the runs differ but
            for ``NOT_GROUPED``.

    Raises:
        UserError: for a key that no run has.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    for name in by:
        if not any(_within(key, name) for key in keys):
            near = nearest(name, [*keys, *{key.partition(".")[0] for key in keys}])
            hint = f"; did you mean {near!r}?" if near else ""
            raise UserError("group_by", f"group_by={name}: no run has such a setting{hint}")
    wanted = [
        key
        for key in keys
        if (any(_within(key, name) for name in by) if by else not _left_out(key))
        and len({_exact(run, key) for run in runs}) > 1
    ]
    buckets: dict[tuple[str, ...], list[Recorded]] = defaultdict(list)
    for run in runs:
        buckets[tuple(_exact(run, key) for key in wanted)].append(run)
    members = list(buckets.values())
    return [
        Group(
            label,
            {key: _text(of[0].settings, key) for key in wanted},
            of,
            _by_seed(of, metric),
        )
        for label, of in zip(labels(members, wanted), members, strict=True)
    ]


def labels(members: Sequence[Sequence[Recorded]], keys: Sequence[str]) -> list[str]:
    """A short text for each group, by as few settings as tell all apart.

    What the user wrote on command lines comes first, then what names a part, then the rest.
    """
    if len(members) == 1:
        models = {run.model for run in members[0]}
        return ["all runs" if len(models) > 1 else models.pop()]
    written = {word.partition("=")[0] for of in members for run in of for word in run.overrides} - {
        "experiment"
    }
    chosen: list[str] = []
    ranked = sorted(keys, key=lambda key: _rank(key, written))
    table = {key: [_exact(of[0], key) for of in members] for key in keys}
    while _distinct(table, chosen) < len(members):
        rest = [key for key in ranked if key not in chosen]
        first = _rank(rest[0], written)[0]
        gains = {key: _distinct(table, [*chosen, key]) for key in rest}
        tier = [key for key in rest if _rank(key, written)[0] == first]
        best = max(tier, key=lambda key: gains[key])
        if gains[best] == _distinct(table, chosen):
            ranked = [key for key in ranked if key not in tier]
        else:
            chosen.append(best)
    chosen.sort(key=lambda key: key.rpartition(".")[2] not in NAMES)
    for longest in (LONGEST, None):
        found = [_label(of[0], chosen, longest) for of in members]
        if len(set(found)) == len(found):
            return found
    # Values that read alike, such as 1 and "1".
    return [f"{text} #{found[: place + 1].count(text)}" for place, text in enumerate(found)]


def _rank(key: str, written: set[str]) -> tuple[int, int]:
    """Where a key stands among those that may make a label; less is earlier."""
    part, _, last = key.rpartition(".")
    if key in written or (last in NAMES and part in written):
        return 0, NAMES.index(last) if last in NAMES else 0
    return (1, NAMES.index(last)) if last in NAMES else (2, key.count("."))


def _distinct(table: Mapping[str, Sequence[str]], keys: Sequence[str]) -> int:
    return len(set(zip(*(table[key] for key in keys), strict=True))) if keys else 1


def _label(run: Recorded, keys: Sequence[str], longest: int | None) -> str:
    lasts = [_short(key) for key in keys]
    words = []
    for key, last in zip(keys, lasts, strict=True):
        value = _text(run.settings, key)
        if longest is not None:
            value = value.rpartition("/")[2] if "/" in value else value
            value = value if len(value) <= longest else f"{value[: longest - 1]}…"
        name = last if lasts.count(last) == 1 else key
        words.append(value if name == "model" and value != NOT_SET else f"{name}={value}")
    return ", ".join(words)


def _short(key: str) -> str:
    part, _, last = key.rpartition(".")
    return part.rpartition(".")[2] if part and last in NAMES else last


def _text(settings: Mapping[str, Any], key: str) -> str:
    """A setting's value for people."""
    if key not in settings:
        return NOT_SET
    value = settings[key]
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def _exact(run: Recorded, key: str) -> str:
    return json.dumps(run.settings[key], sort_keys=True) if key in run.settings else NOT_SET


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _left_out(key: str) -> bool:
    return any(_within(key, name) for name in NOT_GROUPED)


def _by_seed(runs: Iterable[Recorded], metric: str) -> dict[int, float]:
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        value = run.value(metric)
        assert value is not None
        values[run.seed].append(value)
    return {seed: fmean(of) for seed, of in sorted(values.items())}
