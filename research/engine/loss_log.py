"""Losses of an epoch of training: a row per batch for the tracker, and their means."""

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
from research.tracking.tracker import Progress, Tracker
from research.utils.errors import UserError

ALONE: Final = "left_out/alone"
"""A batch of one sample, which is skipped."""


class Pending(NamedTuple):
    """Losses of a batch that have not been read from the device.

    Attributes:
        step: batches so far, over all epochs.
        batch: in the epoch, from 0.
        losses: by name.
        samples: their indices, [B] int64, as the loader gave them.
        learning_rate: of the last optimizer step.
    """

    step: int
    batch: int
    losses: dict[str, Tensor]
    samples: Tensor
    learning_rate: float


@dataclass(frozen=True)
class EpochStats:
    """Statistics of one epoch of training.

    Attributes:
        metrics: mean of the loss and of each of its terms, ``train/NAME``; and ``train/n``, the
            number of samples that they are of, unless a part of the epoch did not count them.
        total_loss: sum of the batches' losses.
        learning_rate: of the last optimizer step.
        skipped: samples skipped or read by a fallback, by kind.
    """

    metrics: dict[str, float]
    total_loss: float
    learning_rate: float
    skipped: dict[str, int]


class LossLog:
    """Logs a row per batch.

    Losses stay on the device and are read every ``log_every`` batches, to synchronize rarely.

    Args:
        tracker: receives the rows.
        epoch: from 1.
        batches: number of batches in the epoch.
        log_every: batches between two reads.
        loader: its samples that are in no batch are counted; names samples in errors.
        remedy: what to do about a loss that is not finite.
    """

    def __init__(
        self,
        tracker: Tracker,
        epoch: int,
        batches: int,
        log_every: int,
        loader: EpochLoader,
        remedy: str = "",
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
        self.pending: list[Pending] = []
        self.samples = 0
        self.since = time.perf_counter()

    def add(self, step: int, i: int, batch: Batch, losses: dict[str, Tensor], samples: int) -> None:
        """Add batch ``i``.

        Args:
            step: batches so far, over all epochs.
            i: number of the batch in the epoch, from 0.
            batch: of this process.
            losses: by name; empty if the batch was skipped in all processes.
            samples: of the batch, in all processes.
        """
        self.skipped.update(batch.skipped)
        self.samples += len(batch) * distributed.count()
        if losses:
            self.n = None if self.n is None else self.n + samples
            detached = {name: loss.detach() for name, loss in losses.items()}
            self.pending.append(Pending(step, i, detached, batch.index, self.learning_rate))
        if (i + 1) % self.log_every == 0 or i + 1 == self.batches:
            self._write()
            self._show_progress(i)

    def state_dict(self) -> dict[str, Any]:
        """The losses of the epoch so far, as plain values; rows that are due later are written."""
        self._write()
        return {
            "sums": dict(self.sums),
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
            self.count, self.n = saved["count"], saved["n"]
            self.learning_rate = saved["learning_rate"]
            self.start -= saved["seconds"]

    def close(self) -> EpochStats:
        """Means over the batches of the epoch, in all processes.

        Raises:
            UserError: if every batch was skipped.
        """
        skipped = self._skipped()
        if not self.count:
            raise no_samples("training", skipped)
        means = {f"train/{name}": total / self.count for name, total in self.sums.items()}
        n = {} if self.n is None else {"train/n": self.n}
        return EpochStats({**means, **n}, self.sums["loss"], self.learning_rate, skipped)

    def _skipped(self) -> dict[str, int]:
        return {name: int(n) for name, n in distributed.summed(self.skipped).items()}

    def _write(self) -> None:
        own = self._read()
        rows = [{"loss": sum(losses.values()), **losses} for losses in distributed.means(own)]
        now = time.perf_counter()
        seconds = (now - self.since) / max(1, len(rows))
        for each, row, losses in zip(self.pending, rows, own, strict=True):
            if not all(map(math.isfinite, row.values())):
                where = f"step {each.step} (epoch {self.epoch}, batch {each.batch + 1})"
                is_cause = not math.isfinite(sum(losses.values()))
                names = distributed.joined(self.loader.names(each.samples) if is_cause else [])
                raise not_finite(row, where, each.learning_rate, names, self.remedy)
            self.sums.update(row)
            self.count += 1
            record = {"epoch": self.epoch, "batch": each.batch + 1, **row}
            self.tracker.log(
                "batch", each.step, {**record, "batch_time_sec": seconds, "timestamp": timestamp()}
            )
        self.current = {"loss": rows[-1]["loss"]} if rows else {}
        self.pending = []
        self.rate = self.samples / max(now - self.since, 1e-9)
        self.samples, self.since = 0, now

    def _show_progress(self, i: int) -> None:
        name = f"train {self.epoch}"
        self.tracker.progress(
            Progress(name, i + 1, self.batches, rate=self.rate, metrics=self.current)
        )

    def _read(self) -> list[dict[str, float]]:
        """The pending losses by name, in one transfer from the device."""
        if not self.pending:
            return []
        losses = [each.losses for each in self.pending]
        values = torch.cat([torch.stack([*terms.values()]) for terms in losses])
        numbers = iter(values.tolist())
        return [{name: next(numbers) for name in terms} for terms in losses]


def no_samples(split: str, skipped: Mapping[str, int]) -> UserError:
    """The error if no sample of a split could be read."""
    if skipped.get(ALONE) == sum(skipped.values()):
        message = f"the {split} split has one sample, and batch norm needs two in a batch"
        hint = "add samples; one alone trains with batch_size=1 if no map is 1×1"
        return UserError("dataset", message, hint)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()) if count)
    message = f"no sample of the {split} split could be read ({kinds})"
    return UserError("dataset", message, "check the files of the data set")


def timestamp() -> str:
    """The current time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
