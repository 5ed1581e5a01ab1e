"""Read the quantised DCT coefficients of a JPEG file, without decoding pixels.

libjpeg-turbo (through ``jpegio``) does the entropy decoding. The markers are parsed here first,
because libjpeg accepts truncated files without an error and allocates whatever a header claims,
and jpegio numbers quantisation tables by their order in the file. libjpeg is called only for
files that are complete, of plausible size and of a supported kind. References are to ITU-T T.81
(JPEG) and T.871 (JFIF).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jpegio
import numpy as np
from numpy.typing import NDArray

from research.compression.selection import ZIGZAG
from research.utils.errors import DamagedImage

MAX_PIXELS = 178_956_970
"""Largest image that is read, as in PIL: twice ``PIL.Image.MAX_IMAGE_PIXELS``."""

MIN_SIDE = 8
"""Shortest side in pixels that is read: one block."""

Coding = Literal["huffman", "arithmetic", "lossless"]
Color = Literal["grey", "ycbcr", "rgb", "cmyk"]

_SOI, _EOI, _SOS, _DQT, _APP0, _APP14, _TEM = 0xD8, 0xD9, 0xDA, 0xDB, 0xE0, 0xEE, 0x01
# Entropy coding by start-of-frame marker; the other markers are hierarchical (T.81, table B.1).
_FRAMES: dict[int, Coding] = {
    0xC0: "huffman",
    0xC1: "huffman",
    0xC2: "huffman",
    0xC3: "lossless",
    0xC9: "arithmetic",
    0xCA: "arithmetic",
    0xCB: "lossless",
}
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_PROGRESSIVE = frozenset({0xC2, 0xCA})

# Any marker except stuffed zeros and restart markers, which belong to entropy-coded data.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")

# Ratios of luma to chroma sampling, (horizontal, vertical): 4:4:4, 4:2:2, 4:4:0, 4:2:0.
_RATIOS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2)})

_NATURAL = np.array(ZIGZAG)


@dataclass(frozen=True)
class Header:
    """Properties of a JPEG image from its markers.

    Attributes:
        width, height: in pixels.
        components: 1, 3 or 4.
        sampling: (horizontal, vertical) factor of each component, as written in the file.
        precision: bits per sample.
        progressive: coded in several passes.
        color: ``grey``, ``ycbcr``, ``rgb`` or ``cmyk`` (also YCCK), by libjpeg's rules.
        coding: ``huffman``, ``arithmetic`` or ``lossless``.
    """

    width: int
    height: int
    components: int
    sampling: tuple[tuple[int, int], ...]
    precision: int
    progressive: bool
    color: Color
    coding: Coding

    @property
    def subsampling(self) -> tuple[int, int]:
        """(horizontal, vertical) luma pixels per chroma pixel of a supported image.

        (1, 1) without chroma.
        """
        if self.components == 1:  # the factors of a single component are ignored (T.81, A.2.2)
            return 1, 1
        (h, v), (h_chroma, v_chroma) = self.sampling[:2]
        return h // h_chroma, v // v_chroma


class UnsupportedJpeg(Exception):
    """An undamaged JPEG whose coefficients cannot be used: decode its pixels instead.

    Attributes:
        reason: one word under which the fallback is counted, see ``unsupported_reason``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Plane:
    """The coefficients of one component.

    Attributes:
        quantised: int32 [8·rows, 8·cols]; coefficient (v, u) of block (i, j) is at
            [8·i + v, 8·j + u].
        table: int32 [8, 8], the quantisation step of each (v, u).
    """

    quantised: NDArray[np.int32]
    table: NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return self.quantised.shape[0] // 8, self.quantised.shape[1] // 8

    def crop(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """A box of blocks, dequantised, float32 [8·height, 8·width] in the layout of the plane."""
        part = self.quantised[8 * top : 8 * (top + height), 8 * left : 8 * (left + width)]
        steps = np.tile(self.table.astype(np.float32), (1, width))
        out = np.multiply(part.reshape(height, 8, -1), steps, dtype=np.float32)
        return out.reshape(8 * height, 8 * width)

    def blocks(self) -> NDArray[np.int32]:
        """Dequantised int32 [rows, cols, 64], frequency row-major."""
        rows, cols = self.shape
        grid = self.quantised.reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3)
        return (grid * self.table).reshape(rows, cols, 64)


