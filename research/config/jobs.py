"""Checks all jobs of a command line of ``train.py`` before the first one starts."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config.batch_sizes import check_batch_size
from research.config.checks import check, check_value
from research.config.compose import (
    Composed,
    composed,
    config_dir,
    hydra_ready,
    own_targets,
    resolved,
    with_options,
)
from research.config.declarations import Declarations
from research.config.group_rules import LAUNCHER, Job, faults, group_rules
from research.config.keys import leaves
from research.config.messages import REMOVED, SWEEPER, explain
from research.config.overrides import train_command
from research.config.rules import MAPPING, or_null
from research.config.schema import OPTIONAL
from research.config.targets import TARGET
from research.utils.errors import UserError
from research.utils.installation import CONF
from research.utils.launch import require_one_process

T = TypeVar("T")
MAX_JOBS = 1000
"""Grids of up to this many jobs are checked job by job, larger ones value by value."""
MAX_VALUES = 1000
"""Maximum number of values of a range that are checked."""
MAX_RANGE_VALUES = 50
"""Maximum number of values of a range, both ends included, if jobs are not checked one by one."""
PARAMS = or_null(MAPPING)


class _Axis(NamedTuple):
    """The values of one key, and whether they are a range, of which a sample is enough."""

    values: list[Override]
    is_range: bool


def check_jobs(overrides: list[str], *, multirun: bool, own: Path | None = None) -> None:
    """Compose and check all jobs of the command line, before the first one starts.

    If there are more than ``MAX_JOBS``, each value is checked only with the first values of the
    other keys, and only ``MAX_RANGE_VALUES`` values of a range. An interval is checked at its ends.

    Args:
        overrides: ``key=value`` each.
        multirun: whether several values are allowed.
        own: folder of ``--config-dir``.

    Raises:
        UserError: for the first job that is not valid.
        HydraException: for a command line that cannot be composed.
    """
    if multirun:
        require_one_process("a sweep (-m)")
    with hydra_ready(own):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(overrides)
        swept = [override for override in parsed if override.is_sweep_override()]
        multirun = multirun or "hydra.mode=MULTIRUN" in overrides
        if swept and not multirun:
            composed(overrides)  # raises the error for several values without -m
        if multirun:
            _check_shared_settings(parsed)
        for override in swept:
            if override.is_hydra_override():
                raise UserError(
                    override.key_or_group, f"{_line(override)}: Hydra's own settings take one value"
                )
        axes = [_values(override, parser) for override in parsed]
        base = lru_cache(maxsize=None)(_composed_job)
        first = base(_composed_lines([axis.values[0] for axis in axes]))
        if not multirun:
            refuse_preset(first.choices, overrides)
        _check_sweeper(first.sweeper)
        if multirun:
            _check_launcher(first)
        params = first.sweeper.get("params") or {}
        overridden = {override.key_or_group for override in parsed}
        extra = [f"{key}={values}" for key, values in params.items() if key not in overridden]
        axes += [_values(override, parser) for override in parser.parse_overrides(extra)]
        defaults: dict[tuple[str, ...], dict[str, Any] | None] = {}
        for job in _jobs(axes):
            groups = _composed_lines(job)
            if groups not in defaults:
                defaults[groups] = _defaults(job, base(groups))
            _check_job(job, base(groups), defaults[groups], multirun=multirun)


def refuse_preset(choices: Mapping[str, str | None], overrides: Sequence[str]) -> None:
    """Refuse ``sweep=PRESET`` for a single run.

    Raises:
        UserError: with the command of the sweep.
    """
    preset = choices.get("sweep")
    if preset is not None:
        command = train_command(overrides, multirun=True, own=config_dir())
        raise UserError("sweep", f"sweep={preset} is a sweep of many runs", f"run {command}")


def _check_sweeper(sweeper: Mapping[str, Any]) -> None:
    """Check the settings of the sweeper, its sampler and its pruner."""
    rules = group_rules({})
    for node in {"sampler", "pruner"} & set(sweeper):
        if not isinstance(sweeper[node], Mapping) or not sweeper[node].get(TARGET):
            raise UserError(
                f"hydra/sweeper/{node}",
                f"{SWEEPER}.{node}={sweeper[node]}: it is no option",
                f"choose hydra/sweeper/{node}=NAME",
            )
    check_value(f"{SWEEPER}.params", sweeper.get("params"), {}, {f"{SWEEPER}.params": PARAMS})
    for key, value in [*sweeper.items(), *leaves(sweeper)]:
        name = f"{SWEEPER}.{key}"
        if name in rules and not (isinstance(value, str) and "${" in value):
            check_value(name, value, False, rules)  # null only where the rule has it
    for word, remedy in REMOVED.items():
        group, _, option = word.partition("=")
        chosen = sweeper.get(group.rpartition("/")[2]) or {}
        if str(chosen.get(TARGET)).endswith(f".raise_{option}_removed"):
            raise UserError(group, f"{word}: {remedy}")


def _check_launcher(composed: Composed) -> None:
    """Check the settings of the launcher, and that its package is installed."""
    settings = {LAUNCHER: composed.launcher}
    rules = group_rules(settings)
    for key, value in composed.launcher.items():
        if f"{LAUNCHER}.{key}" in rules:
            check_value(f"{LAUNCHER}.{key}", value, False, rules)
    for fault in faults(Job(settings, composed.choices, None, Declarations({}))):
        raise fault


def _check_shared_settings(parsed: Sequence[Override]) -> None:
    remedies = {
        "run_dir": "each trial has its own folder, below that of hydra.sweeper.study_name",
        "resume": "a sweep is resumed by running the same command again",
    }
    for override in parsed:
        if override.key_or_group in remedies:
            raise UserError(
                override.key_or_group,
                f"{_line(override)} with -m: {remedies[override.key_or_group]}",
            )


def _composed_job(lines: tuple[str, ...]) -> Composed:
    """The configuration of a job's options; a mistake is explained with them."""
    try:
        return with_options(lines)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, list(lines)) from error


