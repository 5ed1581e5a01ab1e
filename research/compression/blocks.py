"""The coefficient payload of a batch, as loaders, transforms, stems and stores pass it on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Blocks(NamedTuple):
    """JPEG DCT coefficients of a batch of images with 4:2:0 chroma.

    On the way from the loader they are int16 and block-major: ``y`` [B, H/8, W/8, k_luma],
    ``cbcr`` [B, 2, H/16, W/16, k_chroma]. The device transform turns them into the floats that
    a stem receives: ``y`` [B, k_luma, H/8, W/8], ``cbcr`` [B, 2, k_chroma, H/16, W/16].
    """

    y: Tensor
    cbcr: Tensor
