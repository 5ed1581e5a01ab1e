"""Decode the selected DCT coefficients to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from research.compression.dct import block_idct, studio_affine, ycbcr_to_rgb
from research.compression.selection import Selection


class Decoder(nn.Module):
    """Coefficients to RGB: fill with zeros, IDCT, upsample chroma ×2, YCbCr to RGB.

    Takes unnormalised ``y`` [B, k_luma, H/8, W/8] and ``cbcr`` [B, 2, k_chroma, H/16, W/16];
    returns float RGB [B, 3, H, W] on a 0…255 scale, neither clipped nor rounded. The YCbCr matrix
    is that of BT.601; studio range is converted to full range before it, which is the same as
    decoding with the studio matrix (255/219 and so on).

    Args:
        selection: the frequencies of the input.
        range_: range of the input, ``full`` or ``studio``.
    """

    def __init__(self, selection: Selection, range_: str) -> None:
        super().__init__()
        self.luma = list(selection.luma)
        self.chroma = list(selection.chroma)
        self.affine = studio_affine() if range_ == "studio" else None

    def forward(self, y: Tensor, cbcr: Tensor) -> Tensor:
        # The 8-bit mantissa of bfloat16 would round a DC of 1000 to a multiple of 4.
        with torch.autocast(y.device.type, enabled=False):
            y, cbcr = self._from_range(y.float(), cbcr.float())
            luma = block_idct(_zero_fill(y, self.luma)) + 128
            chroma = block_idct(_zero_fill(cbcr, self.chroma)) + 128
            return ycbcr_to_rgb(luma, chroma)

    def to_range(self, y: Tensor, cbcr: Tensor) -> tuple[Tensor, Tensor]:
        """Convert full-range coefficients to this decoder's range."""
        if self.affine is None:
            return y, cbcr
        y = y * self.affine.scale_y + self._dc(self.luma, 8 * self.affine.shift_y, y)
        return y, cbcr * self.affine.scale_c

    def _from_range(self, y: Tensor, cbcr: Tensor) -> tuple[Tensor, Tensor]:
        if self.affine is None:
            return y, cbcr
        y = (y - self._dc(self.luma, 8 * self.affine.shift_y, y)) / self.affine.scale_y
        return y, cbcr / self.affine.scale_c

    @staticmethod
    def _dc(frequencies: list[int], value: float, like: Tensor) -> Tensor:
        """``value`` at the DC channel and 0 at the others, [k, 1, 1]."""
        column = [value if frequency == 0 else 0.0 for frequency in frequencies]
        return like.new_tensor(column)[:, None, None]


def _zero_fill(coefficients: Tensor, frequencies: list[int]) -> Tensor:
    """[..., k, H, W] to [..., 64, H, W] with zeros at the other frequencies."""
    *batch, _, height, width = coefficients.shape
    full = coefficients.new_zeros(*batch, 64, height, width)
    full[..., frequencies, :, :] = coefficients
    return full
