"""Cost of tracking per training step: all trackers of ``train.py`` compared with none."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from research.benchmarks.measure import Result, compared, interleaved
from research.benchmarks.options import BenchmarkOptions
from research.config import compose_config
from research.engine import build, distributed
from research.engine.build import Experiment
from research.engine.loop import EpochCallback, train_epoch
from research.engine.loss_log import timestamp
from research.tracking.console import ConsoleTracker
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Row, Run, Table, Tracker, Trackers


class TimedTracker(Tracker):
    """Passes all calls to a tracker, and sums their duration in seconds.

    Attributes:
        wall: wall time.
        processor: processor time of the training thread.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.wall = 0.0
        self.processor = 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.thread_time()
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.thread_time() - processor

    def log(self, table: Table, step: int, row: Row) -> None:
        with self._timed():
            self.tracker.log(table, step, row)

    def flush(self) -> None:
        with self._timed():
            self.tracker.flush()


@dataclass(frozen=True)
class Cost:
    """Seconds per training step.

    Attributes:
        wall: wall time.
        processor: processor time of all threads.
        tracker_wall: wall time in the trackers' methods.
        tracker_processor: processor time in the trackers' methods.
        other_threads: processor time of all threads except the training thread.
    """

    wall: float
    processor: float
    tracker_wall: float
    tracker_processor: float
    other_threads: float


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    return results(costs(overrides, options.steps, options.rounds))


def costs(overrides: list[str], steps: int, rounds: int) -> dict[str, list[Cost]]:
    """Costs of training steps without trackers, again without, and with all of ``train.py``.

    Args:
        overrides: settings of the run; its MLflow store is a new one.
        steps: per round, at most an epoch.
        rounds: number of rounds, after a first one that is not counted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = ["logging=mlflow", f"logging.mlflow.uri=sqlite:///{scratch}/mlflow.db"]
        words = [*overrides, "device=cpu", "epochs=1000", f"max_train_batches={steps}", *store]
        built = build.experiment(compose_config(words).config)
        kinds = {"without": False, "without (control)": False, "with": True}
        return interleaved(
            {name: partial(_cost, built, Path(scratch), on) for name, on in kinds.items()}, rounds
        )


def _cost(built: Experiment, scratch: Path, with_trackers: bool) -> Cost:
    """Train the first steps of an epoch, as a new run: its trackers' threads end with it."""
    state = built.state
    state.epoch, state.step, state.samples, state.epoch_losses = 0, 0, 0, {}
    state.history.clear()
    enabled: list[Tracker] = []
    if with_trackers:
        info = {"monitor": list(built.monitor)}
        enabled = [FileTracker(), ConsoleTracker(), SummaryTracker(info, state, None)]
        enabled += build.trackers(state.config)
    losses = distributed.Losses(built.task, state.forward)
    trackers = Trackers(enabled)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    trackers.start(Run(folder, folder.name, state.config, data=("benchmark", "0")))
    trackers.flush()  # the first delivery connects, which belongs to the start
    try:
        tracker = TimedTracker(trackers)
        clocks = time.perf_counter, time.process_time, time.thread_time
        starts = [clock() for clock in clocks]
        stats = train_epoch(
            state, losses, built.train, built.cfg, built.device, tracker, EpochCallback()
        )
        row = {"epoch": 1, "epoch_time_sec": 0.0, "is_best": True, **stats.metrics}
        tracker.log("epoch", 1, {**row, "timestamp": timestamp()})
        tracker.flush()
        wall, processor, thread = (
            (clock() - start) / state.step for clock, start in zip(clocks, starts, strict=True)
        )
    finally:
        trackers.finish("FINISHED")
    spent = tracker.wall / state.step, tracker.processor / state.step
    return Cost(wall, processor, *spent, processor - thread)


def results(costs_of: Mapping[str, list[Cost]]) -> list[Result]:
    """Wall time and processor time, with the milliseconds per step that the trackers take."""
    wall, processor = (
        compared(
            {name: [getattr(cost, field) for cost in costs] for name, costs in costs_of.items()},
            unit="step",
            name=title,
        )
        for field, title in (("wall", "wall time"), ("processor", "processor time"))
    )
    for name, costs in costs_of.items():
        wall.row(name).columns["ms in trackers"] = _median(costs, "tracker_wall")
        own, threads = _median(costs, "tracker_processor"), _median(costs, "other_threads")
        columns = processor.row(name).columns
        columns["ms in trackers"], columns["ms in other threads"] = own, threads
        share = (own + threads) / (1000 * processor.rows[0].median)
        columns["share of a step without"] = f"{share:.2%}"
    return [wall, processor]


def _median(costs: list[Cost], field: str) -> float:
    return 1000 * statistics.median(getattr(cost, field) for cost in costs)
