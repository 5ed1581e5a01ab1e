"""Learning-rate schedules, stepped once an optimizer step, each with a linear warm-up.

A schedule is a factor on every parameter group's own learning rate, a plain function of the step;
its only state is the step, so it resumes exactly. Arguments that all schedules share:

    optimizer: whose learning rates are scaled.
    epochs: length of the run.
    steps_per_epoch: optimizer steps an epoch.
    warmup_epochs: length of the linear rise from almost 0, in epochs.
    warmup_steps: the same in optimizer steps, which then counts instead; or null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    lr_end: float,
) -> LambdaLR:
    """Half a cosine from the optimizer's rate after the warm-up to ``lr_end`` (Loshchilov, 2017).

    Args:
        lr_end: last learning rate; parameter groups with rates of their own end at the same
            share of theirs.
    """
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    return _falling(
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
) -> LambdaLR:
    """A straight line to ``lr_end``; everything else as in ``cosine``."""
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    return _falling(optimizer, warmup, epochs * steps_per_epoch, lr_end, lambda done: 1 - done)


def constant(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
) -> LambdaLR:
    """The optimizer's own rate, once the warm-up is over."""
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    return _warmed(optimizer, warmup, lambda step: 1.0)


def step(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    step_size: int,
    gamma: float,
) -> LambdaLR:
    """Multiply by ``gamma`` every ``step_size`` epochs (warm-up included)."""
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    length = step_size * steps_per_epoch
    return _warmed(optimizer, warmup, lambda step: gamma ** (step // length))


def multistep(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    milestones: Sequence[int],
    gamma: float,
) -> LambdaLR:
    """Multiply by ``gamma`` at each of ``milestones`` (epochs done, warm-up included)."""
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    return _warmed(
        optimizer,
        warmup,
        lambda step: gamma ** sum(step >= milestone * steps_per_epoch for milestone in milestones),
    )


def exponential(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    gamma: float,
) -> LambdaLR:
    """Multiply by ``gamma`` an epoch from the end of the warm-up on, in equal parts a step."""
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    return _warmed(optimizer, warmup, lambda step: gamma ** ((step - warmup) / steps_per_epoch))


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
) -> LambdaLR:
    """Up to the optimizer's rate and down to almost nothing (Smith and Topin, 2018).

    The rates are those of torch's ``OneCycleLR`` without cycling momentum; a warm-up comes before
    the cycle, rises to its first rate, and shortens it.

    Args:
        pct_start: share of the cycle that rises, 0 <= x < 1.
        div_factor: the cycle starts at the optimizer's rate divided by this.
        final_div_factor: it ends at its first rate divided by this.
        anneal: ``cos`` or ``linear``, the shape of both parts.
    """
    warmup = _warmup(steps_per_epoch, warmup_epochs, warmup_steps)
    first = 1 / div_factor
    last = first / final_div_factor
    length = max(1, epochs * steps_per_epoch - warmup)
    peak, end = pct_start * length - 1, length - 1

    def between(start: float, stop: float, done: float) -> float:
        if anneal == "cos":
            return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * done))
        return start + (stop - start) * done

    def factor(step: int) -> float:
        place = step - warmup
        if place < peak:
            return between(first, 1.0, place / peak)
        return between(1.0, last, min(1.0, (place - peak) / (end - peak)))

    return _warmed(optimizer, warmup, factor, first)


def _warmup(steps_per_epoch: int, warmup_epochs: float, warmup_steps: int | None) -> int:
    """Optimizer steps of the warm-up."""
    return round(warmup_epochs * steps_per_epoch) if warmup_steps is None else warmup_steps


def _falling(
    optimizer: Optimizer,
    warmup: int,
    total: int,
    lr_end: float,
    shape: Callable[[float], float],
) -> LambdaLR:
    """From 1 to the share that ``lr_end`` is, along ``shape``, which falls from 1 to 0."""
    last = lr_end / optimizer.defaults["lr"]

    def factor(step: int) -> float:
        return last + (1 - last) * shape(min(1.0, (step - warmup) / max(1, total - warmup)))

    return _warmed(optimizer, warmup, factor)


def _warmed(
    optimizer: Optimizer, warmup: int, factor: Callable[[int], float], first: float = 1.0
) -> LambdaLR:
    """``factor`` of the step, after a rise in equal parts to ``first`` over ``warmup`` steps."""

    def warmed(step: int) -> float:
        return first * (step + 1) / (warmup + 1) if step < warmup else factor(step)

    return LambdaLR(optimizer, warmed)