@dataclass(frozen=True)
class Planes:
    """A JPEG's coefficients, on the orthonormal scale of the plane minus 128.

    A component of h × w pixels has ceil(h/8) × ceil(w/8) blocks; the last row and column may be
    partly padding.
    """

    header: Header
    planes: tuple[Plane, ...]

    @property
    def y(self) -> NDArray[np.int32]:
        """[rows, cols, 64], dequantised."""
        return self.planes[0].blocks()

    @property
    def cb(self) -> NDArray[np.int32] | None:
        """[rows, cols, 64], dequantised; ``None`` in a grey image."""
        return self.planes[1].blocks() if len(self.planes) == 3 else None

    @property
    def cr(self) -> NDArray[np.int32] | None:
        """[rows, cols, 64], dequantised; ``None`` in a grey image."""
        return self.planes[2].blocks() if len(self.planes) == 3 else None


def read_header(data: bytes) -> Header:
    """Parse the markers up to the first scan.

    Args:
        data: a JPEG file, or its beginning up to the first scan.

    Raises:
        DamagedImage: ``empty``; ``not_an_image`` (not a JPEG); ``truncated`` before the first
            scan; ``oversized`` (more than ``MAX_PIXELS``); ``too_small`` (a side below
            ``MIN_SIDE``); ``unreadable`` (the markers violate the standard).
    """
    frame: tuple[int, bytes] | None = None
    jfif = False
    transform: int | None = None
    for marker, body in _segments(data):
        if marker in _FRAMES:
            if frame is not None:
                raise DamagedImage("unreadable", "two frame headers")
            frame = marker, body
        elif marker in _HIERARCHICAL:
            raise DamagedImage("unreadable", "a hierarchical JPEG")
        elif marker == _APP0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            transform = body[11]
        elif marker in (_SOS, _EOI):
            break
    else:
        raise DamagedImage("truncated", "ends before the first scan")
    if frame is None:
        raise DamagedImage("unreadable", "no frame header before the first scan")
    return _header(*frame, jfif, transform)


def is_complete(data: bytes) -> bool:
    """Whether the file has its end-of-image marker; bytes after it are allowed.

    libjpeg decodes a file without it too, with the missing part grey.
    """
    try:
        markers = [marker for marker, _ in _segments(data)]
    except DamagedImage:
        return False
    return _SOS in markers and markers[-1] == _EOI


def unsupported_reason(header: Header) -> str | None:
    """Why the coefficients cannot be used, in one word; ``None`` if they can.

    Supported are 8-bit Huffman-coded images, grey or YCbCr with 4:4:4, 4:2:2, 4:4:0 or 4:2:0
    chroma. Reasons are ``lossless``, ``arithmetic``, ``twelve_bit``, ``cmyk``, ``rgb``,
    ``sampling`` (such as 4:1:1), and ``tiny`` (smaller than one MCU, so that all blocks are partly
    padding).
    """
    if header.coding != "huffman":
        return header.coding
    if header.precision != 8:
        return "twelve_bit"
    if header.color in ("cmyk", "rgb"):
        return header.color
    if header.color == "ycbcr":
        (h, v), cb, cr = header.sampling
        if cb != cr or all((r * cb[0], s * cb[1]) != (h, v) for r, s in _RATIOS):
            return "sampling"
    across, down = header.subsampling
    if header.width < 8 * across or header.height < 8 * down:
        return "tiny"
    return None


