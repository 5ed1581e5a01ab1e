"""Whether the last trials of a long sweep cost as much as the first: seconds of a trial, by stage.

The command is that of a user, ``train.py -m``. Only ``research.engine.run.train`` is replaced: it
writes the summary of a run whose result is drawn, so that a trial costs what its sweep costs.
"""

from __future__ import annotations

import logging
import runpy
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from research.benchmarks.measure import Result, compared
from research.benchmarks.options import BenchmarkOptions
from research.config import CONF
from research.utils.errors import UserError

log = logging.getLogger(__name__)

HUNDRED: Final = 100
STAGES: Final = {
    "claim": "research.sweeps.study.Study.claim_trial",
    "compose": "hydra._internal.config_loader_impl.ConfigLoaderImpl.load_sweep_config",
    "check": "research.config.check",
    "folder": "research.sweeps.job._open_run",
    "record": "research.sweeps.record.update_at_times",
    "parent": "research.sweeps.parent.update",
}
"""Columns, and the functions whose time they show; ``parent`` is a part of ``record``."""
WORDS: Final = (
    "device=cpu",
    "hydra/sweeper/sampler=random",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "optimizer.weight_decay=interval(0,0.1)",
)


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    if options.trials < 2 * HUNDRED:
        raise UserError("trials", f"trials={options.trials}: at least {2 * HUNDRED} are compared")
    with ExitStack() as stack:
        stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        long = sweep("long", options.trials, overrides)
        another = sweep("another", HUNDRED, overrides)
    return [result(long, another)]


class Trials:
    """When trials were claimed, and the seconds of each stage of each trial."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.stages: dict[str, list[float]] = defaultdict(list)

    @property
    def seconds(self) -> list[float]:
        """Of each trial, from its claim to the next one."""
        return np.diff(self.begins).tolist()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time is added to that of the current trial."""

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            if stage == "claim":
                self.begins.append(start)
                for times in self.stages.values():
                    times.append(0.0)
                if len(self.begins) % HUNDRED == 1:
                    log.info("%d trials", len(self.begins) - 1)
            try:
                return function(*arguments, **named)
            finally:
                if self.begins:
                    self.stages[stage][-1] += time.perf_counter() - start

        self.stages[stage] = []
        return call


def sweep(name: str, trials: int, overrides: list[str]) -> Trials:
    """Run a sweep in the working directory, by the command of a user."""
    from hydra.core.global_hydra import GlobalHydra

    words = [f"hydra.sweeper.study_name={name}", f"hydra.sweeper.n_trials={trials}"]
    timings = Trials()
    with (
        _replaced(timings),
        patch.object(sys, "argv", ["train.py", "-m", *WORDS, *words, *overrides]),
    ):
        try:
            runpy.run_path(str(CONF.parent / "train.py"), run_name="__main__")
        finally:
            GlobalHydra.instance().clear()
    return timings


@contextmanager
def _replaced(trials: Trials) -> Iterator[None]:
    """Time the stages, train nothing, and do not log every trial."""
    import research.sweeps.job  # noqa: F401 - loaded before a trial is timed

    level = logging.getLogger("research.sweeps").level
    logging.getLogger("research.sweeps").setLevel(logging.WARNING)
    with ExitStack() as stack:
        for stage, path in STAGES.items():
            stack.enter_context(patch(path, trials.timed(stage, resolve_name(path))))
        stack.enter_context(patch("research.engine.run.train", _draw_result))
        try:
            yield
        finally:
            logging.getLogger("research.sweeps").setLevel(level)


def _draw_result(
    config: Mapping[str, Any], name: str, overrides: Any, begin: Any, *more: Any
) -> Any:
    """As ``research.engine.run.train``, without a network: the result depends on the rate."""
    from research.utils.files import to_json, write_text

    pruner = more[1]
    value = 1 / (1 + abs(np.log10(config["optimizer"]["lr"]) + 2))
    summary = {
        "status": "FINISHED",
        "model": "none",
        "parameters": 0,
        "epochs_done": 1,
        "best_epoch": 1,
        "best_value": value,
        "monitor": ["val/top1", "max"],
        "total_time_sec": 0.0,
        "paths": {"run": str(begin.folder)},
    }
    (begin.folder / "config.yaml").touch()
    write_text(begin.folder / "summary.json", to_json(summary))
    pruner.epoch(1, value)
    return SimpleNamespace(history=[{"val/top1": value}], best=value)


def result(long: Trials, another: Trials) -> Result:
    """The trials of a sweep a hundred at a time: the first are the reference."""
    count = len(long.seconds)
    parts = {
        f"trials 1-{HUNDRED}": (long, slice(0, HUNDRED)),
        f"trials 1-{HUNDRED} of another sweep, afterwards (control)": (another, slice(0, HUNDRED)),
    }
    for end in sorted({count // 2, count}):
        parts[f"trials {end - HUNDRED + 1}-{end}"] = (long, slice(end - HUNDRED, end))
    seconds = {name: trials.seconds[part] for name, (trials, part) in parts.items()}
    table = compared(seconds, unit="trial")
    first = statistics.fmean(table.rows[0].seconds)
    for row in table.rows:
        trials, part = parts[row.name]
        mean = statistics.fmean(row.seconds)
        row.columns["mean ms"] = 1000 * mean
        row.columns["mean / first"] = mean / first
        for stage, times in trials.stages.items():
            row.columns[f"{stage} ms"] = 1000 * statistics.fmean(times[part])
    return table
