"""The file of one modality: a colour picture, or a grey one, or a NumPy array."""

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
from research.data.rgbx.arrays import Pixels, mapped, not_numbers
from research.utils.errors import DamagedImage

DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
COLOUR_SLACK = 4
"""Most levels between the channels of a grey picture: what a JPEG's rounding can put there."""


class Header(NamedTuple):
    """What a file says of itself: sides in pixels, and whether it has 16 bits."""

    width: int
    height: int
    deep: bool


def header(path: Path) -> Header:
    """What is told before the pixels are read.

    Raises:
        SkipFrame: when the file cannot be used.
    """
    if path.suffix.lower() == ".npy":
        array = _array(path)
        return Header(array.shape[1], array.shape[0], array.itemsize == 2)
    if kind := inspect_header(path):
        raise SkipFrame("invalid", f"{kind.replace('_', ' ')}: replace it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            found = Header(*image.size, image.mode in DEEP_MODES)
            mode, bits, bands = image.mode, _bits(path, image), len(image.getbands())
    if mode == "F":
        told = f"float32{not_numbers(np.asarray(_decoded(path)))}"
        raise SkipFrame("invalid", f"{told}: store whole numbers of 8 or 16 bits")
    if bits > 8 and not found.deep:  # PIL would read the upper 8 of them and say nothing
        told = f"{bits} bits in {'three' if bands == 3 else bands} channels"
        raise SkipFrame("invalid", f"{told}: store it in 16-bit grey, or colours in 8 bits")
    return found


def colour(path: Path) -> Pixels:
    """[H, W, 3]; uint16 only for grey, see ``header`` on deeper colours.

    Raises:
        SkipFrame: when it cannot be decoded.
    """
    image = _decoded(path)
    if image.mode in DEEP_MODES:
        return np.repeat(_whole(np.asarray(image)), 3, axis=2)
    return np.asarray(to_rgb(image))


def grey(path: Path) -> Pixels:
    """[H, W, 1] of a grey picture, be it stored with three equal channels, or an array.

    Raises:
        SkipFrame: when it cannot be decoded, or has colours.
    """
    if path.suffix.lower() == ".npy":
        return np.array(_array(path))
    image = _decoded(path)
    if image.mode in DEEP_MODES:
        return _whole(np.asarray(image))
    colours = to_rgb(image)
    spread = np.ptp(np.asarray(colours), axis=2)
    if spread.max() > COLOUR_SLACK:
        row, column = np.unravel_index(int(spread.argmax()), spread.shape)
        where = f"row {row} column {column}"
        raise SkipFrame("invalid", f"has colours (most at {where}): store it in grey")
    return np.asarray(colours.convert("L"))[..., None]


def _whole(pixels: Pixels) -> Pixels:
    """[H, W, 1] uint16 of what PIL holds in 16 or 32 bits."""
    if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
        low, high = pixels.min(), pixels.max()
        raise SkipFrame("invalid", f"values {low} to {high}: store 0 to 65535")
    return pixels.astype(np.uint16)[..., None]


def _array(path: Path) -> Pixels:
    """The array [H, W, 1], uint8 or uint16, of a NumPy file, mapped.

    Raises:
        SkipFrame: when there is none.
    """
    try:
        array = mapped(path)
    except DamagedImage as error:
        raise _left_out(error) from None
    told = "×".join(map(str, array.shape))
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 1):
        raise SkipFrame("invalid", f"shape {told}: store (height, width)")
    if array.dtype.name not in ("uint8", "uint16"):
        raise SkipFrame("invalid", f"{array.dtype.name}{not_numbers(array)}: store uint8 or uint16")
    return array.reshape(*array.shape[:2], 1).astype(array.dtype.name, copy=False)


def _bits(path: Path, image: Image.Image) -> int:
    """How many the file has in a channel, where PIL's mode does not tell; otherwise 8."""
    if isinstance(image, PngImageFile):
        with path.open("rb") as file:
            return file.read(25)[24]  # of the header, which PIL has found whole
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    if isinstance(image, PpmImageFile):
        arguments = image.tile[0].args
        return 16 if isinstance(arguments, tuple) and arguments[1] > 255 else 8
    return 8


def _decoded(path: Path) -> Image.Image:
    try:
        return decode(path)
    except DamagedImage as error:
        raise _left_out(error) from None


def _left_out(error: DamagedImage) -> SkipFrame:
    return SkipFrame("invalid", f"{error.kind.replace('_', ' ')}: replace it")
