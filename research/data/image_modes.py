"""Conversion of PIL's modes to RGB, by the range that a file's values really have.

PIL clips values of more than 8 bits at 255 and drops transparency. Here values of 16 and 32 bits
and floats become 16-bit grey (``wide_to_16bit``), and transparent pixels are shown on white
(``to_rgb``).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

from research.utils.errors import DamagedImage

WIDE_16BIT: Final = "I;16"
"""Mode of all images of more than 8 bits after ``wide_to_16bit``: grey, 0…65535."""
RANGES: Final = (1, 255, 65535)
"""Largest values of images that do not declare theirs: floats, and integers of 32 bits."""
UINT16_MAX: Final = 65535
UINT8_TO_UINT16: Final = 257
"""Factor from 8 to 16 bits: 255 becomes 65535."""
BACKGROUND: Final = "white"
"""What transparent pixels are shown on, as in a browser. The colours that a file stores below them
are not part of the picture; often they are black or left over."""


def is_wide(mode: str) -> bool:
    """True for a mode of more than 8 bits, in one channel; PIL has no other."""
    return mode in ("I", "F") or mode.startswith("I;16")


def has_declared_range(image: Image.Image) -> bool:
    """Whether the range of a wide image is known without its pixels."""
    if image.mode == "I" and isinstance(image, PpmImageFile):  # PIL scales it to 65535
        return True
    return image.mode.startswith("I;16")


def check_sign(image: Image.Image) -> None:
    """Refuse signed values of 8 bits, which PIL decodes as unsigned ones: -1 as 255.

    Args:
        image: as opened from a file.

    Raises:
        DamagedImage: ``value_range``.
    """
    if (
        isinstance(image, TiffImageFile)
        and image.mode == "L"
        and 2 in image.tag_v2.get(SAMPLEFORMAT, ())
    ):
        raise DamagedImage("value_range", "int8: store 0 to 255")


def wide_to_16bit(image: Image.Image) -> Image.Image:
    """A wide image as 16-bit grey with the full range 0…65535; other images as they are.

    Values of 16-bit files count from 0 to 65535, those of 12-bit TIFF files from 0 to 4095. Floats
    and 32-bit integers are read as 0…1, 0…255 or 0…65535, the smallest range that contains them;
    values that exceed 1 or 255, but by less than the double, are in none.

    Args:
        image: as loaded from a file, so that its range is known.

    Raises:
        DamagedImage: ``value_range``, if the values are in none of the ranges.
    """
    if not is_wide(image.mode):
        return image
    pixels: NDArray[Any] = np.asarray(image)
    if has_declared_range(image):
        largest = (1 << bits_per_channel(image)) - 1
    else:
        largest = _smallest_range(pixels)
    if largest != UINT16_MAX:
        pixels = np.rint(pixels.astype(np.float64) * (UINT16_MAX / largest))
    elif pixels.dtype.kind == "f":
        pixels = np.rint(pixels)
    pixels = pixels.astype(np.uint16)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        pixels = UINT16_MAX - pixels  # 0 is white, which PIL respects only in 8 bits
    if (colour := image.info.get("transparency")) is not None:  # of PNG files; white is shown
        pixels = np.where(pixels == colour, np.uint16(UINT16_MAX), pixels)
    return Image.fromarray(pixels)


def scale_transparent_colour(image: PngImageFile) -> None:
    """Give the transparent colour of a PNG file the range of the pixels that PIL decodes.

    PIL compares it with pixels of 8 bits, but has read it in the 2, 4 or 16 bits of the file.

    Args:
        image: as opened from a file; not yet loaded.
    """
    colour, stored = image.info.get("transparency"), image.tile[0].args if image.tile else ""
    if colour is not None and stored in ("L;2", "L;4"):
        largest = 3 if stored == "L;2" else 15
        image.info["transparency"] = (colour & largest) * (255 // largest)
    elif colour is not None and stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def with_alpha(image: Image.Image) -> Image.Image:
    """An image with a transparent colour as one with an alpha channel; others as they are.

    So a mode tells whether pixels can be transparent. Wide images keep their colour, for
    ``wide_to_16bit``.

    Args:
        image: as loaded from a file.

    Raises:
        ValueError: for a transparent colour that the palette does not have.
    """
    if "transparency" not in image.info or is_wide(image.mode):
        return image
    return image.convert("LA" if image.mode == "L" else "RGBA")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode, as from ``decode``.

    16-bit values are divided by 257. Transparent pixels are blended with ``BACKGROUND``.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(to_8bit(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode in ("La", "RGBa"):  # multiplied with their alpha
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # it would copy RGB


def resize_to_rgb(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    """``to_rgb``, then the box resized with PIL's antialiased bilinear filter.

    Of grey images one channel is resized instead of three equal ones.

    Args:
        image: of any mode, as from ``decode``.
        size: width and height of the result.
        box: left, top, right, bottom in pixels of the image.
    """
    if image.mode != "L":
        image = to_rgb(image)
    return to_rgb(image.resize(size, Image.Resampling.BILINEAR, box=box))


def to_8bit(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """16-bit values as 8-bit values, rounded down: 257·v becomes v."""
    return (pixels // UINT8_TO_UINT16).astype(np.uint8)


def bits_per_channel(image: Image.Image) -> int:
    """Bits that a file has in each channel; PIL decodes colours of more than 8 bits to 8.

    Args:
        image: as opened from a file.
    """
    if image.mode in ("I", "F"):
        return 16 if has_declared_range(image) else 32
    if isinstance(image, TiffImageFile):  # 12-bit files have the mode of 16 bits
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    if image.mode.startswith("I;16"):
        return 16
    tiles = image.tile if isinstance(image, ImageFile) else []
    arguments = tiles[0].args if tiles else None
    if isinstance(image, PpmImageFile):
        return 16 if isinstance(arguments, tuple) and arguments[1] > 255 else 8
    return 16 if isinstance(arguments, str) and arguments.endswith(";16B") else 8


def _smallest_range(pixels: NDArray[Any]) -> int:
    low, high = pixels.min(), pixels.max()
    for largest in RANGES:
        if low >= 0 and high <= largest:
            return largest
        if high < 2 * largest:  # exceeds this range a little, and would be black in the next one
            break
    allowed = ", ".join(f"0 to {largest}" for largest in RANGES[:-1]) + f" or 0 to {RANGES[-1]}"
    nans = int(np.isnan(pixels).sum()) if pixels.dtype.kind == "f" else 0
    found = f"{nans} NaN" if nans else f"values from {low:g} to {high:g}"
    raise DamagedImage("value_range", f"{pixels.dtype.name}, {found}: store {allowed}")


@cache
def _lab_transform() -> Any:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.applyTransform(image, _lab_transform())
    assert converted is not None
    return converted
