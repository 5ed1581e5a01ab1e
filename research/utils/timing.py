"""Timing of functions: after warm-up, synchronized with the device, candidates alternating."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from research.utils.progress import track

if TYPE_CHECKING:
    import torch

WARM_UP = 2
"""Untimed rounds, in which libraries select their algorithms."""


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queue."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def median_times(
    passes: Sequence[Callable[[], object]], rounds: int, work: str = "timing"
) -> list[float]:
    """Median seconds of each function; interleaved, so that a slow period affects all of them.

    Args:
        passes: functions to time; each must synchronize before it returns.
        rounds: timed calls of each.
        work: its name while progress is shown.
    """
    times: list[list[float]] = [[] for _ in passes]
    for round_ in track(range(WARM_UP + rounds), work, unit="rounds"):
        for seconds, run_pass in zip(times, passes, strict=True):
            start = time.perf_counter()
            run_pass()
            if round_ >= WARM_UP:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]
