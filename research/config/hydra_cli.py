"""The command line of ``train.py``, and composed configurations for all other commands.

``command_line`` runs the function of ``hydra.main``. Every job is composed and checked before the
first one starts, and a user's mistake is reported in one line. Options of
``python -m research.COMMAND`` are in ``cli``.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research.config import resume
from research.config.checks import check, check_value
from research.config.compose import Composed, composed, hydra_ready, own_targets, resolved
from research.config.declarations import Declarations
from research.config.group_rules import LAUNCHER, Job, faults, group_rules
from research.config.help import help_text
from research.config.keys import leaves
from research.config.messages import REMOVED, SWEEPER, explain, suggest
from research.config.options import CONF
from research.config.overrides import train_command
from research.config.rules import MAPPING, or_null
from research.config.schema import OPTIONAL, register
from research.config.targets import TARGET
from research.utils import conditions, secrets
from research.utils.errors import UserError
from research.utils.launch import require_one_process

T = TypeVar("T")
MAX_JOBS = 1000
"""Grids of up to this many jobs are checked job by job, larger ones value by value."""
MAX_VALUES = 1000
"""Maximum number of values of one key that are checked."""
MAX_RANGE_VALUES = 50
"""Maximum number of values of a range, both ends included, if jobs are not checked one by one."""

PARAMS = or_null(MAPPING)


class _Axis(NamedTuple):
    """The values of one key, and whether they are a range, of which a sample is enough."""

    values: list[Override]
    is_range: bool


def command_line(main: Callable[..., object]) -> None:
    """Run a ``hydra.main`` function as a command; for ``resume=RUN`` it receives a ``Resumed``.

    A mistake of the user, or an everyday condition of the machine (``research.utils.conditions``),
    is printed in one line, ``error: …``, with exit status 2; the exit status of an interruption is
    128 + the number of the signal. Every other exception keeps its traceback.
    """
    secrets.hide_command_line()
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of exiting
    overrides: list[str] = []
    own: Path | None = None
    try:
        arguments = _arguments()
        overrides = arguments.overrides
        own = Path(arguments.config_dir) if arguments.config_dir is not None else None
        if resume.run_of(overrides) is not None and not arguments.multirun:
            _resume(main, arguments)
        elif arguments.help:
            with hydra_ready(own):
                print(secrets.redact(help_text(overrides)))
        elif arguments.cfg or arguments.info or arguments.shell_completion:
            _show_config(main, overrides, own)
        else:
            if not _uses_other_config(arguments):
                check_jobs(overrides, multirun=arguments.multirun, own=own)
            main()
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        _exit(f"interrupted by {signal.Signals(number).name}", 128 + number)
    except Exception as error:
        with hydra_ready(own if own and own.is_dir() else None):
            line = f"error: {_reported(error, overrides)}"
        _exit(line, 2)
    finally:
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _resume(main: Callable[..., object], arguments: Namespace) -> None:
    """Resume a run, or show its configuration."""
    for flag in ("config_name", "config_path", "experimental_rerun", "info"):
        if getattr(arguments, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            message = f"{name} with resume=RUN: the run's own configuration is used"
            raise UserError(name, message, "remove it; --cfg job prints the configuration")
    found = resume.compose(arguments.overrides, arguments.config_dir)
    if arguments.help:
        print(secrets.redact(help_text(arguments.overrides, found)))
    elif arguments.cfg:
        shown = OmegaConf.select(found.composed.cfg, arguments.package or "")
        if shown is None or arguments.cfg != "job":
            message = f"--cfg {arguments.cfg}: a resumed run has no such configuration"
            raise UserError("--cfg", message, "use --cfg job")
        text = OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else str(shown)
        print(secrets.redact(text))
    else:
        main(found)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Exit with one line on a user's mistake, before Hydra adds a line of its own.

    With -m the exception is raised, so that the other jobs continue.
    """
    try:
        yield
    except Exception as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        _exit(f"error: {_reported(error, HydraConfig.get().overrides.task)}", 2)


