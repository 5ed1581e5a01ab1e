"""Decode the selected DCT coefficients to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from research.compression.dct import block_idct, dct_basis, studio_affine, ycbcr_to_rgb
from research.compression.selection import Selection


class Decoder(nn.Module):
    """Coefficients to RGB: IDCT (other frequencies are 0), upsample chroma ×2, YCbCr to RGB.

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
        self.affine = studio_affine() if range_ == "studio" else None
        shift = 8 * self.affine.shift_y if self.affine is not None else 0.0
        dc = [shift if frequency == 0 else 0.0 for frequency in selection.luma]
        # Buffers, so that no forward pass copies them to the device again.
        self.register_buffer("luma", dct_basis()[list(selection.luma)], persistent=False)
        self.register_buffer("chroma", dct_basis()[list(selection.chroma)], persistent=False)
        self.register_buffer("shift", torch.tensor(dc)[:, None, None], persistent=False)

    luma: Tensor
    chroma: Tensor
    shift: Tensor

    def forward(self, y: Tensor, cbcr: Tensor) -> Tensor:
        # The 8-bit mantissa of bfloat16 would round a DC of 1000 to a multiple of 4.
        with torch.autocast(y.device.type, enabled=False):
            y, cbcr = self._from_range(y.float(), cbcr.float())
            luma = block_idct(y, self.luma.float()) + 128
            chroma = block_idct(cbcr, self.chroma.float()) + 128
            return ycbcr_to_rgb(luma, chroma)

    def to_range(self, y: Tensor, cbcr: Tensor) -> tuple[Tensor, Tensor]:
        """Convert full-range coefficients to this decoder's range."""
        if self.affine is None:
            return y, cbcr
        return y * self.affine.scale_y + self.shift.to(y.dtype), cbcr * self.affine.scale_c

    def _from_range(self, y: Tensor, cbcr: Tensor) -> tuple[Tensor, Tensor]:
        if self.affine is None:
            return y, cbcr
        return (y - self.shift.to(y.dtype)) / self.affine.scale_y, cbcr / self.affine.scale_c
