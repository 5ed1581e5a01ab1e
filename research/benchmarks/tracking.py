"""What tracking costs a training step: all trackers of ``train.py`` against none."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from research.config import compose_config
from research.engine import build
from research.engine.loop import train_epoch
from research.engine.loss_log import timestamp
from research.tracking.console import ConsoleTracker
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Progress, Row, Run, Table, Tracker, Trackers


class Inside(Tracker):
    """Hands everything on, and adds up the seconds until it was taken.

    Attributes:
        wall: on the clock.
        processor: of the thread that trains.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.wall = 0.0
        self.processor = 0.0

    @contextmanager
    def _counted(self) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.thread_time()
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.thread_time() - processor

    def log(self, table: Table, step: int, row: Row) -> None:
        with self._counted():
            self.tracker.log(table, step, row)

    def progress(self, state: Progress) -> None:
        with self._counted():
            self.tracker.progress(state)

    def flush(self) -> None:
        with self._counted():
            self.tracker.flush()


@dataclass(frozen=True)
class Cost:
    """Seconds a training step.

    Attributes:
        wall: on the clock.
        processor: of all threads together.
        inside_wall: in the trackers' methods, on the clock.
        inside: in the trackers' methods, of the processor.
        beside: of the processor, in other threads than the one that trains.
    """

    wall: float
    processor: float
    inside_wall: float
    inside: float
    beside: float


def measure(overrides: list[str], steps: int, rounds: int) -> dict[str, list[Cost]]:
    """What training steps cost without trackers, once more without, and with all of ``train.py``.

    Args:
        overrides: settings of the run; its MLflow store is a fresh one.
        steps: a round, at most an epoch.
        rounds: after a first one, which is not counted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = ["logging=mlflow", f"logging.mlflow.uri=sqlite:///{scratch}/mlflow.db"]
        asked = [*overrides, "device=cpu", "epochs=1000", f"max_train_batches={steps}", *store]
        config = compose_config(asked).config
        experiment = build.experiment(config)
        state = experiment.state
        kinds = {"off": False, "off (control)": False, "on": True}
        costs: dict[str, list[Cost]] = {name: [] for name in kinds}
        for number in range(rounds + 1):
            for name, on in kinds.items():
                folder = Path(scratch) / f"{name}_{number}"
                folder.mkdir()
                chosen = []
                state.epoch = state.step = state.batch = 0
                state.history.clear()
                if on:
                    chosen = [FileTracker(), ConsoleTracker(), SummaryTracker({}, state, None)]
                    chosen += build.trackers(config)
                trackers = Trackers(chosen)
                # A run of its own each time, so that no thread of its trackers outlives the round.
                trackers.start(Run(folder, name, config, data=("benchmark", "0")))
                try:
                    inside = Inside(trackers)
                    clocks = time.perf_counter, time.process_time, time.thread_time
                    began = [clock() for clock in clocks]
                    stats = train_epoch(
                        state,
                        experiment.task,
                        experiment.train,
                        experiment.cfg,
                        experiment.device,
                        inside,
                    )
                    row = {"epoch": 1, "epoch_time_sec": 0.0, "is_best": True, **stats.metrics}
                    inside.log("epoch", 1, {**row, "timestamp": timestamp()})
                    inside.flush()
                    wall, processor, thread = (
                        (clock() - then) / state.step
                        for clock, then in zip(clocks, began, strict=True)
                    )
                finally:
                    trackers.finish("FINISHED")
                if number:  # the first round fills caches
                    spent = inside.wall / state.step, inside.processor / state.step
                    costs[name].append(Cost(wall, processor, *spent, processor - thread))
    return costs


def report(costs: Mapping[str, list[Cost]]) -> list[str]:
    """Lines of a table, and what tracking costs in a sentence."""
    first = next(iter(costs.values()))
    lines = [f"{'':16}{'ms a step':>10}  {'× of off':22}{'ms of processor':>16}  × of off"]
    for name, found in costs.items():
        lines.append(
            f"{name:16}{_median(found, 'wall'):10.2f}  {_times(found, first, 'wall'):22}"
            f"{_median(found, 'processor'):16.2f}  {_times(found, first, 'processor')}"
        )
    on = costs["on"]
    told = [
        f"in the trackers {_median(on, 'inside_wall'):.3f} ms",
        f"{_median(on, 'inside'):.3f} ms of it of processor",
        f"in their threads {_median(on, 'beside'):.3f} ms of processor",
    ]
    own = (_median(on, "inside") + _median(on, "beside")) / _median(first, "processor")
    lines.append(f"on: {', '.join(told)}, together {own:.2%} of the processor time of a step")
    return lines


def _median(costs: list[Cost], which: str) -> float:
    return 1000 * statistics.median(getattr(cost, which) for cost in costs)


def _times(costs: list[Cost], first: list[Cost], which: str) -> str:
    ratios = [
        getattr(cost, which) / getattr(base, which) for cost, base in zip(costs, first, strict=True)
    ]
    return f"{statistics.median(ratios):.4f} ({min(ratios):.4f}-{max(ratios):.4f})"
