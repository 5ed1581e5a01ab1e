"""Readers of one modality: a colour image, a grey image, or a NumPy array."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from research.data.frames.frame import SkipFrame
from research.data.image_files import decode, read_header
from research.data.image_modes import WIDE_16BIT, to_rgb
from research.data.rgbx.arrays import Pixels, describe_nans, open_memmap
from research.utils.errors import DamagedImage
from research.utils.exif import UPRIGHT

MAX_CHANNEL_DIFFERENCE = 4
"""Largest difference between the channels of a grey image, which rounding in JPEG can cause."""


class ModalityHeader(NamedTuple):
    """Width and height of the upright image in pixels, whether it has 16 bits, its orientation."""

    width: int
    height: int
    is_16bit: bool
    orientation: int


def read_modality_header(path: Path) -> ModalityHeader:
    """Read the header of a file, without its pixels.

    Raises:
        SkipFrame: if the file cannot be used.
    """
    if path.suffix.lower() == ".npy":
        array = _open_grey_array(path)
        return ModalityHeader(array.shape[1], array.shape[0], array.itemsize == 2, UPRIGHT)
    try:
        header = read_header(path)
    except DamagedImage as error:
        raise _to_skip_frame(error, path) from None
    if header.bits > 8 and not header.is_wide:  # PIL would silently read the upper 8 of them
        count = "three" if header.channels == 3 else header.channels
        problem = f"{header.bits} bits in {count} channels"
        raise SkipFrame("invalid", f"{problem}: store it in 16-bit grey, or colours in 8 bits")
    return ModalityHeader(header.width, header.height, header.is_wide, header.orientation)


def read_colour(path: Path) -> Pixels:
    """Pixels [H, W, 3] of the upright image; uint16 only for grey images of more than 8 bits.

    Raises:
        SkipFrame: if the file cannot be decoded.
    """
    image = _decode(path)
    if image.mode == WIDE_16BIT:
        return np.repeat(np.asarray(image)[..., None], 3, axis=2)
    return np.asarray(to_rgb(image))


def read_grey(path: Path) -> Pixels:
    """Pixels [H, W, 1] of an upright grey image, which may have three equal channels, or of an
    array.

    Raises:
        SkipFrame: if the file cannot be decoded, or has colours.
    """
    if path.suffix.lower() == ".npy":
        return np.array(_open_grey_array(path))
    image = _decode(path)
    if image.mode == WIDE_16BIT:
        return np.asarray(image)[..., None]
    rgb = to_rgb(image)
    difference = np.ptp(np.asarray(rgb), axis=2)
    if difference.max() > MAX_CHANNEL_DIFFERENCE:
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        position = f"row {row} column {column}"
        raise SkipFrame("invalid", f"has colours (most at {position}): store it in grey")
    return np.asarray(rgb.convert("L"))[..., None]


def _open_grey_array(path: Path) -> Pixels:
    """The memory-mapped array [H, W, 1] of a NumPy file, uint8 or uint16.

    Raises:
        SkipFrame: if the file is damaged, or has another shape or type.
    """
    try:
        array = open_memmap(path)
    except DamagedImage as error:
        raise _to_skip_frame(error, path) from None
    shape = "×".join(map(str, array.shape))
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 1):
        raise SkipFrame("invalid", f"shape {shape}: store (height, width)")
    if array.dtype.name not in ("uint8", "uint16"):
        raise SkipFrame(
            "invalid", f"{array.dtype.name}{describe_nans(array)}: store uint8 or uint16"
        )
    return array.reshape(*array.shape[:2], 1).astype(array.dtype.name, copy=False)


def _decode(path: Path) -> Image.Image:
    try:
        return decode(path)
    except DamagedImage as error:
        raise _to_skip_frame(error, path) from None


def _to_skip_frame(error: DamagedImage, path: Path) -> SkipFrame:
    if error.kind == "value_range":
        return SkipFrame("invalid", str(error).removeprefix(f"{path}: "))
    return SkipFrame("invalid", f"{error.kind.replace('_', ' ')}: replace it")
