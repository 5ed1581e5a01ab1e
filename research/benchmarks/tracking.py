"""Cost of tracking per training step: all trackers of ``train.py`` compared with none."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from research.config import compose_config
from research.engine import build, distributed
from research.engine.loop import EpochCallback, train_epoch
from research.engine.loss_log import timestamp
from research.tracking.console import ConsoleTracker
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Progress, Row, Run, Table, Tracker, Trackers


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

    def progress(self, state: Progress) -> None:
        with self._timed():
            self.tracker.progress(state)

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


def measure(overrides: list[str], steps: int, rounds: int) -> dict[str, list[Cost]]:
    """Costs of training steps without trackers, again without, and with all of ``train.py``.

    Args:
        overrides: settings of the run; its MLflow store is a new one.
        steps: per round, at most an epoch.
        rounds: number of rounds, after a first one that is not counted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = ["logging=mlflow", f"logging.mlflow.uri=sqlite:///{scratch}/mlflow.db"]
        words = [*overrides, "device=cpu", "epochs=1000", f"max_train_batches={steps}", *store]
        config = compose_config(words).config
        experiment = build.experiment(config)
        state = experiment.state
        losses = distributed.Losses(experiment.task, state.forward)
        kinds = {"off": False, "off (control)": False, "on": True}
        costs: dict[str, list[Cost]] = {name: [] for name in kinds}
        for number in range(rounds + 1):
            for name, on in kinds.items():
                folder = Path(scratch) / f"{name}_{number}"
                folder.mkdir()
                enabled: list[Tracker] = []
                state.epoch, state.step, state.samples, state.epoch_losses = 0, 0, 0, {}
                state.history.clear()
                if on:
                    enabled = [FileTracker(), ConsoleTracker(), SummaryTracker({}, state, None)]
                    enabled += build.trackers(config)
                trackers = Trackers(enabled)
                # A new run in each round, so that the threads of its trackers end with the round.
                trackers.start(Run(folder, name, config, data=("benchmark", "0")))
                try:
                    tracker = TimedTracker(trackers)
                    clocks = time.perf_counter, time.process_time, time.thread_time
                    starts = [clock() for clock in clocks]
                    stats = train_epoch(
                        state,
                        losses,
                        experiment.train,
                        experiment.cfg,
                        experiment.device,
                        tracker,
                        EpochCallback(),
                    )
                    row = {"epoch": 1, "epoch_time_sec": 0.0, "is_best": True, **stats.metrics}
                    tracker.log("epoch", 1, {**row, "timestamp": timestamp()})
                    tracker.flush()
                    wall, processor, thread = (
                        (clock() - start) / state.step
                        for clock, start in zip(clocks, starts, strict=True)
                    )
                finally:
                    trackers.finish("FINISHED")
                if number:  # the first round fills caches
                    spent = tracker.wall / state.step, tracker.processor / state.step
                    costs[name].append(Cost(wall, processor, *spent, processor - thread))
    return costs


def report(costs: Mapping[str, list[Cost]]) -> list[str]:
    """Lines of a table, and one line with the cost of tracking."""
    first = next(iter(costs.values()))
    lines = [f"{'':16}{'ms / step':>10}  {'× of off':22}{'ms of processor':>16}  × of off"]
    for name, values in costs.items():
        lines.append(
            f"{name:16}{_median(values, 'wall'):10.2f}  {_ratios(values, first, 'wall'):22}"
            f"{_median(values, 'processor'):16.2f}  {_ratios(values, first, 'processor')}"
        )
    on = costs["on"]
    parts = [
        f"in the trackers {_median(on, 'tracker_wall'):.3f} ms",
        f"{_median(on, 'tracker_processor'):.3f} ms of it of processor",
        f"in their threads {_median(on, 'other_threads'):.3f} ms of processor",
    ]
    total = _median(on, "tracker_processor") + _median(on, "other_threads")
    fraction = total / _median(first, "processor")
    lines.append(f"on: {', '.join(parts)}, together {fraction:.2%} of the processor time of a step")
    return lines


def _median(costs: list[Cost], field: str) -> float:
    return 1000 * statistics.median(getattr(cost, field) for cost in costs)


def _ratios(costs: list[Cost], first: list[Cost], field: str) -> str:
    ratios = [
        getattr(cost, field) / getattr(base, field) for cost, base in zip(costs, first, strict=True)
    ]
    return f"{statistics.median(ratios):.4f} ({min(ratios):.4f}-{max(ratios):.4f})"
