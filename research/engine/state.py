"""``TrainState``: the state of a training run, which is the content of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from research.data.transforms import DeviceTransform
from research.engine import distributed, saved_state, schedules
from research.engine.rng import rng_state, seed_rank, set_rng_state
from research.utils.conditions import explain
from research.utils.errors import UserError, one_line

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

COUNTERS = (
    "epoch", "step", "samples", "global_batch", "epoch_losses", "skips", "best", "best_epoch",
    "history",
)  # fmt: skip


@dataclass
class TrainState:
    """Everything that changes during training and is stored in a checkpoint.

    ``state_dict`` and ``load_state_dict`` iterate over ``_stateful`` and ``COUNTERS``; nothing is
    saved or restored elsewhere.

    Attributes:
        model: the network that is saved.
        forward: the network that is called: ``model``, or its compiled form.
        transform: preprocessing on the device, with its statistics.
        scheduler: stepped after each optimizer step.
        scaler: scales fp16 losses; disabled in other precisions.
        ema: exponential moving average of the model, or None.
        ema_forward: the network that is called in its place: its module, or the compiled form.
        config: the resolved configuration, stored with the checkpoint.
        metadata: of the data set, see ``DataModule.metadata``; stored with the checkpoint.
        epoch: number of completed epochs.
        step: number of training batches so far, over all epochs.
        samples: position in the order of the current epoch; 0 after the end of an epoch.
        global_batch: samples of a batch of all processes; on another number of processes, a run is
            resumed with the same.
        epoch_losses: losses of the current epoch so far, see ``LossLog.state_dict``; empty after
            the end of an epoch.
        skips: number of batches and steps skipped so far, see ``steps.Skips``.
        best: best value of the monitored metric; None before the first epoch.
        best_epoch: epoch of the best value, from 1; 0 before the first epoch.
        history: one row per epoch.
        tracking: state of the trackers for resume, such as an MLflow run id.
    """

    model: nn.Module
    forward: nn.Module
    transform: DeviceTransform
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    ema_forward: nn.Module | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    samples: int = 0
    global_batch: int = 0
    epoch_losses: dict[str, Any] = field(default_factory=dict)
    skips: int = 0
    best: float | None = None
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    tracking: dict[str, str] = field(default_factory=dict)

    @property
    def eval_model(self) -> nn.Module:
        """What validation calls: the EMA if there is one, else the model; perhaps compiled."""
        return self.forward if self.ema_forward is None else self.ema_forward

    def end_epoch(self) -> None:
        """Count the current epoch as completed."""
        self.epoch, self.samples, self.epoch_losses = self.epoch + 1, 0, {}

    def stopped_early(self, patience: int | None) -> bool:
        return patience is not None and self.epoch - self.best_epoch >= patience

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        yield "model", self.model
        yield "ema", None if self.ema is None else self.ema.module
        for name in ("transform", "optimizer", "scheduler", "scaler"):
            yield name, getattr(self, name)

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: plain tensors, numbers, strings and containers.

        Every process calls it; only that of the main process is complete.
        """
        own, *others = distributed.gathered(rng_state()) or [{}]
        return {
            **{
                name: None if part is None else part.state_dict() for name, part in self._stateful()
            },
            "state": {name: getattr(self, name) for name in COUNTERS},
            "rng": own,
            "rng_of_others": others,
            "tracking": dict(self.tracking),
            "config": self.config,
            "data": self.metadata,
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], folder: Path, samples: int, metric: str
    ) -> None:
        """Restore everything except ``config`` and ``metadata``, which the current command sets.

        Args:
            saved: what ``checkpoint.load`` returns for a file written from ``state_dict``.
            folder: run folder, for messages.
            samples: of an epoch of training, rounded up to whole batches.
            metric: name of the monitored metric.

        Raises:
            UserError: if a part is missing or does not fit this model, optimizer or scheduler.
        """
        try:
            counters = saved_state.counters(saved["state"], samples, metric)
            groups = self.optimizer.param_groups
            schedules.advance(
                self.scheduler,
                saved_state.scheduler_steps(len(groups), saved["scheduler"], counters["step"]),
            )
            # Before the weights are loaded: this step changes them.
            optimizer = saved_state.OptimizerState(self.optimizer)
            for name, part in self._stateful():
                if isinstance(part, nn.Module):
                    load_weights(part, saved[name], "resume", f"resume={folder}")
            self.optimizer.load_state_dict(optimizer.restored(saved["optimizer"]))
            schedules.set_rates(self.scheduler)  # the checkpoint's may be for another ``epochs``
            self.scaler.load_state_dict(
                saved_state.scaler_state(self.scaler.state_dict(), saved["scaler"])
            )
            for name in COUNTERS:
                setattr(self, name, counters[name])
            self.tracking = saved_state.tracking(saved["tracking"])
            self._load_rng([saved["rng"], *saved.get("rng_of_others", ())])
        except (
            KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError,
            ArithmeticError,
        ) as error:  # fmt: skip
            if explain(error) is not None:
                raise
            raise UserError(
                "resume",
                f"resume={folder}: the last checkpoint is damaged ({one_line(error)})",
                f"start a new run with init_from={folder}",
            ) from error

    def _load_rng(self, states: list[dict[str, Any]]) -> None:
        """Restore this process's generators; with another number of processes, seed them anew."""
        if distributed.is_main() or len(states) == distributed.count():
            set_rng_state(states[distributed.rank()])
        else:
            seed_rank(self.config["seed"], self.step, distributed.rank())


def load_weights(network: nn.Module, weights: Mapping[str, Any], key: str, where: str) -> None:
    """Load all weights of a network.

    Args:
        network: receives the weights.
        weights: a state dict.
        key: key of the error, such as ``init_from``.
        where: source of the weights, for the message.

    Raises:
        UserError: if names, shapes or kinds of numbers differ.
    """
    if not all(isinstance(name, str) and isinstance(w, Tensor) for name, w in weights.items()):
        raise UserError(key, f"{where}: contains no state dict", "use a dict of tensors")
    own = network.state_dict()
    for name in own.keys() & weights.keys():
        if _kind(own[name]) != _kind(weights[name]):
            reason = f"{name} is {weights[name].dtype}, not {own[name].dtype}"
            raise UserError(key, f"{where}: the weights do not fit this model ({reason})")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        if explain(error) is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(key, f"{where}: the weights do not fit this model ({reason})") from None


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
