"""The training loop: plain PyTorch. It knows no configuration, no tracker, no task by name."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from research.batch import Batch
from research.data.loader import EpochLoader
from research.data.transforms import DeviceTransform
from research.engine.checkpoint import Checkpoints, rng_state
from research.engine.loss_log import BatchJournal, Trained, timestamp
from research.tasks.task import Metrics, Monitor, Task
from research.tracking.tracker import Progress, Tracker
from research.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The loop's numbers; see the run settings of the same names in ``research.config``."""

    epochs: int
    seed: int
    precision: str
    accumulate: int
    grad_clip: float | None
    patience: int | None
    log_every: int
    max_train_batches: int | None
    max_val_batches: int | None


@dataclass
class Parts:
    """Everything that a run is made of, built.

    Attributes:
        model: the network, as saved.
        forward: the network as called (the same, or its compiled form).
        ema: keeps a moving average of the model, when one is kept.
        scheduler: steps once an optimizer step.
        scaler: scales fp16 losses; does nothing in other precisions.
        monitor: which metric picks the best epoch.
    """

    task: Task
    model: nn.Module
    forward: nn.Module
    transform: DeviceTransform
    train_loader: EpochLoader
    val_loader: EpochLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    monitor: Monitor
    device: torch.device

    @property
    def kept(self) -> nn.Module:
        """What later use gets: the moving average where there is one, else the model."""
        return self.model if self.ema is None else self.ema.module

    @property
    def judged(self) -> nn.Module:
        """The same as validation calls it, perhaps compiled."""
        return self.forward if self.ema is None else self.ema.module


@dataclass
class State:
    """Where a run stands, at the end of an epoch.

    Attributes:
        epoch: epochs done.
        step: batches seen.
        batch: position inside the next epoch; 0 at an epoch's end, where checkpoints are made.
        best: best value of the monitored metric.
        best_epoch: the epoch that reached it; 0 before the first.
        history: one row an epoch.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    best: float | None = None
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def stopped_early(self, patience: int | None) -> bool:
        return patience is not None and self.epoch - self.best_epoch >= patience


class Watch:
    """Sees every epoch's monitored value, and may end the run by setting ``stopped``."""

    stopped = False

    def epoch(self, epoch: int, value: float) -> None:
        """An epoch, counted from 1, has been recorded and its checkpoint written."""


def fit(
    parts: Parts,
    settings: Settings,
    state: State,
    tracker: Tracker,
    checkpoints: Checkpoints,
    watch: Watch | None = None,
) -> State:
    """Train from ``state`` to the last epoch, or until ``patience`` epochs brought nothing better.

    ``watch`` is told of the epochs that ``state`` has behind it, too: a crash may have come between
    a checkpoint and its being told.

    Raises:
        UserError: when the loss stops being finite, or the monitored metric does not exist.
    """
    _check_monitor(parts)
    watch = watch or Watch()
    for past in state.history:
        watch.epoch(past["epoch"], past[parts.monitor.metric])
    while (
        state.epoch < settings.epochs
        and not state.stopped_early(settings.patience)
        and not watch.stopped
    ):
        began = time.perf_counter()
        epoch = state.epoch + 1
        trained = train_epoch(parts, settings, state, tracker)
        judged = evaluate(parts, parts.val_loader, settings, tracker)
        metrics = {f"val/{name}": value for name, value in judged.metrics.items()}
        value = {**trained.metrics, **metrics}[parts.monitor.metric]
        is_best = parts.monitor.better(value, state.best)
        if is_best:
            state.best, state.best_epoch = value, epoch
        path = checkpoints.path_for(epoch, trained.metrics["train/loss"], is_best=is_best)
        row: dict[str, float | int | str | bool] = {
            "epoch": epoch,
            "avg_loss": trained.metrics["train/loss"],
            "total_loss": trained.total_loss,
            "epoch_time_sec": time.perf_counter() - began,
            "learning_rate": trained.learning_rate,
            "is_best": is_best,
            "checkpoint_path": path,
            "timestamp": timestamp(),
            **trained.metrics,
            **metrics,
            **_damage("train", trained.damage),
            **_damage("val", judged.damage),
        }
        state.epoch, state.batch = epoch, 0
        state.history.append(row)
        # The row first: a checkpoint without its row could not be mended, a row without its
        # checkpoint is dropped on resume.
        tracker.log("epoch", epoch, row)
        if is_best and judged.first is not None:
            panels = parts.transform.to_images
            tracker.pictures(epoch, parts.task.pictures(judged.totals, *judged.first, panels))
            tracker.tables(epoch, parts.task.tables(judged.totals, parts.transform.names))
        checkpoints.save(checkpoint(parts, state, tracker), path, epoch, is_best=is_best)
        tracker.flush()
        watch.epoch(epoch, value)
    if state.stopped_early(settings.patience) and state.epoch < settings.epochs:
        log.info(
            "stopped early: %d epochs without a better %s", settings.patience, parts.monitor.metric
        )
    return state


