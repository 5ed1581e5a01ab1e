"""Communication between the processes of a distributed run."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Sums by name over all processes; names may differ between processes.

    Returns ``values`` if ``torch.distributed`` is not initialized.
    """
    if not dist.is_initialized():
        return dict(values)
    gathered: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, dict(values))
    names = dict.fromkeys(name for each in gathered for name in each)
    return {name: sum(each.get(name, 0) for each in gathered) for name in names}
