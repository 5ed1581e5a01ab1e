"""Mean and standard deviation of every channel over training files, cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from research.data.index import ProgressCallback, content_hash
from research.data.rgbx.arrays import RANGES, ArraySpec, read_array
from research.utils.cache import cached
from research.utils.errors import DamagedImage, UserError

VERSION = 1  # increase it whenever the statistics of the same files change


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, on a 0…1 scale."""

    mean: list[float]
    std: list[float]


def measure(
    files: Sequence[Path], spec: ArraySpec, progress: ProgressCallback | None = None
) -> ChannelStatistics:
    """Statistics of all pixels of the files, at their own size, in float64; skips damaged files.

    Raises:
        UserError: if no file can be read.
    """
    count, sums, squares = 0, np.zeros(spec.channels), np.zeros(spec.channels)
    for done, file in enumerate(files, start=1):
        if progress is not None:
            progress("measuring channels", done, len(files))
        try:
            array = read_array(file, spec)
        except DamagedImage:
            continue
        pixels = array.reshape(-1, spec.channels).astype(np.float64) / RANGES[spec.dtype]
        count += len(pixels)
        sums += pixels.sum(0)
        squares += np.square(pixels).sum(0)
    if not count:
        raise UserError(
            "dataset.root",
            f"none of {len(files)} training files can be read, the first is {files[0]}",
            "replace the files",
        )
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return ChannelStatistics(mean.tolist(), std.tolist())


def channel_statistics(
    files: Sequence[Path],
    spec: ArraySpec,
    limit: int,
    cache: Path,
    progress: ProgressCallback | None = None,
) -> ChannelStatistics:
    """Statistics of a fixed random sample of files, measured or loaded from the cache.

    Args:
        files: files of the training split.
        spec: channels and type of every file.
        limit: maximum number of files that are measured.
        cache: cache folder, see ``cached`` and ``content_hash``.
        progress: called while files are measured.
    """
    chosen = np.random.default_rng(0).permutation(len(files))[:limit]
    sample = [files[index] for index in sorted(chosen)]
    content = content_hash(sample, cache, progress)
    key = {"channels": VERSION, "content": content, "type": spec.dtype}
    values = cached(cache / "statistics", key, lambda: asdict(measure(sample, spec, progress)))
    return ChannelStatistics(**values)
