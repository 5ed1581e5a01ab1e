"""What the batches of an epoch said: rows for the tracker, means for the epoch."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor

from research.batch import Batch
from research.tracking.tracker import Progress, Tracker
from research.utils.errors import NotFinite, UserError


@dataclass(frozen=True)
class Trained:
    """One epoch of training.

    Attributes:
        metrics: mean loss and its parts.
        total_loss: sum of the batches' losses.
        learning_rate: of the last optimizer step.
        damage: samples left out or read by a detour, by kind.
    """

    metrics: dict[str, float]
    total_loss: float
    learning_rate: float
    damage: dict[str, int]


class BatchJournal:
    """Writes a row a batch, reading losses back from the device in groups.

    Losses stay on the device and are read every ``log_every`` batches, so that the device waits
    for the host only now and then.

    Args:
        tracker: takes the rows.
        epoch: from 1.
        batches: how many the epoch will have.
        log_every: batches a group.
        left_out: samples that no batch will hold, by kind.
    """

    def __init__(
        self,
        tracker: Tracker,
        epoch: int,
        batches: int,
        log_every: int,
        left_out: Mapping[str, int],
    ) -> None:
        self.tracker = tracker
        self.epoch = epoch
        self.batches = batches
        self.log_every = log_every
        self.sums: Counter[str] = Counter()
        self.counted = 0
        self.damage = Counter(left_out)
        self.pending: list[tuple[int, int, dict[str, Tensor]]] = []
        self.samples = 0
        self.since = time.perf_counter()

    def add(self, step: int, position: int, batch: Batch, losses: dict[str, Tensor]) -> None:
        """Take in a batch; ``losses`` is empty when nothing of it could be used."""
        self.damage.update(batch.skipped)
        self.samples += len(batch)
        if losses:
            detached = {name: loss.detach() for name, loss in losses.items()}
            self.pending.append((step, position, detached))
        if (position + 1) % self.log_every == 0 or position + 1 == self.batches:
            self._write(position)

    def close(self, learning_rate: float) -> Trained:
        """The epoch's means.

        Raises:
            UserError: when not one batch could be used.
        """
        if not self.counted:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.damage.items()))
            raise UserError(
                "dataset", f"no training image could be read ({kinds})", "check dataset.train_dirs"
            )
        means = {f"train/{name}": total / self.counted for name, total in self.sums.items()}
        return Trained(means, self.sums["loss"], learning_rate, dict(self.damage))

    def _write(self, position: int) -> None:
        rows = [
            {"loss": sum(values), **dict(zip(losses, values, strict=True))}
            for (_, _, losses), values in zip(self.pending, self._read(), strict=True)
        ]
        now = time.perf_counter()
        seconds = (now - self.since) / max(1, len(rows))
        for (step, batch, _), row in zip(self.pending, rows, strict=True):
            self._check(row, batch)
            self.sums.update(row)
            self.counted += 1
            record = {"epoch": self.epoch, "batch": batch + 1, **row}
            self.tracker.log(
                "batch", step, {**record, "batch_time_sec": seconds, "timestamp": timestamp()}
            )
        rate = self.samples / max(now - self.since, 1e-9)
        shown = {"loss": rows[-1]["loss"]} if rows else {}
        self.tracker.progress(
            Progress(f"train {self.epoch}", position + 1, self.batches, rate=rate, metrics=shown)
        )
        self.pending, self.samples, self.since = [], 0, now

    def _read(self) -> list[list[float]]:
        if not self.pending:
            return []
        stacked = [torch.stack(list(losses.values())) for _, _, losses in self.pending]
        values: list[list[float]] = torch.stack(stacked).tolist()
        return values

    def _check(self, row: dict[str, float], batch: int) -> None:
        if not all(math.isfinite(value) for value in row.values()):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            raise NotFinite(
                "optimizer.lr",
                f"the loss is no longer finite at epoch {self.epoch}, batch {batch + 1} ({parts})",
                "lower optimizer.lr, set grad_clip, or use precision=fp32",
            )


def timestamp() -> str:
    """Now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