def read_planes(path: str | os.PathLike[str]) -> Planes:
    """Read the coefficients of all components of a file.

    Raises:
        DamagedImage: as ``read_header``; also ``truncated`` if the end marker is missing,
            ``oversized`` if the file is too short for the blocks that its header claims, and
            ``unreadable`` if libjpeg fails.
        UnsupportedJpeg: if the coefficients cannot be used, see ``unsupported_reason``.
    """
    data = Path(path).read_bytes()
    header = read_header(data)
    reason = unsupported_reason(header)
    if reason is not None:
        raise UnsupportedJpeg(reason)
    segments = list(_segments(data))
    if segments[-1][0] != _EOI:
        raise DamagedImage("truncated", "no end-of-image marker")
    # The DC of a block takes at least one bit of Huffman code in every mode (T.81, F.1.2.1 and
    # G.1.2.1). This check prevents libjpeg from allocating a large image for a small file.
    if _blocks(header) > 8 * len(data):
        raise DamagedImage("oversized", "the header claims more blocks than the file can contain")
    tables = _tables(segments)
    try:
        coefficients = jpegio.read(path).coef_arrays
    except RuntimeError as error:
        raise DamagedImage("unreadable", str(error)) from None
    return Planes(header, tuple(map(Plane, coefficients, tables)))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, body) of each segment from after the start marker to the end marker.

    Bytes outside segments are skipped, as in libjpeg. This includes entropy-coded scans, in which
    no marker can occur.
    """
    if not data:
        raise DamagedImage("empty", "an empty file")
    if not data.startswith(b"\xff\xd8"):
        raise DamagedImage("not_an_image", "does not start as a JPEG")
    position = 2
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == _SOI:
            raise DamagedImage("unreadable", "a second start-of-image marker")
        if marker == _EOI:
            yield marker, b""
            return
        if marker == _TEM:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if position + max(length, 2) > len(data):
            raise DamagedImage("truncated", "ends within a marker segment")
        if length < 2:
            raise DamagedImage("unreadable", "a marker segment of impossible length")
        yield marker, data[position + 2 : position + length]
        position += length


def _header(marker: int, body: bytes, jfif: bool, transform: int | None) -> Header:
    """Parse a frame segment (T.81, B.2.2), with what the two application markers contain."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise DamagedImage("unreadable", "a frame header of impossible length")
    precision, height, width, components = struct.unpack(">BHHB", body[:6])
    if components not in (1, 3, 4):
        raise DamagedImage("unreadable", f"{components} components")
    ids, factors = body[6::3], body[7::3]
    sampling = tuple((factor >> 4, factor & 15) for factor in factors)
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling):
        raise DamagedImage("unreadable", "impossible sampling factors")
    if width * height > MAX_PIXELS:
        raise DamagedImage("oversized", f"the header claims {width}×{height} px")
    if min(width, height) < MIN_SIDE:
        raise DamagedImage("too_small", f"{width}×{height} px")
    return Header(
        width=width,
        height=height,
        components=components,
        sampling=sampling,
        precision=precision,
        progressive=marker in _PROGRESSIVE,
        color=_color(components, ids, jfif, transform),
        coding=_FRAMES[marker],
    )


def _color(components: int, ids: bytes, jfif: bool, transform: int | None) -> Color:
    """The color space by libjpeg's rules (jdapimin.c, ``default_decompress_parms``)."""
    if components == 1:
        return "grey"
    if components == 4:
        return "cmyk"
    if jfif:
        return "ycbcr"
    if transform is not None:
        return "rgb" if transform == 0 else "ycbcr"
    return "rgb" if ids == b"RGB" else "ycbcr"


def _blocks(header: Header) -> int:
    """Number of blocks of all components (T.81, A.1.1)."""
    luma = -(-header.height // 8) * -(-header.width // 8)
    if header.components == 1:
        return luma
    across, down = header.subsampling
    return luma + 2 * -(-header.height // (8 * down)) * -(-header.width // (8 * across))


def _tables(segments: list[tuple[int, bytes]]) -> list[NDArray[np.int32]]:
    """The quantisation table of each component, [8, 8], in the order of the frame.

    A component uses the table in its slot at the start of its first scan; the slot may be
    redefined later.
    """
    slots: dict[int, NDArray[np.int32]] = {}
    frame: list[tuple[int, int]] = []
    tables: dict[int, NDArray[np.int32]] = {}
    for marker, body in segments:
        if marker == _DQT:
            slots.update(_quantisation(body))
        elif marker in _FRAMES:
            frame = list(zip(body[6::3], body[8::3], strict=True))
        elif marker == _SOS:
            scan = body[1 : 1 + 2 * body[0] : 2] if body else b""
            for component, slot in frame:
                if component in scan and component not in tables:
                    if slot not in slots:
                        raise DamagedImage("unreadable", "a quantisation table is missing")
                    tables[component] = slots[slot]
    if any(component not in tables for component, _ in frame):
        raise DamagedImage("unreadable", "a component is in no scan")
    return [tables[component] for component, _ in frame]


def _quantisation(body: bytes) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Yield (slot, table [8, 8]) for each table of a segment (T.81, B.2.4.1)."""
    start = 0
    while start < len(body):
        dtype = np.dtype(">u2" if body[start] >> 4 else "u1")
        end = start + 1 + 64 * dtype.itemsize
        if end > len(body):
            raise DamagedImage("unreadable", "a quantisation table is cut short")
        table = np.empty(64, np.int32)
        table[_NATURAL] = np.frombuffer(body[start + 1 : end], dtype)
        yield body[start] & 15, table.reshape(8, 8)
        start = end
