"""Mean and standard deviation of every channel over training frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from research.data.rgbx.arrays import RANGES
from research.data.warehouse.store import Store


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, on a 0…1 scale."""

    mean: list[float]
    std: list[float]


def channel_statistics(store: Store, positions: Sequence[int], limit: int) -> ChannelStatistics:
    """Statistics of a fixed random sample of frames: of all pixels of their files.

    Args:
        store: a store of frames with channels.
        positions: the frames of the training split, in order.
        limit: maximum number of frames that are used.
    """
    chosen = np.random.default_rng(0).permutation(len(positions))[:limit]
    sample = [int(positions[index]) for index in sorted(chosen)]
    scale = RANGES[store.manifest.tensors["images"].dtype]
    count = store.gather("sizes", sample).long().prod(1).sum().item()
    # Floats: the squares of many large 16-bit frames exceed 64 bits.
    sums, squares = store.gather("sums", sample).double().sum(0).numpy()
    mean = sums / scale / count
    std = np.sqrt(np.maximum(squares / scale**2 / count - np.square(mean), 0))
    return ChannelStatistics(mean.tolist(), std.tolist())
