"""Honest times: the device has done its work, libraries are warm, candidates take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WARM_UP = 2
"""Rounds before the timed ones, in which libraries choose their algorithms."""


def synchronize(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def median_times(passes: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each; round by round, so that a slow moment meets all alike.

    Args:
        passes: do their work and wait for it.
        rounds: how often each is timed.
    """
    times: list[list[float]] = [[] for _ in passes]
    for round_ in range(WARM_UP + rounds):
        for taken, once in zip(times, passes, strict=True):
            start = time.perf_counter()
            once()
            if round_ >= WARM_UP:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]
