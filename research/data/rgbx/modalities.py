"""Readers of one modality: a colour image, a grey image, or a NumPy array."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from research.data.frames.frame import SkipFrame
from research.data.index import inspect_header
from research.data.readers import decode, to_rgb
from research.data.rgbx.arrays import Pixels, describe_nans, open_memmap
from research.utils.errors import DamagedImage

MODES_16BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
MAX_CHANNEL_DIFFERENCE = 4
"""Largest difference between the channels of a grey image, which rounding in JPEG can cause."""


class ModalityHeader(NamedTuple):
    """Width and height in pixels, and whether the file has 16 bits."""

    width: int
    height: int
    is_16bit: bool


def read_modality_header(path: Path) -> ModalityHeader:
    """Read the header of a file, without its pixels.

    Raises:
        SkipFrame: if the file cannot be used.
    """
    if path.suffix.lower() == ".npy":
        array = _open_grey_array(path)
        return ModalityHeader(array.shape[1], array.shape[0], array.itemsize == 2)
    if kind := inspect_header(path):
        raise SkipFrame("invalid", f"{kind.replace('_', ' ')}: replace it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            header = ModalityHeader(*image.size, image.mode in MODES_16BIT)
            mode, bits, bands = image.mode, _bits_per_channel(path, image), len(image.getbands())
    if mode == "F":
        problem = f"float32{describe_nans(np.asarray(_decode(path)))}"
        raise SkipFrame("invalid", f"{problem}: store whole numbers of 8 or 16 bits")
    if bits > 8 and not header.is_16bit:  # PIL would silently read the upper 8 of them
        problem = f"{bits} bits in {'three' if bands == 3 else bands} channels"
        raise SkipFrame("invalid", f"{problem}: store it in 16-bit grey, or colours in 8 bits")
    return header


def read_colour(path: Path) -> Pixels:
    """Pixels [H, W, 3]; uint16 only for 16-bit grey images.

    Raises:
        SkipFrame: if the file cannot be decoded.
    """
    image = _decode(path)
    if image.mode in MODES_16BIT:
        return np.repeat(_to_uint16(np.asarray(image)), 3, axis=2)
    return np.asarray(to_rgb(image))


def read_grey(path: Path) -> Pixels:
    """Pixels [H, W, 1] of a grey image, which may have three equal channels, or of an array.

    Raises:
        SkipFrame: if the file cannot be decoded, or has colours.
    """
    if path.suffix.lower() == ".npy":
        return np.array(_open_grey_array(path))
    image = _decode(path)
    if image.mode in MODES_16BIT:
        return _to_uint16(np.asarray(image))
    rgb = to_rgb(image)
    difference = np.ptp(np.asarray(rgb), axis=2)
    if difference.max() > MAX_CHANNEL_DIFFERENCE:
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        position = f"row {row} column {column}"
        raise SkipFrame("invalid", f"has colours (most at {position}): store it in grey")
    return np.asarray(rgb.convert("L"))[..., None]


def _to_uint16(pixels: Pixels) -> Pixels:
    """[H, W, 1] uint16 of an image that PIL stores in 16 or 32 bits."""
    if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
        low, high = pixels.min(), pixels.max()
        raise SkipFrame("invalid", f"values {low} to {high}: store 0 to 65535")
    return pixels.astype(np.uint16)[..., None]


def _open_grey_array(path: Path) -> Pixels:
    """The memory-mapped array [H, W, 1] of a NumPy file, uint8 or uint16.

    Raises:
        SkipFrame: if the file is damaged, or has another shape or type.
    """
    try:
        array = open_memmap(path)
    except DamagedImage as error:
        raise _to_skip_frame(error) from None
    shape = "×".join(map(str, array.shape))
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 1):
        raise SkipFrame("invalid", f"shape {shape}: store (height, width)")
    if array.dtype.name not in ("uint8", "uint16"):
        raise SkipFrame(
            "invalid", f"{array.dtype.name}{describe_nans(array)}: store uint8 or uint16"
        )
    return array.reshape(*array.shape[:2], 1).astype(array.dtype.name, copy=False)


def _bits_per_channel(path: Path, image: Image.Image) -> int:
    """Bits per channel of PNG, TIFF and PPM files, which PIL's mode does not show; otherwise 8."""
    if isinstance(image, PngImageFile):
        with path.open("rb") as file:
            return file.read(25)[24]  # the bit depth in the header, which PIL has checked
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    if isinstance(image, PpmImageFile):
        arguments = image.tile[0].args
        return 16 if isinstance(arguments, tuple) and arguments[1] > 255 else 8
    return 8


def _decode(path: Path) -> Image.Image:
    try:
        return decode(path)
    except DamagedImage as error:
        raise _to_skip_frame(error) from None


def _to_skip_frame(error: DamagedImage) -> SkipFrame:
    return SkipFrame("invalid", f"{error.kind.replace('_', ' ')}: replace it")