def train_epoch(parts: Parts, settings: Settings, state: State, tracker: Tracker) -> Trained:
    """One pass over the training split; ``state.step`` counts on.

    A batch of which damage left one sample is not used: it has no batch statistics.
    """
    parts.forward.train()
    parts.transform.train()
    epoch = state.epoch + 1
    batches = _limit(len(parts.train_loader), settings.max_train_batches)
    rate = math.nan
    journal = BatchJournal(tracker, epoch, batches, settings.log_every, parts.train_loader.left_out)
    for position, batch in enumerate(_first(parts.train_loader.epoch(epoch), batches)):
        state.step += 1
        losses: dict[str, Tensor] = {}
        if len(batch) > 1 or len(batch) == parts.train_loader.batch_size:
            generator = _generator(settings.seed, epoch, position)
            prepared = parts.transform(batch.to(parts.device), generator)
            with autocast(parts.device, settings.precision):
                losses = parts.task.losses(parts.forward, prepared)
            loss = torch.stack(list(losses.values())).sum()
            group = position - position % settings.accumulate
            share = min(settings.accumulate, batches - group)
            parts.scaler.scale(loss / share).backward()
        elif len(batch):
            batch.skipped["left_out/alone"] = 1
        if (position + 1) % settings.accumulate == 0 or position + 1 == batches:
            rate = parts.optimizer.param_groups[0]["lr"]
            _optimizer_step(parts, settings)
        journal.add(state.step, position, batch, losses)
    return journal.close(rate)


def _optimizer_step(parts: Parts, settings: Settings) -> None:
    if settings.grad_clip is not None:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), settings.grad_clip)
    scale = parts.scaler.get_scale()
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    if parts.scaler.get_scale() < scale:
        # fp16 overflowed and the optimizer did not step, so neither schedule nor average may.
        return
    parts.scheduler.step()
    if parts.ema is not None:
        parts.ema.update(parts.model, step=parts.scheduler.last_epoch)


@dataclass(frozen=True)
class Judged:
    """One pass over a split.

    Attributes:
        metrics: flat names and values.
        totals: the task's metrics object, complete.
        first: the first batch, as the model saw it, and the predictions for it.
        damage: samples left out or read by a detour, by kind.
    """

    metrics: dict[str, float]
    totals: Metrics
    first: tuple[Batch, Any] | None
    damage: dict[str, int]


class Judge(Protocol):
    """What evaluation needs of a run in training or of a trained model."""

    @property
    def task(self) -> Task: ...

    @property
    def judged(self) -> nn.Module: ...

    @property
    def transform(self) -> DeviceTransform: ...

    @property
    def device(self) -> torch.device: ...


def evaluate(
    judge: Judge, loader: EpochLoader, settings: Settings, tracker: Tracker, phase: str = "val"
) -> Judged:
    """One pass over a split in evaluation mode.

    Raises:
        UserError: when not one sample of the split could be read.
    """
    judge.judged.eval()
    judge.transform.eval()
    batches = _limit(len(loader), settings.max_val_batches)
    totals = judge.task.metrics(judge.device)
    first: tuple[Batch, Any] | None = None
    damage = Counter(loader.left_out)
    with torch.inference_mode():
        for position, batch in enumerate(_first(loader.epoch(0), batches)):
            damage.update(batch.skipped)
            if len(batch):
                prepared = judge.transform(batch.to(judge.device), None)
                with autocast(judge.device, settings.precision):
                    predictions = judge.task.predict(judge.judged, prepared)
                totals.update(predictions, prepared)
                first = first or (prepared, predictions)
            tracker.progress(Progress(phase, position + 1, batches))
    metrics = totals.compute()
    if not metrics:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(damage.items()))
        raise UserError(
            "dataset", f"no sample of the {phase} split could be read ({kinds})", "check its files"
        )
    return Judged(metrics, totals, first, dict(damage))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision in ``bf16`` and ``fp16``; does nothing in ``fp32``."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def checkpoint(parts: Parts, state: State, tracker: Tracker) -> dict[str, Any]:
    """All that an exact resume needs, as plain tensors, numbers, lists and dicts."""
    return {
        "model": parts.model.state_dict(),
        "ema": None if parts.ema is None else parts.ema.module.state_dict(),
        "transform": parts.transform.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scheduler": parts.scheduler.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "state": vars(state).copy(),
        "rng": rng_state(),
        "tracking": tracker.state(),
    }


def _check_monitor(parts: Parts) -> None:
    """Before any work: would the monitored metric be there at the end of an epoch?"""
    known = ["train/loss", *(f"val/{name}" for name in parts.task.metrics(parts.device).names)]
    if parts.monitor.metric not in known:
        raise UserError(
            "monitor",
            f"monitor: no metric {parts.monitor.metric!r} is logged",
            f"there are {', '.join(known)}",
        )


def _damage(split: str, counts: dict[str, int]) -> dict[str, int]:
    return {f"{split}/{kind}": count for kind, count in sorted(counts.items())}


def _generator(seed: int, epoch: int, position: int) -> torch.Generator:
    """The device transform's chance, the same for the same place in the run, resumed or not.

    On the CPU for every device, so that a run's augmentation does not depend on where it runs.
    """
    words = np.random.SeedSequence((seed, epoch, position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))


def _first(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch


def _limit(batches: int, limit: int | None) -> int:
    return batches if limit is None else min(batches, limit)
