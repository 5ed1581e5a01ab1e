"""Losses of an epoch of training: a row per batch for the tracker, and their means; metrics."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from research.batch import Batch
from research.data.loader import EpochLoader
from research.engine import distributed
from research.engine.steps import not_finite
from research.tasks.task import LossTerms
from research.tracking.tracker import Tracker
from research.utils.counts import by_kind
from research.utils.errors import UserError
from research.utils.progress import Phase

ALONE: Final = "left_out/alone"
"""A batch of one sample, which is skipped."""


class Pending(NamedTuple):
    """A batch whose row has not been written.

    Attributes:
        step: batches so far, over all epochs.
        batch: in the epoch, from 0.
        samples: their indices, [B] int64, as the loader gave them.
        learning_rate: of the last optimizer step.
        seconds: from the end of the batch before it to its own.
        timestamp: of its end.
    """

    step: int
    batch: int
    samples: Tensor
    learning_rate: float
    seconds: float
    timestamp: str


@dataclass(frozen=True)
class EpochStats:
    """Statistics of one epoch of training.

    Attributes:
        metrics: means over the batches of the loss and of each of its terms, and over the samples
            of the task's training metrics, ``train/NAME``; and ``train/n``, the number of samples
            that they are of. An epoch that an earlier version began has the losses alone.
        total_loss: sum of the batches' losses.
        learning_rate: of the last optimizer step.
        skipped: samples skipped or read by a fallback, by kind.
    """

    metrics: dict[str, float]
    total_loss: float
    learning_rate: float
    skipped: dict[str, int]


class LossLog:
    """Logs a row per batch, and sums losses and metrics over the epoch.

    They stay on the device and are read every ``log_every`` batches, to synchronize rarely. The
    time of a batch is that between its end and the end of the batch before it, in this process: a
    GPU may still compute. The batch with which losses are read ends when the device has done it.

    Args:
        tracker: receives the rows.
        epoch: from 1.
        batches: number of batches in the epoch.
        log_every: batches between two reads.
        loader: its samples that are in no batch are counted; names samples in errors.
        remedy: what to do about a loss that is not finite.
        metric: name of a metric that progress shows beside the loss.
        best: its best value so far.
    """

    def __init__(
        self,
        tracker: Tracker,
        epoch: int,
        batches: int,
        log_every: int,
        loader: EpochLoader,
        remedy: str = "",
        metric: str = "",
        best: float | None = None,
    ) -> None:
        self.tracker = tracker
        self.epoch = epoch
        self.batches = batches
        self.log_every = log_every
        self.sums: Counter[str] = Counter()
        self.count = 0
        self.n: int | None = 0
        self.learning_rate = math.nan
        self.start = time.perf_counter()
        self.loader = loader
        self.remedy = remedy
        self.skipped = Counter(loader.skipped)
        self.losses: list[dict[str, Tensor]] = []  # of batches, on the device
        self.values: dict[str, list[Tensor]] = {}  # of metrics, on the device
        self.read: list[dict[str, float]] = []
        self.pending: list[Pending] = []
        self.metrics: dict[str, tuple[float, float]] = {}
        self.samples = 0
        self.since = self.end = self.start
        self.rate: float | None = None
        self.current: dict[str, float] = {}
        self.best = {} if best is None else {f"best {metric}": best}
        self.phase = Phase(f"train {epoch}", batches, "batches")

    def add(self, step: int, i: int, batch: Batch, losses: LossTerms, samples: int) -> None:
        """Add batch ``i``.

        Args:
            step: batches so far, over all epochs.
            i: number of the batch in the epoch, from 0.
            batch: of this process.
            losses: empty if the batch was skipped in all processes.
            samples: of the batch, in all processes.
        """
        self.skipped.update(batch.skipped)
        self.samples += len(batch) * distributed.count()
        is_due = (i + 1) % self.log_every == 0 or i + 1 == self.batches
        if losses:
            self.n = None if self.n is None else self.n + samples
            self.losses.append({name: loss.detach() for name, loss in losses.items()})
            for name, values in losses.metrics.items():
                self.values.setdefault(name, []).append(values.detach())
        if is_due:
            self._read()
        now = time.perf_counter()
        if losses:
            about = (step, i, batch.index, self.learning_rate)
            self.pending.append(Pending(*about, now - self.end, timestamp()))
        self.end = now
        if is_due:
            self._write()
        if not self.phase.done:
            self.phase.first = i  # those before were trained before an interruption
        self.phase.update(i + 1, self.rate, {**self.current, **self.best})

    def state_dict(self) -> dict[str, Any]:
        """The losses of the epoch so far, as plain values; rows that are due later are written."""
        self._read()
        self._write()
        return {
            "sums": dict(self.sums),
            "metrics": {name: list(pair) for name, pair in self._metrics().items()},
            "count": self.count,
            "n": self.n,
            "skipped": self._skipped(),
            "learning_rate": self.learning_rate,
            "seconds": time.perf_counter() - self.start,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from ``state_dict`` of an interrupted epoch; empty: from its start."""
        if saved:
            self.sums = Counter(saved["sums"])
            self.skipped = Counter(saved["skipped"] if distributed.is_main() else {})
            self.metrics = dict(saved["metrics"] if distributed.is_main() else {})
            self.count, self.n = saved["count"], saved["n"]
            self.learning_rate = saved["learning_rate"]
            self.start -= saved["seconds"]

    def close(self) -> EpochStats:
        """Means over the batches of the epoch, in all processes.

        Raises:
            UserError: if every batch was skipped.
        """
        self.phase.close()
        skipped = self._skipped()
        if not self.count:
            raise no_samples("training", skipped)
        means = {name: total / self.count for name, total in self.sums.items()}
        if self.n is not None:
            rates = {name: total / n for name, (total, n) in self._metrics().items() if n}
            means = {**means, **rates, "n": self.n}
        values = {f"train/{name}": value for name, value in means.items()}
        return EpochStats(values, self.sums["loss"], self.learning_rate, skipped)

    def _skipped(self) -> dict[str, int]:
        return {name: int(n) for name, n in distributed.summed(self.skipped).items()}

    def _metrics(self) -> dict[str, tuple[float, float]]:
        """Sum and number of the values of each metric, in all processes."""
        own = {(name, i): pair[i] for name, pair in self.metrics.items() for i in range(2)}
        found = distributed.summed(own)
        return {name: (found[name, 0], found[name, 1]) for name, i in found if i == 0}

    def _write(self) -> None:
        own, self.read = self.read, []
        rows = [{"loss": sum(losses.values()), **losses} for losses in distributed.means(own)]
        for each, row, losses in zip(self.pending, rows, own, strict=True):
            if not all(map(math.isfinite, row.values())):
                where = f"step {each.step} (epoch {self.epoch}, batch {each.batch + 1})"
                is_cause = not math.isfinite(sum(losses.values()))
                names = distributed.joined(self.loader.names(each.samples) if is_cause else [])
                raise not_finite(row, where, each.learning_rate, names, self.remedy)
            self.sums.update(row)
            self.count += 1
            record: dict[str, Any] = {"epoch": self.epoch, "batch": each.batch + 1, **row}
            record |= {"batch_time_sec": each.seconds, "timestamp": each.timestamp}
            self.tracker.log("batch", each.step, record)
        self.current = {"loss": rows[-1]["loss"]} if rows else {}
        self.pending = []
        now = time.perf_counter()
        self.rate = self.samples / max(now - self.since, 1e-9)
        self.samples, self.since = 0, now

    def _read(self) -> None:
        """Read losses and metrics, in one transfer from the device."""
        tensors = [loss for losses in self.losses for loss in losses.values()]
        joined = [torch.cat(values) for values in self.values.values()]
        pairs = [each for v in joined for each in (v.nansum(), v.isnan().logical_not().sum())]
        if tensors:
            numbers = iter(torch.stack([*tensors, *pairs]).tolist())
            self.read += [{name: next(numbers) for name in losses} for losses in self.losses]
            for name in self.values:
                total, n = self.metrics.get(name, (0.0, 0.0))
                self.metrics[name] = total + next(numbers), n + next(numbers)
        self.losses, self.values = [], {}


def no_samples(split: str, skipped: Mapping[str, int]) -> UserError:
    """The error if no sample of a split could be read."""
    if skipped.get(ALONE) == sum(skipped.values()):
        message = f"the {split} split has one sample, and batch norm needs two in a batch"
        hint = "add samples; one alone trains with batch_size=1 if no map is 1×1"
        return UserError("dataset", message, hint)
    message = f"no sample of the {split} split could be read ({by_kind(skipped)})"
    return UserError("dataset", message, "check the files of the data set")


def timestamp() -> str:
    """The current time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
