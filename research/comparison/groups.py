"""Groups of runs with the same settings, and short labels for them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from research.comparison.collect import RecordedRun
from research.config.keys import WITHOUT_EFFECT, is_below
from research.config.messages import format_value
from research.config.rules import nearest
from research.utils.counts import spanned
from research.utils.errors import UserError

NOT_GROUPED = WITHOUT_EFFECT - {"monitor"} | {
    "seed", "batch_size", "global_batch_size", "evaluate_at_end",
}  # fmt: skip
"""Settings that do not separate groups: the seed, and what does not change the value of a run.

``global_batch`` stands for the batch of each process.
"""
NAMES = ("name", "backbone", "variant", "_target_")
"""Last parts of keys that identify a group of the configuration, best first."""
NOT_SET = "–"
MAX_LENGTH = 28
"""Characters of a value in a label."""


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same settings.

    Attributes:
        label: short and unique among the groups.
        settings: the settings in which the groups differ, as text.
        runs: at least one.
        values: by seed, the mean of the metric over the runs of this seed.
    """

    label: str
    settings: dict[str, str]
    runs: list[RecordedRun]
    values: dict[int, float]

    def n(self, metric: str) -> str:
        """The numbers of samples of the metric's values: ``480``, ``96…480``, or empty."""
        return spanned(*(run.n(metric) for run in self.runs))

    def cost(self, name: str) -> float | None:
        """Mean over the runs that recorded it; ``None`` if none did."""
        known = [run.costs[name] for run in self.runs if name in run.costs]
        return sum(known) / len(known) if known else None


def group_runs(runs: Sequence[RecordedRun], metric: str, by: Sequence[str] = ()) -> list[RunGroup]:
    """Group runs by their settings.

    Args:
        runs: each with a value of the metric.
        metric: what is compared.
        by: dotted keys and groups of the configuration; by default all settings in which the runs
            differ, except ``NOT_GROUPED``.

    Raises:
        UserError: for an unknown key.
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
        if (any(_within(key, name) for name in by) if by else not is_below(key, NOT_GROUPED))
        and len({_exact(run, key) for run in runs}) > 1
    ]
    buckets: dict[tuple[str, ...], list[RecordedRun]] = defaultdict(list)
    for run in runs:
        buckets[tuple(_exact(run, key) for key in wanted)].append(run)
    members = list(buckets.values())
    return [
        RunGroup(
            label,
            {key: _text(of[0].settings, key) for key in wanted},
            of,
            _by_seed(of, metric),
        )
        for label, of in zip(labels(members, wanted), members, strict=True)
    ]


def labels(members: Sequence[Sequence[RecordedRun]], keys: Sequence[str]) -> list[str]:
    """A short label for each group, from as few settings as distinguish all groups.

    Settings of the command lines come first, then those that name a part, then the rest.
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
    for longest in (MAX_LENGTH, None):
        texts = [_label(of[0], chosen, longest) for of in members]
        if len(set(texts)) == len(texts):
            return texts
    # Values with the same text, such as 1 and "1".
    return [f"{text} #{texts[: index + 1].count(text)}" for index, text in enumerate(texts)]


def _rank(key: str, written: set[str]) -> tuple[int, int]:
    """Sort key of the settings that may be part of a label."""
    part, _, last = key.rpartition(".")
    if key in written or (last in NAMES and part in written):
        return 0, NAMES.index(last) if last in NAMES else 0
    return (1, NAMES.index(last)) if last in NAMES else (2, key.count("."))


def _distinct(table: Mapping[str, Sequence[str]], keys: Sequence[str]) -> int:
    return len(set(zip(*(table[key] for key in keys), strict=True))) if keys else 1


def _label(run: RecordedRun, keys: Sequence[str], longest: int | None) -> str:
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
    """A setting's value as text for tables and labels."""
    if key not in settings:
        return NOT_SET
    value = settings[key]
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:.6g}" if isinstance(value, float) else format_value(value)


def _exact(run: RecordedRun, key: str) -> str:
    return json.dumps(run.settings[key], sort_keys=True) if key in run.settings else NOT_SET


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _by_seed(runs: Iterable[RecordedRun], metric: str) -> dict[int, float]:
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        value = run.value(metric)
        assert value is not None
        values[run.seed].append(value)
    return {seed: fmean(of) for seed, of in sorted(values.items())}
