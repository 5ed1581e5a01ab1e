"""The JPEG transform, batched: orthonormal 8×8 block DCT-II, YCbCr and 4:2:0 chroma.

Planes are in grey levels. The transforms here shift nothing: a caller who wants JPEG's own
dequantised scale passes ``plane - 128``.
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
    """[64, 64]; row f = 8·v + u is the flattened 8×8 image of that frequency (T.81, A.3.3).

    The rows are orthonormal, so the transpose is the inverse.
    """
    n = torch.arange(8, dtype=torch.float64)
    line = torch.cos(math.pi * (2 * n + 1) * n[:, None] / 16) / 2
    line[0] /= math.sqrt(2)
    return torch.kron(line, line).to(dtype)


def to_blocks(plane: Tensor) -> Tensor:
    """[..., H, W] to [..., H/8, W/8, 64], each block flattened row by row.

    Raises:
        ValueError: a side is no multiple of 8.
    """
    height, width = plane.shape[-2:]
    if height % 8 or width % 8:
        raise ValueError(f"a plane of {height}×{width} cannot be cut into 8×8 blocks")
    return (
        plane.unflatten(-1, (width // 8, 8)).unflatten(-3, (height // 8, 8)).transpose(-2, -3)
    ).flatten(-2)


def from_blocks(blocks: Tensor) -> Tensor:
    """[..., rows, cols, 64] to [..., 8·rows, 8·cols]: the inverse of ``to_blocks``.

    Raises:
        ValueError: the last dimension is not 64.
    """
    if blocks.shape[-1] != 64:
        raise ValueError(f"a block has 64 values, not {blocks.shape[-1]}")
    return blocks.unflatten(-1, (8, 8)).transpose(-2, -3).flatten(-4, -3).flatten(-2)


def block_dct(plane: Tensor, basis: Tensor | None = None) -> Tensor:
    """[..., H, W] to [..., 64, H/8, W/8].

    Args:
        plane: float; sides are multiples of 8.
        basis: rows of ``dct_basis`` to compute, [k, 64], when not all are wanted.

    Raises:
        ValueError: a side is no multiple of 8.
    """
    if basis is None:
        basis = dct_basis(plane.dtype).to(plane.device)
    return (to_blocks(plane) @ basis.T).movedim(-1, -3)


def block_idct(coefficients: Tensor) -> Tensor:
    """[..., 64, H/8, W/8] to [..., H, W]: the inverse of ``block_dct``.

    Raises:
        ValueError: there are not 64 coefficients.
    """
    if coefficients.shape[-3] != 64:
        raise ValueError(f"the inverse needs 64 coefficients, not {coefficients.shape[-3]}")
    basis = dct_basis(coefficients.dtype).to(coefficients.device)
    return from_blocks(coefficients.movedim(-3, -1) @ basis)


def rgb_to_ycbcr(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Full-range BT.601 YCbCr (ITU-T T.871) with 4:2:0 chroma by 2×2 area mean, unrounded.

    Args:
        rgb: [B, 3, H, W] float, 0…255; H and W even.

    Returns:
        y [B, H, W], 0…255, and cbcr [B, 2, H/2, W/2], neutral at 128.

    Raises:
        ValueError: a side is odd.
    """
    if rgb.shape[-1] % 2 or rgb.shape[-2] % 2:
        raise ValueError(f"4:2:0 chroma needs even sides, not {rgb.shape[-2]}×{rgb.shape[-1]}")
    red, green, blue = rgb.unbind(1)
    y = _RED * red + _GREEN * green + _BLUE * blue
    cbcr = torch.stack([(blue - y) / _CB, (red - y) / _CR], dim=1) + 128
    return y, F.avg_pool2d(cbcr, 2)


def ycbcr_to_rgb(y: Tensor, cbcr: Tensor) -> Tensor:
    """The inverse of ``rgb_to_ycbcr`` up to chroma detail, chroma enlarged bilinearly.

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
    """plane' - 128 = scale · (plane - 128) + shift, for luma and for chroma."""

    scale_y: float
    shift_y: float
    scale_c: float
    shift_c: float


def studio_affine() -> StudioAffine:
    """Full range to BT.601 studio range: Y·219/255 + 16, (C - 128)·224/255 + 128.

    In plane units relative to 128. On coefficients the scales apply as they are and a shift moves
    the DC alone, by 8 times its value.
    """
    scale_y = 219 / 255
    return StudioAffine(scale_y, 128 * scale_y + 16 - 128, 224 / 255, 0.0)
