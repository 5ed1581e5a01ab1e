"""Mean and spread of every channel over training files, measured once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from research.data.index import ProgressCallback
from research.data.rgbx.arrays import RANGES, Form, read_array
from research.utils.cache import cached
from research.utils.errors import DamagedImage, UserError

RECIPE = 1  # raise it whenever the same files would give other numbers


@dataclass(frozen=True)
class ChannelStatistics:
    """Of each channel, on a 0…1 scale."""

    mean: list[float]
    std: list[float]


def measure(
    files: Sequence[Path], form: Form, progress: ProgressCallback | None = None
) -> ChannelStatistics:
    """Over all pixels of the files, at their own size, in float64; damaged ones are passed over.

    Raises:
        UserError: when not one file can be read.
    """
    count, sums, squares = 0, np.zeros(form.channels), np.zeros(form.channels)
    for done, file in enumerate(files, start=1):
        if progress is not None:
            progress("measuring channels", done, len(files))
        try:
            array = read_array(file, form)
        except DamagedImage:
            continue
        pixels = array.reshape(-1, form.channels).astype(np.float64) / RANGES[form.dtype]
        count += len(pixels)
        sums += pixels.sum(0)
        squares += np.square(pixels).sum(0)
    if not count:
        raise UserError(
            "dataset", f"none of {len(files)} training files can be read", f"the first: {files[0]}"
        )
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return ChannelStatistics(mean.tolist(), std.tolist())


def channel_statistics(
    files: Sequence[Path],
    form: Form,
    limit: int,
    fingerprint: str,
    cache: Path,
    progress: ProgressCallback | None = None,
) -> ChannelStatistics:
    """The statistics of ``limit`` files, chosen by chance but always the same, or recalled.

    Args:
        files: of the training split.
        form: of every file.
        limit: how many are measured.
        fingerprint: of the data set.
        cache: folder in which they are stored, see ``cached``.
        progress: told meanwhile.
    """
    chosen = np.random.default_rng(0).permutation(len(files))[:limit]
    measured = [files[place] for place in sorted(chosen)]
    key = {"channels": RECIPE, "data": fingerprint, "files": len(measured)}
    values = cached(cache, key, lambda: asdict(measure(measured, form, progress)))
    return ChannelStatistics(**values)
