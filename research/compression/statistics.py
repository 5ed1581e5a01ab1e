"""Mean and standard deviation of every DCT coefficient over a training set, cached on disk.

Statistics are measured for all 64 frequencies (or all in a store), so that one measurement serves
every selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.compression.blocks import Blocks
from research.compression.selection import Selection
from research.utils import cache
from research.utils.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """Per-coefficient statistics on JPEG's scale, in full or studio range.

    Attributes:
        y_mean: [64], row-major (8·v + u).
        y_std: [64].
        cbcr_mean: [2, 64], Cb then Cr.
        cbcr_std: [2, 64].
        images: number of measured images.
    """

    y_mean: Tensor
    y_std: Tensor
    cbcr_mean: Tensor
    cbcr_std: Tensor
    images: int


def measure(batches: Iterable[Blocks], measured: Selection) -> Statistics:
    """Means and standard deviations over all blocks, in float64.

    Args:
        batches: float ``y`` [B, k_luma, h, w], ``cbcr`` [B, 2, k_chroma, h/2, w/2].
        measured: the frequencies of the batches; other frequencies get mean 0 and std 1.

    Raises:
        UserError: if there is no image.
    """
    luma_index, chroma_index = list(measured.luma), list(measured.chroma)
    y_sums = torch.zeros(2, len(luma_index)).double()
    c_sums = torch.zeros(2, 2, len(chroma_index)).double()
    y_count = c_count = images = 0
    for y, cbcr in batches:
        luma, chroma = y.double().cpu(), cbcr.double().cpu()
        images += len(luma)
        y_count += luma.shape[0] * luma.shape[2] * luma.shape[3]
        c_count += chroma.shape[0] * chroma.shape[3] * chroma.shape[4]
        y_sums += torch.stack([luma.sum((0, 2, 3)), luma.square().sum((0, 2, 3))])
        c_sums += torch.stack([chroma.sum((0, 3, 4)), chroma.square().sum((0, 3, 4))])
    if images == 0:
        raise UserError("dataset", "no training image could be read to measure DCT statistics")
    y_mean, y_square = y_sums / y_count
    c_mean, c_square = c_sums / c_count
    result = Statistics(
        torch.zeros(64), torch.ones(64), torch.zeros(2, 64), torch.ones(2, 64), images
    )
    result.y_mean[luma_index] = y_mean.float()
    result.y_std[luma_index] = (y_square - y_mean.square()).clamp(min=0).sqrt().float()
    result.cbcr_mean[:, chroma_index] = c_mean.float()
    result.cbcr_std[:, chroma_index] = (c_square - c_mean.square()).clamp(min=0).sqrt().float()
    return result


def cached(folder: Path, key: Mapping[str, object], make: Callable[[], Statistics]) -> Statistics:
    """The statistics of ``key``, measured by ``make`` the first time, see ``cache.cached``.

    Args:
        folder: where they are stored.
        key: everything they depend on: data set, source, image size, resize rule, range, images.
        make: measures them.
    """

    def values() -> dict[str, Any]:
        measured = asdict(make())
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in measured.items()}

    stored = dict(cache.cached(folder, dict(key), values))
    images = stored.pop("images")
    return Statistics(**{k: torch.tensor(v) for k, v in stored.items()}, images=images)
