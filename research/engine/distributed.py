"""The one place where processes of a distributed run meet.

Outside ``torch.distributed`` there is one process, and every function returns what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist


def is_main() -> bool:
    """Whether this process writes files and records: rank 0, or the only process."""
    return not dist.is_initialized() or dist.get_rank() == 0


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over all processes by name, the same on each; names may differ between processes."""
    if not dist.is_initialized():
        return dict(values)
    gathered: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, dict(values))
    names = dict.fromkeys(name for each in gathered for name in each)
    return {name: sum(each.get(name, 0) for each in gathered) for name in names}
