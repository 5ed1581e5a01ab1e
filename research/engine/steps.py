"""One optimizer step; losses, gradients and weights that are not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from research.engine import distributed
from research.engine.state import TrainState
from research.utils.errors import NotFinite

KIND = "left_out/not_finite"
"""Under which skipped samples are counted."""


class Skips:
    """Skips batches whose loss, and steps whose gradient, is not finite: ``skip_nonfinite``.

    A skipped batch changes neither weights, buffers (statistics of batch norm), optimizer,
    schedule nor EMA. With accumulation the step is made from the other batches of its window. To
    see it in time, the loss and the norm of the gradient are read from the device at every step;
    without skips they are not, and ``LossLog`` stops the run when it reads the losses.

    Args:
        state: counts the skips in ``skips``, over the whole run.
        most: skips allowed in the run; 0: none, and nothing is read.
        skipped: gets the number of samples that were skipped, by kind.
    """

    def __init__(self, state: TrainState, most: int, skipped: Counter[str]) -> None:
        self.state = state
        self.most = most
        self.skipped = skipped
        self.samples = 0  # whose gradients are in the next step
        self.buffers: list[Tensor] = []

    @property
    def are_left(self) -> bool:
        """Whether another skip is allowed."""
        return self.state.skips < self.most

    def before_forward(self) -> None:
        """Remember the buffers of the model, to which ``loss`` may return."""
        self.buffers = [b.clone() for b in self.state.model.buffers()] if self.are_left else []

    def loss(self, loss: Tensor, samples: int) -> bool:
        """Whether a batch is skipped for its loss; otherwise it is part of the next step.

        Args:
            loss: of this process; all processes skip the batch together.
            samples: number of samples of the batch, in all processes.
        """
        if not self.are_left or not any(distributed.largest(not loss.isfinite())):
            self.samples += samples
            return False
        self._count(samples)
        for buffer, before in zip(self.state.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        return True

    def step(self, norm: Tensor | None) -> bool:
        """Whether a step is skipped: it has no batch, or a gradient that is not finite.

        The gradient scaler of fp16 itself skips steps with such gradients and then lowers its
        scale; they are not counted.

        Args:
            norm: of the gradient; None: it is computed if it is needed.
        """
        samples, self.samples = self.samples, 0
        if not samples:
            return True
        if not self.are_left or self.state.scaler.is_enabled():
            return False
        if norm is None:
            gradients = [p.grad for p in self.state.model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        if bool(norm.isfinite()):
            return False
        self._count(samples)
        return True

    def _count(self, samples: int) -> None:
        self.state.skips += 1
        if distributed.is_main():  # counted once
            self.skipped[KIND] += samples


def optimizer_step(state: TrainState, grad_clip: float | None, skips: Skips) -> None:
    """One step of the optimizer, the scheduler and the EMA, unless it is skipped."""
    norm = None
    if grad_clip is not None and skips.samples:
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), grad_clip)
    scale, skipped = state.scaler.get_scale(), skips.step(norm)
    if not skipped:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if skipped or state.scaler.get_scale() < scale:
        return  # also for an fp16 overflow: without the optimizer, scheduler and EMA do not step
    state.scheduler.step()
    if state.ema is not None:
        state.ema.update(state.model, step=state.scheduler.last_epoch)


def not_finite(
    row: Mapping[str, float], where: str, lr: float, samples: Sequence[str], remedy: str
) -> NotFinite:
    """The error for a loss that is infinite or NaN.

    Args:
        row: losses of the batch by name.
        where: step, epoch and batch.
        lr: learning rate of the last step.
        samples: names of the batch's samples; the traceback has all of them.
        remedy: see ``remedy``.
    """
    terms = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
    more = f" and {len(samples) - 3} more" if len(samples) > 3 else ""
    error = NotFinite(
        "optimizer.lr",
        f"the loss is no longer finite at {where}: {terms}; learning rate {lr:.3g}; samples "
        f"{', '.join(samples[:3])}{more}",
        remedy,
    )
    error.add_note(f"samples of this batch: {', '.join(samples)}")
    return error


def remedy(precision: str, grad_clip: float | None, skip_nonfinite: int) -> str:
    """What to do about a loss that is not finite, under these settings."""
    clip = "set grad_clip=1" if grad_clip is None else f"a lower grad_clip than {grad_clip:g}"
    exact = [] if precision == "fp32" else ["use precision=fp32"]
    skip = f"skip such batches with skip_nonfinite={skip_nonfinite + 10}"
    return ", ".join(["lower optimizer.lr", clip, *exact, f"or {skip}"])


def check_weights(state: TrainState) -> None:
    """Check the weights before they are saved: a resumed run could not recover from them.

    Raises:
        NotFinite: if a weight is infinite or NaN. The loss can still be finite: that of the next
            batch would not be.
    """
    parameters = list(state.model.named_parameters())
    finite = torch.stack([value.detach().isfinite().all() for _, value in parameters]).tolist()
    wrong = [name for (name, _), right in zip(parameters, finite, strict=True) if not right]
    if wrong:
        raise NotFinite(
            "optimizer.lr",
            f"{len(wrong)} of {len(finite)} weights are not finite after step {state.step} "
            f"({wrong[0]}); they were not saved",
            "lower optimizer.lr or set grad_clip=1",
        )
