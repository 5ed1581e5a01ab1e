"""The JPEG transform in batches: orthonormal 8×8 block DCT-II, YCbCr and 4:2:0 chroma.

Planes are in grey levels, 0…255, and are not shifted here: pass ``plane - 128`` for the scale of
JPEG's dequantised coefficients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Luma weights of ITU-R BT.601, and the divisors that bring B-Y and R-Y to ±0.5 (ITU-T T.871).
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_CB, _CR = 2 * (1 - _BLUE), 2 * (1 - _RED)


def dct_basis(dtype: torch.dtype = torch.float32) -> Tensor:
    """The DCT basis, [64, 64]; row f = 8·v + u is the flattened 8×8 image of a frequency.

    The rows are orthonormal (T.81, A.3.3), so the transpose is the inverse.
    """
    n = torch.arange(8, dtype=torch.float64)
    line = torch.cos(math.pi * (2 * n + 1) * n[:, None] / 16) / 2
    line[0] /= math.sqrt(2)
    return torch.kron(line, line).to(dtype)


def to_blocks(plane: Tensor) -> Tensor:
    """Cut planes [..., H, W] into blocks [..., H/8, W/8, 64], each flattened row-major.

    Raises:
        ValueError: if a side is not a multiple of 8.
    """
    height, width = plane.shape[-2:]
    if height % 8 or width % 8:
        raise ValueError(f"a plane of {height}×{width} cannot be cut into 8×8 blocks")
    return (
        plane.unflatten(-1, (width // 8, 8)).unflatten(-3, (height // 8, 8)).transpose(-2, -3)
    ).flatten(-2)


def from_blocks(blocks: Tensor) -> Tensor:
    """Join blocks [..., rows, cols, 64] to planes [..., 8·rows, 8·cols]; inverse of ``to_blocks``.

    Raises:
        ValueError: if the last dimension is not 64.
    """
    if blocks.shape[-1] != 64:
        raise ValueError(f"a block has 64 values, not {blocks.shape[-1]}")
    return blocks.unflatten(-1, (8, 8)).transpose(-2, -3).flatten(-4, -3).flatten(-2)


def block_dct(plane: Tensor, basis: Tensor | None = None) -> Tensor:
    """Block DCT of planes [..., H, W], as [..., 64, H/8, W/8].

    Args:
        plane: float; sides are multiples of 8.
        basis: rows of ``dct_basis`` to compute, [k, 64]; ``None`` computes all 64.

    Raises:
        ValueError: if a side is not a multiple of 8.
    """
    if basis is None:
        basis = dct_basis(plane.dtype).to(plane.device)
    return (to_blocks(plane) @ basis.T).movedim(-1, -3)


def block_idct(coefficients: Tensor, basis: Tensor | None = None) -> Tensor:
    """Planes [..., H, W] from coefficients [..., 64, H/8, W/8]; inverse of ``block_dct``.

    Args:
        coefficients: float.
        basis: rows of ``dct_basis`` of the coefficients, [k, 64], if there are k instead of 64.

    Raises:
        ValueError: if there are not as many coefficients as rows.
    """
    if basis is None:
        basis = dct_basis(coefficients.dtype).to(coefficients.device)
    if coefficients.shape[-3] != len(basis):
        raise ValueError(
            f"the inverse needs {len(basis)} coefficients, not {coefficients.shape[-3]}"
        )
    return from_blocks(coefficients.movedim(-3, -1) @ basis)


def rgb_to_ycbcr(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """RGB to full-range BT.601 YCbCr (ITU-T T.871), 4:2:0 chroma by 2×2 area mean, unrounded.

    Args:
        rgb: [B, 3, H, W] float, 0…255; H and W even.

    Returns:
        ``y`` [B, H, W], 0…255, and ``cbcr`` [B, 2, H/2, W/2], neutral at 128.

    Raises:
        ValueError: if a side is odd.
    """
    if rgb.shape[-1] % 2 or rgb.shape[-2] % 2:
        raise ValueError(f"4:2:0 chroma needs even sides, not {rgb.shape[-2]}×{rgb.shape[-1]}")
    red, green, blue = rgb.unbind(1)
    y = _RED * red + _GREEN * green + _BLUE * blue
    cbcr = torch.stack([(blue - y) / _CB, (red - y) / _CR], dim=1) + 128
    return y, F.avg_pool2d(cbcr, 2)


def ycbcr_to_rgb(y: Tensor, cbcr: Tensor) -> Tensor:
    """YCbCr to RGB; inverse of ``rgb_to_ycbcr`` up to chroma detail, chroma upsampled bilinearly.

    Args:
        y: [B, H, W], 0…255.
        cbcr: [B, 2, H/2, W/2], neutral at 128.

    Returns:
        [B, 3, H, W], neither clipped nor rounded.
    """
    chroma = F.interpolate(cbcr, scale_factor=2, mode="bilinear", align_corners=False) - 128
    cb, cr = chroma.unbind(1)
    red, blue = y + _CR * cr, y + _CB * cb
    return torch.stack([red, (y - _RED * red - _BLUE * blue) / _GREEN, blue], dim=1)


class StudioAffine(NamedTuple):
    """An affine map of planes, plane' - 128 = scale · (plane - 128) + shift."""

    scale_y: float
    shift_y: float
    scale_c: float
    shift_c: float


def studio_affine() -> StudioAffine:
    """Full range to BT.601 studio range: Y·219/255 + 16, (C - 128)·224/255 + 128.

    On coefficients the scales apply unchanged, and a shift changes only the DC, by 8 times its
    value.
    """
    scale_y = 219 / 255
    return StudioAffine(scale_y, 128 * scale_y + 16 - 128, 224 / 255, 0.0)
