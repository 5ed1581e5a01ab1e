"""The training loop in plain PyTorch: ``fit``, ``train_epoch``, ``evaluate``.

It depends neither on the configuration nor on a particular task, data set or tracker.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from research.batch import Batch
from research.data.loader import EpochLoader
from research.data.transforms import DeviceTransform
from research.engine import distributed
from research.engine.loss_log import ALONE, EpochStats, LossLog, no_samples, timestamp
from research.engine.rng import generator_for
from research.engine.state import TrainState
from research.engine.steps import Skips, optimizer_step, remedy
from research.tasks.task import LossTerms, Metrics, Monitor, Task, check_monitor, main_values
from research.tracking.tracker import Tracker
from research.utils.progress import track_batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """The run settings that the loop uses, see ``research.config.schema.RunSettings``."""

    epochs: int
    seed: int
    precision: str
    accumulate: int
    grad_clip: float | None
    patience: int | None
    skip_nonfinite: int
    log_every: int
    max_train_batches: int | None


class EpochCallback:
    """Called at the end of every epoch, and within it; saves, draws, and may stop the run."""

    def replay(self, row: dict[str, Any]) -> None:
        """Called on resume for each earlier epoch; a kill may have prevented the last call."""

    def checkpoint_path(self, epoch: int, loss: float, *, is_best: bool) -> str:
        """Path of this epoch's checkpoint, relative to the run folder; empty if none is saved."""
        return ""

    def __call__(self, state: TrainState, row: dict[str, Any], result: EvalResult) -> None:
        """Called when ``state`` includes the epoch and its row has been logged."""

    def step(self, state: TrainState, losses: LossLog, inputs: Batch | None) -> None:
        """Called after each optimizer step; may save the state, and raise to end the run.

        ``inputs`` is the last batch as it was passed to the model, if this process had one.
        """

    def validation(self, state: TrainState) -> AbstractContextManager[None]:
        return nullcontext()  # of the validation, during which the state does not change

    @property
    def stop(self) -> bool:
        """Whether to stop the run."""
        return False


def fit(
    state: TrainState,
    task: Task,
    train: EpochLoader,
    val: EpochLoader,
    monitor: Monitor,
    cfg: LoopConfig,
    device: torch.device,
    tracker: Tracker,
    end_epoch: EpochCallback,
) -> None:
    """Train from ``state`` to the last epoch, or until ``patience`` or ``end_epoch`` stops.

    Raises:
        UserError: if the loss is not finite or the monitored metric does not exist.
    """
    check_monitor(monitor, task, device)
    losses = distributed.parallel(distributed.Losses(task, state.forward))
    for past in state.history:
        end_epoch.replay(past)
    while state.epoch < cfg.epochs and not state.stopped_early(cfg.patience) and not end_epoch.stop:
        epoch = state.epoch + 1
        start = time.perf_counter() - state.epoch_losses.get("seconds", 0.0)
        stats = train_epoch(state, losses, train, cfg, device, tracker, end_epoch, monitor.metric)
        distributed.share_buffers(state.model, state.ema)
        with end_epoch.validation(state):
            result = evaluate(state.eval_model, task, val, state.transform, cfg, device)
        evaluated = {f"val/{name}": v for name, v in result.metrics.items()}
        values = {**stats.metrics, **evaluated, "val/n": result.n}
        loss = stats.metrics["train/loss"]
        is_best = monitor.better(values[monitor.metric], state.best)
        if is_best:
            state.best, state.best_epoch = values[monitor.metric], epoch
        row: dict[str, Any] = {  # the columns of epoch_metrics.csv
            "epoch": epoch,
            "avg_loss": loss,
            "total_loss": stats.total_loss,
            "epoch_time_sec": time.perf_counter() - start,
            "learning_rate": stats.learning_rate,
            "is_best": is_best,
            "checkpoint_path": end_epoch.checkpoint_path(epoch, loss, is_best=is_best),
            "timestamp": timestamp(),
            **values,
            **{f"train/{kind}": n for kind, n in sorted(stats.skipped.items())},
            **{f"val/{kind}": n for kind, n in sorted(result.skipped.items())},
        }
        state.end_epoch()
        state.history.append(row)
        # Before the checkpoint: on resume, a row without a checkpoint is dropped, but a checkpoint
        # without its row could not be repaired.
        tracker.log("epoch", epoch, row)
        end_epoch(state, row, result)
    if state.stopped_early(cfg.patience) and state.epoch < cfg.epochs:
        log.info("stopped early by patience=%d: no better %s", cfg.patience, monitor.metric)


