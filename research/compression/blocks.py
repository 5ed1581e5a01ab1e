"""``Blocks``: the DCT coefficients of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Blocks(NamedTuple):
    """JPEG DCT coefficients of a batch of images with 4:2:0 chroma.

    From the loader: int16, block-major, ``y`` [B, H/8, W/8, k_luma] and ``cbcr``
    [B, 2, H/16, W/16, k_chroma]. From the device transform to a stem: float, channel-major, ``y``
    [B, k_luma, H/8, W/8] and ``cbcr`` [B, 2, k_chroma, H/16, W/16].
    """

    y: Tensor
    cbcr: Tensor
