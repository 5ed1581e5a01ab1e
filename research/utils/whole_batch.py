"""Counts by which losses are divided, over the whole batch of a run on several processes.

Gradients are averaged over the processes. A loss that is a sum divided by the count of its own
process, such as its number of boxes, would not have the gradient of the whole batch; divided by
``whole_batch`` of this count it has (as in DETR; Carion et al., 2020). With one process nothing
changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_summed: Callable[[Tensor], tuple[Tensor, int]] | None = None


def sum_with(function: Callable[[Tensor], tuple[Tensor, int]] | None) -> None:
    """Set how counts are summed: ``function`` returns the sums of a tensor over all processes, and
    their number. None: there is one process.
    """
    global _summed
    _summed = function


def whole_batch(*counts: Tensor) -> Tensor:
    """The largest of ``counts``, at least 1, in the batches of all processes, per process.

    Args:
        counts: each [], of this process's batch.
    """
    stacked = torch.stack(counts)
    if _summed is None:
        return stacked.amax().clamp(min=1)
    sums, processes = _summed(stacked)
    return sums.amax().clamp(min=1) / processes


def whole_mean(mean: Tensor, count: Tensor | int) -> Tensor:
    """The mean over ``count`` samples or boxes of this process's batch, as a part of the mean over
    the whole batch.
    """
    if _summed is None:
        return mean
    own = torch.as_tensor(count, dtype=mean.dtype, device=mean.device)
    return mean * (own / whole_batch(own))
