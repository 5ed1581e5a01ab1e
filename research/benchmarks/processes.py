"""Training on one and on two processes of the CPU; what the seam costs a single one.

The seam is ``research.engine.distributed``, through which the loop goes with any number of
processes.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.batch import Batch
from research.benchmarks.measure import Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.config import compose_config
from research.engine import build, distributed
from research.engine.loop import EpochCallback, train_epoch
from research.tasks.task import Task
from research.tracking.tracker import Tracker


class Steps:
    """Training steps of a configuration.

    Args:
        words: of its command line.
        steps: at most an epoch.
    """

    def __init__(self, words: Sequence[str], steps: int) -> None:
        config = compose_config(
            [*words, "device=cpu", "logging=csv", "epochs=1000", f"max_train_batches={steps}"]
        ).config
        with distributed.main_first():
            self.experiment = build.experiment(config)
        plain = distributed.Losses(self.experiment.task, self.experiment.state.forward)
        self.losses = distributed.parallel(plain)

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Train the same steps once more; returns the seconds per sample of this process."""
        built = self.experiment
        state = built.state
        state.epoch, state.samples, state.epoch_losses = 0, 0, {}
        start, before = clock(), state.step
        train_epoch(
            state, self.losses, built.train, built.cfg, built.device, Tracker(), EpochCallback()
        )
        steps = state.step - before
        return (clock() - start) / (steps * built.train.batch_size)


class WithoutSeam(Steps):
    """The same steps without ``distributed``: nothing is asked for, or exchanged."""

    def __init__(self, words: Sequence[str], steps: int) -> None:
        super().__init__(words, steps)
        self.losses = Direct(self.experiment.task, self.experiment.state.forward)

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        with _replaced(
            announce=lambda samples: samples,
            is_awaited=lambda is_step, samples: False,
            no_sync=lambda losses, skip: nullcontext(),
            means=lambda rows: rows,
            summed=dict,
        ):
            return super().seconds(clock)


class Direct(nn.Module):
    """``Losses`` for a batch that is there."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.task.losses(self.model, batch)


@contextmanager
def _replaced(**functions: Any) -> Iterator[None]:
    """Functions of ``distributed``, replaced by the simplest that one process needs."""
    former = {name: getattr(distributed, name) for name in functions}
    for name, function in functions.items():
        setattr(distributed, name, function)
    try:
        yield
    finally:
        for name, function in former.items():
            setattr(distributed, name, function)


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    return [
        throughput(overrides, options.steps, options.rounds),
        seam(overrides, options.steps, options.rounds),
    ]


def seam(words: Sequence[str], steps: int, rounds: int) -> Result:
    """Processor time per sample of one process without the seam, again without, and with it."""
    without, with_seam = WithoutSeam(words, steps), Steps(words, steps)
    candidates = {"without the seam": without, "without (control)": without, "with": with_seam}
    return measure(
        # Of processor time: no other program counts.
        {name: partial(each.seconds, time.process_time) for name, each in candidates.items()},
        rounds,
        unit="sample",
        name="the seam, processor time",
    )


def throughput(words: Sequence[str], steps: int, rounds: int) -> Result:
    """Seconds per sample of one process, again of it, of two that train a run each, and of two
    that train one run; each process has the batch of ``words``, and one thread.
    """
    with _workers() as start:
        alone = [start(words, steps, {})]
        _answers(alone)  # it has prepared the data
        apart = [start(words, steps, {}) for _ in range(2)]
        together = [start(words, steps, environment) for environment in _of_two()]
        _answers([*apart, *together])
        groups = {
            "1 process": alone,
            "1 process (control)": alone,
            "2 processes, a run each": apart,
            "2 processes, one run": together,
        }
        return measure(
            {name: partial(_train_once, group) for name, group in groups.items()},
            rounds,
            unit="sample",
            name="throughput",
        )


def _train_once(group: Sequence[Connection]) -> float:
    """Let processes train at the same time; seconds per sample of them together."""
    for pipe in group:
        pipe.send(True)
    return max(_answers(group)) / len(group)


def _answers(pipes: Sequence[Connection]) -> list[float]:
    return [pipe.recv() for pipe in pipes]


def _of_two() -> list[dict[str, str]]:
    """The environments of two processes of one run, as ``torchrun`` would set them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


StartWorker = Callable[[Sequence[str], int, Mapping[str, str]], Connection]


@contextmanager
def _workers() -> Iterator[StartWorker]:
    """Starts processes that train ``steps`` when they get a message, and answer with their
    seconds; before, with 0.
    """
    context = multiprocessing.get_context("spawn")
    pipes, started = [], []

    def start(words: Sequence[str], steps: int, environment: Mapping[str, str]) -> Connection:
        ours, its = context.Pipe()
        process = context.Process(target=_train, args=(its, list(words), steps, dict(environment)))
        process.start()
        its.close()
        pipes.append(ours)
        started.append(process)
        return ours

    try:
        yield start
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join()


def _train(pipe: Connection, words: list[str], steps: int, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    with distributed.processes("cpu"):
        trained = Steps(words, steps)
        pipe.send(0.0)
        try:
            while pipe.recv():
                pipe.send(trained.seconds())
        except EOFError:  # the benchmark is done
            return