def train_epoch(
    state: TrainState,
    task_losses: nn.Module,
    loader: EpochLoader,
    cfg: LoopConfig,
    device: torch.device,
    tracker: Tracker,
    callback: EpochCallback,
    metric: str = "",
) -> EpochStats:
    """Train the epoch after ``state.epoch``, from sample ``state.samples`` of its order.

    A batch of which one sample remains is skipped, unless ``batch_size`` is 1: batch norm needs
    more than one sample. Progress shows ``state.best``, the best value of ``metric`` so far.
    """
    task_losses.train()
    state.transform.train()
    epoch, first = state.epoch + 1, state.samples // loader.global_batch
    batches = min(len(loader), cfg.max_train_batches or len(loader))
    advice = remedy(cfg.precision, cfg.grad_clip, cfg.skip_nonfinite)
    loss_log = LossLog(tracker, epoch, batches, cfg.log_every, loader, advice, metric, state.best)
    loss_log.load_state_dict(state.epoch_losses)
    skips = Skips(state, cfg.skip_nonfinite, loss_log.skipped)
    for i, batch in enumerate(islice(loader.epoch(epoch, first), batches - first), start=first):
        state.step += 1
        is_step = (i + 1) % cfg.accumulate == 0 or i + 1 == batches
        usable = len(batch) > 1 or len(batch) == loader.batch_size
        losses = LossTerms()
        inputs, samples = None, distributed.announce(len(batch) if usable else 0)
        if samples or distributed.is_awaited(is_step, skips.samples):
            if usable:
                rng = generator_for(cfg.seed, epoch, loader.shard.position(i))
                inputs = state.transform(batch.to(device), rng)
            skips.before_forward()
            with distributed.no_sync(task_losses, not is_step):
                with autocast(device, cfg.precision):
                    losses = task_losses(inputs)
                loss = torch.stack(list(losses.values())).sum()
                # Number of batches in this step; the last step of an epoch may have fewer.
                accumulated = min(cfg.accumulate, batches - (i - i % cfg.accumulate))
                if skips.loss(loss, samples):
                    losses = LossTerms()
                    distributed.average_others(task_losses, is_step, skips.samples)
                else:
                    state.scaler.scale(loss / accumulated).backward()
        if len(batch) and not usable:
            batch.skipped[ALONE] = 1
        if is_step:
            loss_log.learning_rate = state.optimizer.param_groups[0]["lr"]
            optimizer_step(state, cfg.grad_clip, skips)
        loss_log.add(state.step, i, batch, losses, samples)
        state.samples += loader.global_batch
        if is_step:
            callback.step(state, loss_log, inputs)
    state.epoch_losses = loss_log.state_dict()
    return loss_log.close()


@dataclass(frozen=True)
class EvalResult:
    """Result of one pass over a split.

    Attributes:
        metrics: values by name, without the split's prefix, of ``n`` samples.
        basis: what they are of, in words, see ``EpochLoader.basis``.
        totals: the task's ``Metrics`` over all batches.
        examples: reads samples from over the split, and returns the batch as passed to the model,
            and its predictions.
        skipped: counts by kind of samples that were skipped or read by a fallback.
    """

    metrics: dict[str, float]
    n: int
    basis: str
    totals: Metrics
    examples: Callable[[], tuple[Batch, Any]]
    skipped: dict[str, int]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task,
    loader: EpochLoader,
    transform: DeviceTransform,
    cfg: LoopConfig,
    device: torch.device,
    phase: str = "val",
) -> EvalResult:
    """One pass over a split in evaluation mode, or over the part to which ``loader`` is limited.

    Raises:
        UserError: if no sample of the split could be read.
    """
    model.eval()
    transform.eval()

    def predicted(batch: Batch) -> tuple[Batch, Any]:
        inputs = transform(batch.to(device), None)
        with autocast(device, cfg.precision):
            return inputs, task.predict(model, inputs)

    totals, counts = task.metrics(device), Counter(loader.skipped)
    shown = partial(main_values, totals, task.monitor)
    for batch in track_batches(loader.epoch(0), phase, len(loader), shown):
        counts.update(batch.skipped, n=len(batch))
        if len(batch):
            inputs, predictions = predicted(batch)
            totals.update(predictions, inputs)
    metrics = distributed.computed(totals)
    skipped = {kind: int(count) for kind, count in distributed.summed(counts).items()}
    n = skipped.pop("n", 0)
    if not metrics:
        raise no_samples(phase, skipped)

    @torch.inference_mode()
    def examples() -> tuple[Batch, Any]:
        return predicted(loader.examples())

    return EvalResult(metrics, n, loader.basis(n), totals, examples, skipped)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast for ``bf16`` and ``fp16``; disabled for ``fp32``."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
