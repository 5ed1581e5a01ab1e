"""The orientation that the metadata of an image file declares."""

from __future__ import annotations

import re
import struct
from typing import Final

from PIL import Image

UPRIGHT: Final = 1
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")
_TAG: Final = 0x0112
_TYPES: Final = {1: "B", 3: "H", 4: "I"}


def read_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """How the stored pixels are turned, 1…8 as in EXIF; 1 if nothing valid is declared.

    As in PIL, XMP counts only where EXIF has no orientation. Damaged metadata declare nothing: the
    pixels of such a file are usually intact.

    Args:
        exif: an EXIF block, with or without ``Exif\\0\\0`` before it; may be empty.
        xmp: an XMP packet; may be empty.
    """
    try:
        value = _find_tag(exif.removeprefix(b"Exif\0\0"))
    except struct.error:  # ends too early
        value = None
    if value is None and (match := _XMP.search(xmp)):
        value = int(match[1])
    return value if value is not None and UPRIGHT <= value <= 8 else UPRIGHT


def _find_tag(block: bytes) -> int | None:
    """The value of the orientation in the first directory of a TIFF structure, if it is there."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    version, start = struct.unpack_from(f"{order}HI", block, 2)
    if version != 42:
        return None
    (entries,) = struct.unpack_from(f"{order}H", block, start)
    for position in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", block, position)
        if tag == _TAG and kind in _TYPES and count == 1:
            (value,) = struct.unpack_from(order + _TYPES[kind], block, position + 8)
            return int(value)
    return None


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels turned as the orientation says, once: the result has no EXIF data."""
    if orientation == UPRIGHT:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info.pop("exif", None)
    return turned


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of an image of this stored size when it is turned."""
    return (height, width) if orientation >= 5 else (width, height)


def upright_box(
    box: tuple[float, float, float, float], orientation: int
) -> tuple[float, float, float, float]:
    """A box of the stored image as a box of the upright one.

    Args:
        box: x0, y0, x1, y1 as fractions of the stored image.
        orientation: 1…8 as in EXIF.
    """
    x0, y0, x1, y1 = box
    if orientation >= 5:
        x0, y0, x1, y1 = y0, x0, y1, x1
    if orientation in (2, 3, 6, 7):
        x0, x1 = 1 - x1, 1 - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = 1 - y1, 1 - y0
    return x0, y0, x1, y1
