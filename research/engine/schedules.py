"""Learning-rate schedules, stepped after each optimizer step, with a linear warm-up.

A schedule multiplies the learning rate of each parameter group by a function of the step. The step
is its only state: a run that is resumed has the learning rates of its settings at that step, also
if ``epochs`` was changed. The same holds for schedulers of torch and of one's own, see ``advance``.
Arguments of all schedules:

    optimizer: its learning rates are scheduled.
    epochs: length of the run.
    steps_per_epoch: optimizer steps per epoch.
    warmup_epochs: length of the linear warm-up from almost 0, in epochs.
    warmup_steps: the same in optimizer steps; replaces ``warmup_epochs`` if not None.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from research.engine import distributed

log = logging.getLogger(__name__)


class Schedule(LambdaLR):
    """Learning rates as a function of the step, and of nothing that was before it."""

    def advance(self, steps: int) -> None:
        """Go from the first step to this one."""
        self.last_epoch, self._step_count = steps, steps + 1
        factors = [factor(steps) for factor in self.lr_lambdas]
        self._last_lr = [base * f for base, f in zip(self.base_lrs, factors, strict=True)]
        set_rates(self)


def advance(scheduler: LRScheduler, steps: int) -> None:
    """Bring a new scheduler, and what it sets in its optimizer, to the state after these steps.

    The steps of one that is no ``Schedule`` are repeated: it may set more than learning rates, and
    compute each from the one before.
    """
    if isinstance(scheduler, Schedule):
        scheduler.advance(steps)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no optimizer step goes before these
        for _ in range(steps):
            scheduler.step()


def set_rates(scheduler: LRScheduler) -> None:
    """Set the learning rates of the optimizer to those of the scheduler."""
    groups = scheduler.optimizer.param_groups
    for group, lr in zip(groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr


def cosine(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    lr_end: float,
) -> Schedule:
    """Cosine from the initial learning rate after the warm-up to ``lr_end`` (Loshchilov, 2017).

    Args:
        lr_end: last learning rate; parameter groups with their own learning rates end at the same
            fraction of them.
    """
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    return _decay(
        optimizer,
        warmup,
        epochs * steps_per_epoch,
        lr_end,
        lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    )


def linear(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    lr_end: float,
) -> Schedule:
    """Linear decay to ``lr_end``; otherwise as ``cosine``."""
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    return _decay(optimizer, warmup, epochs * steps_per_epoch, lr_end, lambda done: 1 - done)


def constant(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
) -> Schedule:
    """The initial learning rate, after the warm-up."""
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    return _with_warmup(optimizer, warmup, lambda step: 1.0)


def step(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    step_size: int,
    gamma: float,
) -> Schedule:
    """Multiply by ``gamma`` every ``step_size`` epochs (including the warm-up)."""
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    length = step_size * steps_per_epoch
    return _with_warmup(optimizer, warmup, lambda step: gamma ** (step // length))


def multistep(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    milestones: Sequence[float],
    gamma: float,
) -> Schedule:
    """Multiply by ``gamma`` at each of ``milestones`` (the warm-up counts as well).

    Args:
        milestones: epochs, or fractions of the run below 1.
        gamma: the factor.
    """
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    at = [round((m * epochs if m < 1 else m) * steps_per_epoch) for m in milestones]
    return _with_warmup(optimizer, warmup, lambda step: gamma ** sum(step >= each for each in at))


def exponential(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    gamma: float,
) -> Schedule:
    """Multiply by ``gamma`` per epoch after the warm-up, by a fractional power at each step."""
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    return _with_warmup(
        optimizer, warmup, lambda step: gamma ** ((step - warmup) / steps_per_epoch)
    )


def one_cycle(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
    anneal: str,
) -> Schedule:
    """Up to the optimizer's learning rate, then down to almost 0 (Smith and Topin, 2018).

    As torch's ``OneCycleLR`` without cycling momentum. A warm-up precedes the cycle, rises to its
    initial learning rate, and shortens it.

    Args:
        pct_start: fraction of the cycle in which the learning rate rises, 0 <= x < 1.
        div_factor: the initial learning rate is that of the optimizer divided by this.
        final_div_factor: the final learning rate is the initial one divided by this.
        anneal: ``cos`` or ``linear``, the shape of both phases.
    """
    warmup = _warmup(epochs, steps_per_epoch, warmup_epochs, warmup_steps)
    first = 1 / div_factor
    last = first / final_div_factor
    length = max(1, epochs * steps_per_epoch - warmup)
    peak, end = pct_start * length - 1, length - 1

    def interpolate(start: float, stop: float, done: float) -> float:
        if anneal == "cos":
            return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * done))
        return start + (stop - start) * done

    def factor(step: int) -> float:
        position = step - warmup
        if position < peak:
            return interpolate(first, 1.0, position / peak)
        return interpolate(1.0, last, min(1.0, (position - peak) / (end - peak)))

    return _with_warmup(optimizer, warmup, factor, first)


def _warmup(
    epochs: int, steps_per_epoch: int, warmup_epochs: float, warmup_steps: int | None
) -> int:
    """Optimizer steps of the warm-up; warns of one that takes the whole run."""
    by_epochs = warmup_steps is None
    steps = round(warmup_epochs * steps_per_epoch) if warmup_steps is None else warmup_steps
    if steps >= epochs * steps_per_epoch and distributed.is_main():
        setting = f"warmup_epochs={warmup_epochs:g}" if by_epochs else f"warmup_steps={steps}"
        log.warning(
            "scheduler.%s: the warm-up takes the whole run (epochs=%d, %d steps), so the learning "
            "rate only rises; set a shorter one, or more epochs",
            setting, epochs, epochs * steps_per_epoch,
        )  # fmt: skip
    return steps


def _decay(
    optimizer: Optimizer,
    warmup: int,
    total: int,
    lr_end: float,
    shape: Callable[[float], float],
) -> Schedule:
    """From 1 to ``lr_end`` / learning rate, along ``shape``, which decreases from 1 to 0."""
    last = lr_end / optimizer.defaults["lr"]

    def factor(step: int) -> float:
        return last + (1 - last) * shape(min(1.0, (step - warmup) / max(1, total - warmup)))

    return _with_warmup(optimizer, warmup, factor)


def _with_warmup(
    optimizer: Optimizer, warmup: int, factor: Callable[[int], float], first: float = 1.0
) -> Schedule:
    """``factor`` of the step, after a linear warm-up to ``first`` over ``warmup`` steps."""

    def scale(step: int) -> float:
        return first * (step + 1) / (warmup + 1) if step < warmup else factor(step)

    return Schedule(optimizer, scale)