def compose_config(overrides: Sequence[str], own: Path | None = None) -> Composed:
    """Compose and check ``conf/config.yaml`` for a command other than ``train.py``.

    With ``resume=RUN`` it is the configuration of that run, see ``research.config.resume``.

    Args:
        overrides: ``key=value`` each, as on the command line.
        own: folder with the user's own options, as ``--config-dir`` names it.

    Raises:
        UserError: if it cannot be composed or does not pass ``check``.
    """
    register()
    words = list(overrides)
    if resume.run_of(words) is not None:
        try:
            return resume.compose(words, None if own is None else str(own)).composed
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise explain(error, words) from error
    with hydra_ready(own):
        try:
            result = composed(words)
            check(result.cfg, result.choices, words, own=own_targets())
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise explain(error, words) from error
    return result


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
        preset = first.choices.get("sweep")
        if preset is not None and not multirun:
            command = train_command(overrides, multirun=True)
            raise UserError("sweep", f"sweep={preset} is a sweep of many runs", f"run {command}")
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
        return composed(lines)
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


def _defaults(job: list[Override], base: Composed) -> dict[str, Any] | None:
    """``defaults`` of ``check``; None if ``base`` has other overrides than options of groups."""
    grouped = [override for override in job if _composes(override)]
    pure = all(override.type is OverrideType.CHANGE for override in grouped)
    alone = not any(base.choices.get(group) for group in OPTIONAL)
    return resolved(base.cfg) if pure and alone else None


def _show_config(main: Callable[[], object], overrides: list[str], own: Path | None) -> None:
    """Let Hydra print the configuration, which is composed but not checked; without secrets."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            main()
    except ValueError:
        with hydra_ready(own):
            composed(overrides)  # raises the same error as one line
        raise
    finally:
        print(secrets.redact(printed.getvalue()), end="")


def _uses_other_config(arguments: Namespace) -> bool:
    """Whether Hydra's flags select another configuration, which only the job can check."""
    flags = ("config_name", "config_path", "experimental_rerun")
    return any(getattr(arguments, flag) is not None for flag in flags)


def _values(override: Override, parser: OverridesParser) -> _Axis:
    """An override for each value of a sweep, or for both ends of an interval."""
    key = override.get_key_element()
    value = override.value()
    if not override.is_sweep_override():
        return _Axis([override], False)
    swept: Iterable[Any]
    if isinstance(value, IntervalSweep):
        swept = value.start, value.end
    elif isinstance(value, RangeSweep) and isinstance(whole := value.range(), range):
        swept = _evenly_spaced(whole, MAX_VALUES)
    else:
        swept = itertools.islice(override.sweep_string_iterator(), MAX_VALUES)
    values = parser.parse_overrides([f"{key}={each}" for each in swept])
    if not values:
        raise UserError(override.key_or_group, f"{_line(override)}: the range is empty")
    return _Axis(values, isinstance(value, RangeSweep))


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


def _arguments() -> Namespace:
    """The command line, parsed by Hydra's parser."""
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            arguments: Namespace = get_args_parser().parse_intermixed_args()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _bad_flag(stderr.getvalue()) from None
    return arguments


def _bad_flag(printed: str) -> UserError:
    match = re.search(r"unrecognized arguments: (\S+)", printed)
    if not match:
        return UserError("flags", printed.strip().rpartition("error: ")[2])
    flag, _, value = match[1].partition("=")
    close = suggest(flag.lstrip("-").replace("-", "_"))
    like = f"; did you mean {close}={value or '…'}?" if close else ", see --help"
    return UserError(flag, f"unknown flag {flag}", f"settings are written key=value{like}")


def _reported(error: Exception, overrides: list[str]) -> UserError:
    """The one line for a user's mistake or an everyday condition; raises any other exception."""
    known = isinstance(error, UserError | HydraException | YAMLError)
    if known and not (isinstance(error, InstantiationException) and not _is_mistake(error)):
        return explain(error, overrides)
    condition = conditions.explain(error)
    if condition is None:
        raise error
    return condition


def _is_mistake(error: InstantiationException) -> bool:
    """Whether the user made a mistake; other exceptions of a constructor are bugs."""
    return isinstance(error.__cause__, UserError) or "Error locating target" in str(error)


def _exit(line: str, status: int) -> NoReturn:
    print(secrets.redact(" ".join(line.split())), file=sys.stderr)
    raise SystemExit(status)
