"""Properties of a JPEG file from its markers, and checks of what they claim.

Every JPEG file passes them before a decoder sees it, whether its pixels or its coefficients are
read: libjpeg accepts truncated files without an error and allocates whatever a header claims.
References are to ITU-T T.81 (JPEG) and T.871 (JFIF).
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from research.utils.errors import DamagedImage
from research.utils.exif import UPRIGHT, read_orientation

MAX_PIXELS = 178_956_970
"""Largest image that is read, as in PIL: twice ``PIL.Image.MAX_IMAGE_PIXELS``."""

MIN_SIDE = 8
"""Shortest side in pixels that is read: one block."""

MAX_BYTES = 2**28
"""Largest file that is read: 1.5 bytes for each of ``MAX_PIXELS``."""

MAX_SCANS = 100
"""Most scans of a file that is read; encoders write about ten."""

Coding = Literal["huffman", "arithmetic", "lossless"]
Color = Literal["grey", "ycbcr", "rgb", "cmyk"]

_SOI, EOI, SOS, DQT, _APP0, _APP1, _APP14, _TEM = 0xD8, 0xD9, 0xDA, 0xDB, 0xE0, 0xE1, 0xEE, 0x01
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# Entropy coding by start-of-frame marker; the other markers are hierarchical (T.81, table B.1).
FRAMES: dict[int, Coding] = {
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


@dataclass(frozen=True)
class Header:
    """Properties of a JPEG image from its markers.

    Attributes:
        width, height: in pixels, as stored.
        components: 1, 3 or 4.
        sampling: (horizontal, vertical) factor of each component, as written in the file.
        precision: bits per sample.
        progressive: coded in several passes.
        color: ``grey``, ``ycbcr``, ``rgb`` or ``cmyk`` (also YCCK), by libjpeg's rules.
        coding: ``huffman``, ``arithmetic`` or ``lossless``.
        orientation: how the stored image is turned, 1…8 as in EXIF.
    """

    width: int
    height: int
    components: int
    sampling: tuple[tuple[int, int], ...]
    precision: int
    progressive: bool
    color: Color
    coding: Coding
    orientation: int = UPRIGHT

    @property
    def subsampling(self) -> tuple[int, int]:
        """(horizontal, vertical) luma pixels per chroma pixel of a supported image.

        (1, 1) without chroma.
        """
        if self.components == 1:  # the factors of a single component are ignored (T.81, A.2.2)
            return 1, 1
        (h, v), (h_chroma, v_chroma) = self.sampling[:2]
        return h // h_chroma, v // v_chroma


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
    exif = xmp = b""
    jfif = False
    transform: int | None = None
    for marker, body in segments(data):
        if marker in FRAMES:
            if frame is not None:
                raise DamagedImage("unreadable", "two frame headers")
            frame = marker, body
        elif marker in _HIERARCHICAL:
            raise DamagedImage("unreadable", "a hierarchical JPEG")
        elif marker == _APP0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == _APP1 and body.startswith(_EXIF):
            exif += body[len(_EXIF) :]  # blocks of more than 64 KB are in several segments
        elif marker == _APP1 and body.startswith(_XMP):
            xmp = body[len(_XMP) :]
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            transform = body[11]
        elif marker in (SOS, EOI):
            break
    else:
        raise DamagedImage("truncated", "ends before the first scan")
    if frame is None:
        raise DamagedImage("unreadable", "no frame header before the first scan")
    return replace(_header(*frame, jfif, transform), orientation=read_orientation(exif, xmp))


def check_file(path: Path) -> int:
    """Size of a picture file in bytes.

    Raises:
        DamagedImage: ``unreadable`` for a pipe, a device or a folder: opening a pipe would block,
            and reading some devices would never end.
        OSError: if there is no such file.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise DamagedImage("unreadable", "not a regular file")
    return about.st_size


def check_size(header: Header, size: int) -> None:
    """Compare what a header claims with the size of the file in bytes.

    The DC of a block takes at least one bit of Huffman code in every mode (T.81, F.1.2.1 and
    G.1.2.1), so that a decoder need not allocate a large image for a small file.

    Raises:
        DamagedImage: ``oversized`` if the file is too short for the blocks that are claimed, or has
            more than ``MAX_BYTES``.
    """
    if size > MAX_BYTES:
        raise DamagedImage("oversized", f"a JPEG of {size:,} bytes")
    if header.coding == "huffman" and _blocks(header) > 8 * size:
        claimed = f"{header.width}×{header.height} px"
        raise DamagedImage("oversized", f"the header claims {claimed} in {size} bytes")


def check_markers(markers: Iterable[tuple[int, bytes]]) -> None:
    """Refuse a second frame header, and more scans than encoders write.

    Decoders stop at a second header, or take its size for that of the image; each scan passes over
    the whole image, however few bytes it has.

    Args:
        markers: see ``segments``; damage in them ends the search.

    Raises:
        DamagedImage: ``unreadable``.
    """
    frames = scans = 0
    with suppress(DamagedImage):
        for marker, _ in markers:
            frames += marker in FRAMES or marker in _HIERARCHICAL
            scans += marker == SOS
    if frames > 1:
        raise DamagedImage("unreadable", "two frame headers")
    if scans > MAX_SCANS:
        raise DamagedImage("unreadable", f"{scans} scans")


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


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
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
        if marker == EOI:
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
        coding=FRAMES[marker],
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
    across, down = (max(factors) for factors in zip(*header.sampling, strict=True))
    return sum(
        -(-header.width * h // (8 * across)) * -(-header.height * v // (8 * down))
        for h, v in header.sampling
    )