def _check_job(
    job: list[Override], base: Composed, defaults: dict[str, Any] | None, *, multirun: bool
) -> None:
    """Check one job.

    Args:
        job: its overrides.
        base: composed from those that choose groups.
        defaults: see ``check``.
        multirun: whether it is a job of -m.
    """
    lines = [_line(override) for override in job]
    cfg = copy.deepcopy(base.cfg)
    try:
        for override in job:
            if not _composes(override):
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise explain(error, lines) from error
    check(cfg, base.choices, lines, defaults, own_targets())
    if multirun and cfg.verify_resume:
        raise UserError(
            "verify_resume",
            "verify_resume=true with -m: it verifies one configuration",
            "leave out -m and set each key to one value",
        )
    if multirun:
        check_batch_size(cfg, lines)  # of a single run the launcher may start several processes


def _defaults(job: list[Override], base: Composed) -> dict[str, Any] | None:
    """``defaults`` of ``check``; None if ``base`` has other overrides than options of groups."""
    grouped = [override for override in job if _composes(override)]
    pure = all(override.type is OverrideType.CHANGE for override in grouped)
    alone = not any(base.choices.get(group) for group in OPTIONAL)
    return resolved(base.cfg) if pure and alone else None


def _values(override: Override, parser: OverridesParser) -> _Axis:
    """An override for each value of a sweep, or for both ends of an interval."""
    key = override.get_key_element()
    value = override.value()
    if not override.is_sweep_override():
        return _Axis([override], False)
    swept: Iterable[Any]
    if isinstance(value, IntervalSweep):
        swept = value.start, value.end
    elif isinstance(value, RangeSweep):
        swept = _range_values(value)
    else:
        swept = override.sweep_string_iterator()
    values = parser.parse_overrides([f"{key}={each}" for each in swept])
    if not values:
        raise UserError(override.key_or_group, f"{_line(override)}: the range is empty")
    return _Axis(values, isinstance(value, RangeSweep))


def _range_values(sweep: RangeSweep) -> Sequence[float]:
    """At most ``MAX_VALUES`` of a range, evenly spaced, with the first and the last."""
    whole = sweep.range()
    if isinstance(whole, range):
        return _evenly_spaced(whole, MAX_VALUES)
    start, stop, step = (Decimal(str(each)) for each in (whole.start, whole.stop, whole.step))
    count = math.ceil((stop - start) / step) if step else 0
    return [float(start + step * each) for each in _evenly_spaced(range(count), MAX_VALUES)]


def _composes(override: Override) -> bool:
    """Whether Hydra must compose for it: an option of a group, or anything but key=value."""
    return (
        override.type is not OverrideType.CHANGE
        or override.is_hydra_override()
        or (CONF / override.key_or_group.partition("@")[0]).is_dir()
    )


def _line(override: Override) -> str:
    return override.input_line or ""


def _composed_lines(job: Sequence[Override]) -> tuple[str, ...]:
    return tuple(_line(override) for override in job if _composes(override))


def _jobs(axes: list[_Axis]) -> Iterator[list[Override]]:
    if math.prod(len(axis.values) for axis in axes) <= MAX_JOBS:
        yield from map(list, itertools.product(*(axis.values for axis in axes)))
        return
    first = [axis.values[0] for axis in axes]
    for position, axis in enumerate(axes):
        sample = _evenly_spaced(axis.values, MAX_RANGE_VALUES) if axis.is_range else axis.values
        for value in sample:
            yield [*first[:position], value, *first[position + 1 :]]


def _evenly_spaced(values: Sequence[T], most: int) -> Sequence[T]:
    """At most ``most`` values, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return values
    step = (len(values) - 1) / (most - 1)
    return [values[round(index * step)] for index in range(most)]
