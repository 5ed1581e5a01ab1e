"""Crop, resize, turn and mirror images in the DCT domain, without decoding pixels.

A plane X of coefficients is resized as Y = M_h · X · M_wᵀ with M = blockDCT · R · blockIDCT, where
R is the resize matrix of one dimension. DCT, resize and IDCT are linear, so the result equals that
of resizing the unrounded pixels. The shift by 128 is preserved, because the rows of R sum to one.

Crops are aligned to MCUs: 8 luma pixels, or 16 in a direction in which chroma is subsampled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.compression.jpeg import Plane, Planes, UnsupportedJpeg
from research.compression.jpeg_header import Header
from research.compression.selection import Selection
from research.utils.exif import UPRIGHT

Floats = NDArray[np.float32]


# OpenBLAS uses several threads for products of more multiplications than this. In loader workers,
# which occupy all cores already, those threads wait for each other: up to 20 times slower.
_MAX_MULTIPLICATIONS = 4 * 65536


TURNS: Final = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""By EXIF orientation: whether the stored image is transposed, then mirrored left to right, then
flipped top to bottom."""


class BlockBox(NamedTuple):
    """A crop in luma blocks, aligned to MCUs so that chroma blocks are not cut either."""

    top: int
    left: int
    height: int
    width: int


class Band(NamedTuple):
    """The rows of an operator for one output block, without the zeros on either side."""

    start: int
    stop: int
    matrix: Floats


