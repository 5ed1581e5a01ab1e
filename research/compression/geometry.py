"""Crop, resize and mirror images as DCT coefficients, without pixels.

For one plane X of n×m blocks, laid out as a picture, Y = M_h · X · M_wᵀ with M = blockDCT · R ·
blockIDCT and R the resize matrix of one dimension. DCT, resize and inverse are linear, so the
result is exactly that of resizing the unrounded pixels; the shift by 128 passes through, because
the rows of R sum to one.

A crop is cut at whole MCUs: 8 luma pixels, or 16 in a direction in which chroma is subsampled.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.compression.jpeg import Header, Planes
from research.compression.selection import Selection

Floats = NDArray[np.float32]


# OpenBLAS spreads a product of more multiplications over threads. In a loader, whose workers fill
# the cores already, the threads then wait for each other: 20 times slower was seen.
_ONE_THREAD = 4 * 65536


class BlockBox(NamedTuple):
    """A crop in luma blocks; each edge is a multiple of the MCU, so chroma is cut whole too."""

    top: int
    left: int
    height: int
    width: int


class Band(NamedTuple):
    """The rows of an operator that make one output block, without the zeros on either side."""

    start: int
    stop: int
    matrix: Floats


def resize_matrix(size_in: int, size_out: int) -> NDArray[np.float64]:
    """[size_out, size_in] antialiased bilinear resize of one dimension, as PIL and torch do it.

    A triangle filter whose support grows with the scale when shrinking; it spans two samples when
    enlarging. Rows sum to one.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    centre = (np.arange(size_out)[:, None] + 0.5) * scale
    weights = np.maximum(1 - np.abs(np.arange(size_in) + 0.5 - centre) / support, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_operator(blocks_in: int, blocks_out: int) -> Floats:
    """[8·blocks_out, 8·blocks_in]: M = blockDCT · R · blockIDCT for one dimension.

    Almost all of it is zero: an output block depends on the few input blocks under its filter.
    """
    line = _dct_line()
    matrix = resize_matrix(8 * blocks_in, 8 * blocks_out)
    matrix = line @ matrix.reshape(blocks_out, 8, 8 * blocks_in)
    matrix = matrix.reshape(8 * blocks_out, blocks_in, 8) @ line.T
    return matrix.reshape(8 * blocks_out, 8 * blocks_in).astype(np.float32)


def resize(picture: Floats, out_rows: int, out_cols: int, keep: tuple[int, ...]) -> Floats:
    """Resizes a plane of coefficients; only what the kept frequencies need is computed.

    Both products run block by block along the bands of the operators.

    Args:
        picture: [8·rows, 8·cols], dequantised; coefficient (v, u) of block (i, j) at
            [8·i + v, 8·j + u].
        out_rows, out_cols: size of the result, in blocks.
        keep: frequencies 8·v + u to return, in this order.

    Returns:
        [out_rows, out_cols, len(keep)] float32, unrounded.
    """
    if not keep:
        return np.zeros((out_rows, out_cols, 0), np.float32)
    down, across = max(keep) // 8 + 1, max(f % 8 for f in keep) + 1
    height, width = picture.shape
    half = _apply(_bands(height // 8, out_rows, down), picture)
    full = _apply(_bands(width // 8, out_cols, across), half.T)
    corner = full.reshape(out_cols, across, out_rows, down).transpose(2, 0, 3, 1)
    flat = corner.reshape(out_rows, out_cols, down * across)
    wanted = [f // 8 * across + f % 8 for f in keep]
    return flat if wanted == list(range(down * across)) else flat[:, :, wanted]


def _apply(bands: list[Band], picture: Floats) -> Floats:
    """[len(bands)·rows, width]: a banded operator times a picture [height, width]."""
    width = picture.shape[1]
    product = np.empty((len(bands), bands[0].matrix.shape[0], width), np.float32)
    for out, (start, stop, matrix) in zip(product, bands, strict=True):
        step = max(1, _ONE_THREAD // matrix.size)
        for at in range(0, width, step):
            panel = slice(at, at + step)
            np.matmul(matrix, picture[start:stop, panel], out=out[:, panel])
    return product.reshape(-1, width)


def snap_box(header: Header, top: float, left: float, height: float, width: float) -> BlockBox:
    """The box of whole MCUs nearest to a crop in pixels.

    Each edge goes to the nearest MCU edge within the image's whole MCUs; a box that would vanish
    becomes the one MCU at its centre.

    Args:
        header: of an image with at least one whole MCU (``native`` makes sure of it).
        top, left, height, width: in pixels of the image as stored.
    """
    across, down = header.subsampling
    y, rows = _snap(top, height, 8 * down, header.height)
    x, cols = _snap(left, width, 8 * across, header.width)
    return BlockBox(y * down, x * across, rows * down, cols * across)


def payload(
    planes: Planes, box: BlockBox, size: int, selection: Selection
) -> tuple[Floats, Floats]:
    """A crop of an image, resized to a square with 4:2:0 chroma whatever sampling the file has.

    Args:
        planes: of a file that ``native`` accepts.
        box: from ``snap_box``.
        size: side of the result in luma pixels, a multiple of 16.
        selection: the frequencies to return.

    Returns:
        y [size/8, size/8, k_luma] and cbcr [2, size/16, size/16, k_chroma], float32, unrounded,
        on the orthonormal scale of the plane minus 128. A grey image has neutral chroma: zeros.

    Raises:
        ValueError: ``size`` is no multiple of 16.
    """
    if size % 16:
        raise ValueError(f"size={size} is no multiple of 16")
    grid = size // 8
    across, down = planes.header.subsampling
    chroma_box = BlockBox(
        box.top // down, box.left // across, box.height // down, box.width // across
    )
    luma, *chroma = planes.planes
    y = resize(luma.crop(*box), grid, grid, selection.luma)
    cbcr = np.zeros((2, grid // 2, grid // 2, len(selection.chroma)), np.float32)
    for out, plane in zip(cbcr, chroma, strict=False):
        out[:] = resize(plane.crop(*chroma_box), grid // 2, grid // 2, selection.chroma)
    return y, cbcr


def flip_signs(keep: tuple[int, ...]) -> NDArray[np.int16]:
    """[len(keep)] of ±1: mirroring a block left to right negates its odd horizontal frequencies."""
    return np.array([1 - 2 * (f % 2) for f in keep], np.int16)


def flip_channels(coefficients: Tensor, keep: tuple[int, ...]) -> Tensor:
    """Mirrors channel-major coefficients [..., len(keep), rows, cols] left to right."""
    signs = torch.from_numpy(flip_signs(keep)).to(coefficients)
    return coefficients.flip(-1) * signs[:, None, None]


def _snap(start: float, extent: float, unit: int, side: int) -> tuple[int, int]:
    """First unit and number of units of one dimension."""
    units = side // unit
    first = min(max(round(start / unit), 0), units)
    last = min(max(round((start + extent) / unit), 0), units)
    if first < last:
        return first, last - first
    centre = int((start + extent / 2) / unit)
    return min(max(centre, 0), units - 1), 1


@lru_cache(maxsize=512)  # a crop asks for four; tens of kilobytes each
def _bands(blocks_in: int, blocks_out: int, rows: int) -> list[Band]:
    """The operator as one band for each output block.

    ``rows`` of the 8 rows of an output block are kept, its lowest frequencies.
    """
    bands = []
    for block in resize_operator(blocks_in, blocks_out).reshape(blocks_out, 8, -1):
        under = np.flatnonzero(block.reshape(8, blocks_in, 8).any(axis=(0, 2)))
        start, stop = 8 * int(under[0]), 8 * int(under[-1]) + 8
        bands.append(Band(start, stop, np.ascontiguousarray(block[:rows, start:stop])))
    return bands


def _dct_line() -> NDArray[np.float64]:
    """[8, 8] orthonormal DCT-II of one line of a block."""
    n = np.arange(8)
    line = np.cos(np.pi * (2 * n + 1) * n[:, None] / 16) / 2
    line[0] /= np.sqrt(2)
    return line
