"""Readers of one modality: a colour image, a grey image, or a NumPy array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.data.frames.frame import SkipFrame
from research.data.image_files import decode, read_header
from research.data.image_modes import UINT8_TO_UINT16, WIDE_16BIT, to_rgb
from research.data.rgbx.arrays import (
    RANGES,
    ArraySpec,
    Pixels,
    describe_nans,
    open_memmap,
    read_array,
)
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
    try:
        if path.suffix.lower() == ".npy":
            array = _open_grey_array(path)
            height, width = array.shape[:2]
            return ModalityHeader(width, height, array.itemsize == 2, UPRIGHT)
        header = read_header(path)
    except DamagedImage as error:
        raise _to_skip_frame(error, path) from None
    if header.bits > 8 and not header.is_wide:  # PIL would silently read the upper 8 of them
        count = "three" if header.channels == 3 else header.channels
        problem = f"{header.bits} bits in {count} channels"
        raise SkipFrame("invalid", f"{problem}: store it in 16-bit grey, or colours in 8 bits")
    return ModalityHeader(header.width, header.height, header.is_wide, header.orientation)


def read_frame(files: Sequence[Path], spec: ArraySpec) -> Pixels:
    """A frame as one array [H, W, 3 + X]: RGB, then the other channels.

    Args:
        files: an array with all channels; or the image in colours, then one for each other channel.
        spec: channels and type; in uint16, 8-bit values v of images become 257·v.

    Raises:
        DamagedImage: for a file that cannot be decoded, or is not grey where it must be.
    """
    if len(files) == 1:
        return read_array(files[0], spec)
    planes = [read_colour(files[0]), *map(read_grey, files[1:])]
    if spec.dtype == "uint16":
        planes = [
            plane.astype(np.uint16) * UINT8_TO_UINT16 if plane.itemsize == 1 else plane
            for plane in planes
        ]
    for plane, file in zip(planes, files, strict=True):
        if plane.shape[:2] != planes[0].shape[:2] or plane.dtype != spec.dtype:
            raise DamagedImage("wrong_form", f"{file}: not of the size or type in its header")
    return np.concatenate(planes, axis=2)


def read_colour(path: Path) -> Pixels:
    """Pixels [H, W, 3] of the upright image; uint16 only for grey images of more than 8 bits.

    Raises:
        DamagedImage: if the file cannot be decoded.
    """
    image = decode(path)
    if image.mode == WIDE_16BIT:
        return np.repeat(np.asarray(image)[..., None], 3, axis=2)
    return np.asarray(to_rgb(image))


def read_grey(path: Path) -> Pixels:
    """Pixels [H, W, 1] of an upright grey image, which may have three equal channels, or of an
    array.

    Raises:
        DamagedImage: if the file cannot be decoded, or has colours (``coloured``).
    """
    if path.suffix.lower() == ".npy":
        return np.array(_open_grey_array(path))
    image = decode(path)
    if image.mode == WIDE_16BIT:
        return np.asarray(image)[..., None]
    rgb = to_rgb(image)
    difference = np.ptp(np.asarray(rgb), axis=2)
    if difference.max() > MAX_CHANNEL_DIFFERENCE:
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        where = f"its channels differ by {difference.max()} at row {row} column {column}"
        raise DamagedImage("coloured", f"{path}: {where}: store it in grey")
    return np.asarray(rgb.convert("L"))[..., None]


def _open_grey_array(path: Path) -> Pixels:
    """The memory-mapped array [H, W, 1] of a NumPy file, uint8 or uint16.

    Raises:
        DamagedImage: if the file is damaged, or has another shape or type (``wrong_form``).
    """
    array = open_memmap(path)
    shape = "×".join(map(str, array.shape))
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 1):
        raise DamagedImage("wrong_form", f"{path}: shape {shape}: store (height, width)")
    if array.dtype.name not in RANGES:
        text = f"{array.dtype.name}{describe_nans(array)}: store uint8 or uint16"
        raise DamagedImage("wrong_form", f"{path}: {text}")
    return array.reshape(*array.shape[:2], 1).astype(array.dtype.name, copy=False)


def _to_skip_frame(error: DamagedImage, path: Path) -> SkipFrame:
    if error.kind in ("value_range", "wrong_form"):
        return SkipFrame("invalid", str(error).removeprefix(f"{path}: "))
    return SkipFrame("invalid", f"{error.kind.replace('_', ' ')}: replace it")
