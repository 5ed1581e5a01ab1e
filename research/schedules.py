"""Learning-rate schedules, stepped once an optimizer step, each with a linear warm-up.

A schedule is a factor on every parameter group's own learning rate, a plain function of the step;
its only state is the step, so it resumes exactly.
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
    lr_end: float,
) -> LambdaLR:
    """Half a cosine from the optimizer's rate after the warm-up to ``lr_end`` (Loshchilov, 2017).

    Args:
        optimizer: whose learning rates are scaled.
        epochs: length of the run.
        steps_per_epoch: optimizer steps an epoch.
        warmup_epochs: length of the linear rise from almost 0, in epochs.
        lr_end: last learning rate; parameter groups with rates of their own end at the same
            share of theirs.
    """
    return _falling(
        optimizer,
        epochs * steps_per_epoch,
        steps_per_epoch,
        warmup_epochs,
        lr_end,
        lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    )


def linear(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    lr_end: float,
) -> LambdaLR:
    """A straight line to ``lr_end``; everything else as in ``cosine``."""
    return _falling(
        optimizer,
        epochs * steps_per_epoch,
        steps_per_epoch,
        warmup_epochs,
        lr_end,
        lambda done: 1 - done,
    )


def step(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    milestones: Sequence[int],
    gamma: float,
) -> LambdaLR:
    """Multiply by ``gamma`` at each of ``milestones`` (epochs done, warm-up included)."""

    def factor(step: int, warmup: int) -> float:
        return gamma ** sum(step >= milestone * steps_per_epoch for milestone in milestones)

    return _with_warmup(optimizer, steps_per_epoch, warmup_epochs, factor)


def _falling(
    optimizer: Optimizer,
    total: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    lr_end: float,
    shape: Callable[[float], float],
) -> LambdaLR:
    """From 1 to the share that ``lr_end`` is, along ``shape``, which falls from 1 to 0."""
    last = lr_end / optimizer.defaults["lr"]

    def factor(step: int, warmup: int) -> float:
        return last + (1 - last) * shape(min(1.0, (step - warmup) / max(1, total - warmup)))

    return _with_warmup(optimizer, steps_per_epoch, warmup_epochs, factor)


def _with_warmup(
    optimizer: Optimizer,
    steps_per_epoch: int,
    warmup_epochs: float,
    factor: Callable[[int, int], float],
) -> LambdaLR:
    warmup = round(warmup_epochs * steps_per_epoch)

    def warmed(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else factor(step, warmup)

    return LambdaLR(optimizer, warmed)