def resize_matrix(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Antialiased bilinear resize of one dimension, [size_out, size_in], as in PIL and torch.

    A triangle filter whose support grows with the scale when downsampling and spans two samples
    when upsampling. Rows sum to one.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    centre = (np.arange(size_out)[:, None] + 0.5) * scale
    weights = np.maximum(1 - np.abs(np.arange(size_in) + 0.5 - centre) / support, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_operator(blocks_in: int, blocks_out: int) -> Floats:
    """M = blockDCT · R · blockIDCT for one dimension, [8·blocks_out, 8·blocks_in].

    It is sparse: an output block depends on the few input blocks under its filter.
    """
    line = _dct_line()
    matrix = resize_matrix(8 * blocks_in, 8 * blocks_out)
    matrix = line @ matrix.reshape(blocks_out, 8, 8 * blocks_in)
    matrix = matrix.reshape(8 * blocks_out, blocks_in, 8) @ line.T
    return matrix.reshape(8 * blocks_out, 8 * blocks_in).astype(np.float32)


def resize(plane: Floats, out_rows: int, out_cols: int, frequencies: tuple[int, ...]) -> Floats:
    """Resize a plane of coefficients, computing only what the requested frequencies need.

    Both products run block by block along the bands of the operators.

    Args:
        plane: [8·rows, 8·cols], dequantised; coefficient (v, u) of block (i, j) at
            [8·i + v, 8·j + u].
        out_rows, out_cols: size of the result, in blocks.
        frequencies: frequencies 8·v + u to return, in this order.

    Returns:
        [out_rows, out_cols, len(frequencies)] float32, unrounded.
    """
    if not frequencies:
        return np.zeros((out_rows, out_cols, 0), np.float32)
    down, across, indices = _corner(frequencies)
    height, width = plane.shape
    resized_rows = _apply(_bands(height // 8, out_rows, down), plane)
    resized = _apply(_bands(width // 8, out_cols, across), resized_rows.T)
    corner = resized.reshape(out_cols, across, out_rows, down).transpose(2, 0, 3, 1)
    flat = corner.reshape(out_rows, out_cols, down * across)
    return flat if indices is None else flat[:, :, indices]


@lru_cache
def _corner(frequencies: tuple[int, ...]) -> tuple[int, int, list[int] | None]:
    """The smallest corner of a block that contains the frequencies.

    Returns:
        its rows, its columns, and the positions of the frequencies in it, row by row; ``None`` if
        they are all of it in this order.
    """
    down, across = max(frequencies) // 8 + 1, max(f % 8 for f in frequencies) + 1
    positions = [f // 8 * across + f % 8 for f in frequencies]
    return down, across, None if positions == list(range(down * across)) else positions


def _apply(bands: list[Band], plane: Floats) -> Floats:
    """A banded operator times a plane [height, width], as [len(bands)·rows, width]."""
    width = plane.shape[1]
    product = np.empty((len(bands), bands[0].matrix.shape[0], width), np.float32)
    for out, (start, stop, matrix) in zip(product, bands, strict=True):
        step = max(1, _MAX_MULTIPLICATIONS // matrix.size)
        for first in range(0, width, step):
            columns = slice(first, first + step)
            np.matmul(matrix, plane[start:stop, columns], out=out[:, columns])
    return product.reshape(-1, width)


def upright(planes: Planes) -> Planes:
    """An image turned as its orientation says, without loss.

    Transposing a block transposes its coefficients; mirroring it negates the odd frequencies of
    that direction. A mirrored side must be whole MCUs: otherwise its partly filled blocks would lie
    before the first pixel.

    Raises:
        UnsupportedJpeg: ``turned``, if a side that is mirrored is no multiple of the MCU.
    """
    header = planes.header
    if header.orientation == UPRIGHT:
        return planes
    transposed, mirrored, flipped = TURNS[header.orientation]
    across, down = header.subsampling
    width, height = header.width % (8 * across), header.height % (8 * down)
    if transposed:
        width, height = height, width
    if (mirrored and width) or (flipped and height):
        raise UnsupportedJpeg("turned")
    turned = [_turn(plane, transposed, mirrored, flipped) for plane in planes.planes]
    if transposed:
        sampling = tuple((v, h) for h, v in header.sampling)
        width, height = header.height, header.width
        header = replace(header, width=width, height=height, sampling=sampling)
    return Planes(replace(header, orientation=UPRIGHT), tuple(turned))


def _turn(plane: Plane, transposed: bool, mirrored: bool, flipped: bool) -> Plane:
    quantised, table = plane.quantised, plane.table
    if transposed:
        quantised, table = quantised.T, table.T
    rows, cols = quantised.shape[0] // 8, quantised.shape[1] // 8
    blocks = quantised.reshape(rows, 8, cols, 8)
    signs = 1 - 2 * (np.arange(8, dtype=np.int32) % 2)
    if mirrored:
        blocks = blocks[:, :, ::-1] * signs
    if flipped:
        blocks = blocks[::-1] * signs[:, None, None]
    return Plane(np.ascontiguousarray(blocks.reshape(8 * rows, 8 * cols)), table)


def snap_box(header: Header, top: float, left: float, height: float, width: float) -> BlockBox:
    """The MCU-aligned box nearest to a crop in pixels.

    Each edge is rounded to the nearest MCU edge within the image's whole MCUs; a box that would
    become empty is replaced by the MCU at its centre.

    Args:
        header: of an image with at least one whole MCU, see ``unsupported_reason``.
        top, left, height, width: in pixels of the stored image.
    """
    across, down = header.subsampling
    y, rows = _snap(top, height, 8 * down, header.height)
    x, cols = _snap(left, width, 8 * across, header.width)
    return BlockBox(y * down, x * across, rows * down, cols * across)


def crop_and_resize(
    planes: Planes, box: BlockBox, size: int, selection: Selection
) -> tuple[Floats, Floats]:
    """Crop an image and resize it to a square with 4:2:0 chroma, from any supported sampling.

    Args:
        planes: from ``read_planes``.
        box: from ``snap_box``.
        size: side of the result in luma pixels, a multiple of 16.
        selection: the frequencies to return.

    Returns:
        ``y`` [size/8, size/8, k_luma] and ``cbcr`` [2, size/16, size/16, k_chroma], float32,
        unrounded, on the orthonormal scale of the plane minus 128. The chroma of a grey image is
        zero, which is neutral.

    Raises:
        ValueError: if ``size`` is not a multiple of 16.
    """
    if size % 16:
        raise ValueError(f"size={size} is not a multiple of 16")
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


def flip_signs(frequencies: tuple[int, ...]) -> NDArray[np.int16]:
    """±1 per frequency: a horizontal flip of a block negates its odd horizontal frequencies."""
    return np.array([1 - 2 * (f % 2) for f in frequencies], np.int16)


def flip_channels(coefficients: Tensor, frequencies: tuple[int, ...]) -> Tensor:
    """Horizontal flip of channel-major coefficients [..., len(frequencies), rows, cols]."""
    signs = torch.from_numpy(flip_signs(frequencies)).to(coefficients, non_blocking=True)
    return coefficients.flip(-1) * signs[:, None, None]


def _snap(start: float, extent: float, unit: int, side: int) -> tuple[int, int]:
    """The first unit and the number of units of a crop in one dimension."""
    units = side // unit
    first = min(max(round(start / unit), 0), units)
    last = min(max(round((start + extent) / unit), 0), units)
    if first < last:
        return first, last - first
    centre = int((start + extent / 2) / unit)
    return min(max(centre, 0), units - 1), 1


@lru_cache(maxsize=512)  # a crop needs four, of tens of kilobytes each
def _bands(blocks_in: int, blocks_out: int, rows: int) -> list[Band]:
    """The operator as one band per output block, reduced to its ``rows`` lowest frequencies."""
    bands = []
    for block in resize_operator(blocks_in, blocks_out).reshape(blocks_out, 8, -1):
        nonzero = np.flatnonzero(block.reshape(8, blocks_in, 8).any(axis=(0, 2)))
        start, stop = 8 * int(nonzero[0]), 8 * int(nonzero[-1]) + 8
        bands.append(Band(start, stop, np.ascontiguousarray(block[:rows, start:stop])))
    return bands


def _dct_line() -> NDArray[np.float64]:
    """Orthonormal DCT-II of length 8, [8, 8]."""
    n = np.arange(8)
    line = np.cos(np.pi * (2 * n + 1) * n[:, None] / 16) / 2
    line[0] /= np.sqrt(2)
    return line
