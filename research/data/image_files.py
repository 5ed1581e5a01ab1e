"""The one way to open image files: headers, sizes as shown, decoded pixels.

What a header claims is compared with the size of the file before anything is decoded, by the same
rules for pixels and coefficients. Images are turned as their EXIF orientation says, and values of
more than 8 bits have the range 0…65535 (see ``image_modes``).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from research.compression import jpeg_header
from research.compression.jpeg_header import MAX_PIXELS, MIN_SIDE
from research.data.image_modes import (
    bits_per_channel,
    check_sign,
    has_declared_range,
    is_wide,
    scale_transparent_colour,
    wide_to_16bit,
    with_alpha,
)
from research.utils.conditions import is_exhausted
from research.utils.errors import DamagedImage
from research.utils.exif import UPRIGHT, read_orientation, upright, upright_size

EXTENSIONS: Final = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".pbm",
        ".pgm",
        ".ppm",
        ".pnm",
        ".webp",
        ".tif",
        ".tiff",
        ".gif",
    ]
)
"""Suffixes of image files, in lower case. How a file is read depends on its content alone."""
FORMATS: Final = (
    "JPEG",
    "PNG",
    "BMP",
    "DIB",
    "PPM",
    "WEBP",
    "TIFF",
    "GIF",
    "AVIF",
    "JPEG2000",
)
"""Formats that are decoded. PIL has others, some of which start programs."""
HEAD: Final = 1 << 16
"""Bytes of a JPEG that are read first for its header."""
SMALL: Final = 1 << 26
"""Bytes of a decoded image that a file of any size may claim."""
PIXELS_PER_BYTE: Final = 8 * 1032
"""Most pixels of a larger image for each byte of its file: of one bit each, compressed by deflate,
which cannot do better than 1032:1."""
DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""Exceptions of PIL for damaged files."""
TAG: Final = "upright, by range, on white"
JPEG_MODES: Final = {1: "L", 3: "RGB", 4: "CMYK"}
"""Mode of PIL by number of components."""
_JPEG: Final = b"\xff\xd8"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA: Final = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


class PictureHeader(NamedTuple):
    """What is known of an image file without its pixels.

    Attributes:
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        orientation: how the stored image is turned, 1…8 as in EXIF.
        mode: of PIL.
        bits: of each channel in the file.
        channels: number of channels of the mode.
        has_alpha: whether pixels can be transparent.
    """

    width: int
    height: int
    orientation: int
    mode: str
    bits: int
    channels: int
    has_alpha: bool

    @property
    def is_wide(self) -> bool:
        """Whether the image is 16-bit grey when it is decoded."""
        return is_wide(self.mode)

    @property
    def is_plain(self) -> bool:
        """Whether the stored pixels are the image: neither turned, nor transparent, nor wide."""
        if self.is_wide:
            stored = self.mode.startswith("I;16") and self.bits == 16
            return stored and self.orientation == UPRIGHT and not self.has_alpha
        return self.orientation == UPRIGHT and not self.has_alpha and self.mode != "LAB"


def read_header(path: Path) -> PictureHeader:
    """Read the header of an image file.

    The pixels are decoded only if their range must be known: of floats and 32-bit integers.

    Raises:
        DamagedImage: ``empty``, ``not_an_image``, ``oversized`` (more than ``MAX_PIXELS``, or more
            than a file of this size can contain), ``too_small`` (a side under ``MIN_SIDE``),
            ``value_range`` (see ``wide_to_16bit``), ``truncated`` or ``unreadable``.
    """
    with _opened(path) as (file, file_size):
        if (jpeg := _read_jpeg_header(file, file_size)) is not None:
            size = upright_size(jpeg.width, jpeg.height, jpeg.orientation)
            mode = JPEG_MODES[jpeg.components]
            return PictureHeader(*size, jpeg.orientation, mode, 8, jpeg.components, False)
        image = _open(file, file_size)
        size, mode, bits = image.size, image.mode, bits_per_channel(image)
        orientation, is_upright = _orientation(image), _has_upright_size(image)
        if isinstance(image, PngImageFile) and _has_late_metadata(file):
            image.load()
            orientation = _orientation(image)
        if is_wide(image.mode) and not has_declared_range(image):
            image.load()
            wide_to_16bit(image)
        if not is_upright:
            size = upright_size(*size, orientation)
        return PictureHeader(
            *size, orientation, mode, bits, len(image.getbands()), _has_alpha(image)
        )


def reading_tag(path: Path) -> str:
    """How a file is read, if not by its stored pixels alone; '' if it is, or if it is damaged.

    Part of the keys of what is made of pictures and stored: earlier versions ignored orientation,
    transparency and ranges, and had the same keys for all other files.
    """
    try:
        return "" if read_header(path).is_plain else TAG
    except DamagedImage:
        return ""


def inspect_header(path: Path) -> str:
    """The kind of damage that the header shows, see ``read_header``; '' for none."""
    try:
        read_header(path)
    except DamagedImage as error:
        return error.kind
    return ""


def decode(
    path: Path, shrink: Callable[[tuple[int, int]], float] | None = None, *, grey: bool = False
) -> Image.Image:
    """Decode a file to an upright image in its own mode; ``I;16`` for more than 8 bits in grey.

    Of animations and files of several pages, the first image.

    Args:
        path: the file.
        shrink: maximum reduction as a function of the stored (width, height): a JPEG is decoded 2,
            4 or 8 times smaller, with less work; other formats are not reduced.
        grey: decode only the luma of a JPEG with colours.

    Raises:
        DamagedImage: if the file is not a complete image, see ``read_header``; ``transparent`` if
            nothing is visible.
    """
    with _opened(path) as (file, size):
        if (jpeg := _read_jpeg_header(file, size)) is not None:
            data = file.read()
            jpeg_header.check_markers(jpeg_header.segments(data))
            return upright(_decode_jpeg(jpeg, data, shrink, grey), jpeg.orientation)
        image = _open(file, size)
        if isinstance(image, PngImageFile):
            scale_transparent_colour(image)
        image.load()
        # PIL has turned TIFF files already.
        orientation = UPRIGHT if isinstance(image, TiffImageFile) else _orientation(image)
        visible = with_alpha(image)
        if _is_invisible(visible):
            raise DamagedImage("transparent", "every pixel is transparent")
        return upright(wide_to_16bit(visible), orientation)


def _decode_jpeg(
    header: jpeg_header.Header,
    data: bytes,
    shrink: Callable[[tuple[int, int]], float] | None,
    grey: bool,
) -> Image.Image:
    """Decode a checked JPEG with PIL's libjpeg, without PIL's own pass over its markers.

    That pass takes a fifth of the time of a file of 300 px; the values are the same.
    """
    width, height = header.width, header.height
    mode = "L" if grey and header.components == 3 else JPEG_MODES[header.components]
    _check_claim(width, height, header.components, len(data))
    scale = 1
    if shrink is not None:
        most = max(shrink((width, height)), 1.0)
        least = min(side // max(1, int(side / most)) for side in (width, height))
        scale = max(s for s in (1, 2, 4, 8) if s <= least)
    # Every pixel is written, or an error raised: no need to fill the image before.
    image = Image.new(mode, (-(-width // scale), -(-height // scale)), None)
    # The values of CMYK are inverted, as Adobe's programs write them.
    stored = "CMYK;I" if mode == "CMYK" else mode
    try:
        image.frombytes(data, "jpeg", stored, "", scale, 0)
    except ValueError as error:
        if "not enough" in str(error):
            raise DamagedImage("truncated", "the file is truncated") from None
        raise
    return image


def _open(file: BinaryIO, size: int) -> Image.Image:
    """Open an image, and check what its header claims.

    Args:
        file: at its beginning.
        size: its bytes.
    """
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise DamagedImage("too_small", f"{width}x{height} px")
    if width * height > MAX_PIXELS:
        raise DamagedImage("oversized", f"the header claims {width}×{height} px")
    check_sign(image)
    _check_claim(
        width, height, len(image.getbands()) * (4 if image.mode in ("I", "F") else 1), size
    )
    return image


def _check_claim(width: int, height: int, bytes_per_pixel: int, size: int) -> None:
    """Compare what a header claims with the size of the file in bytes."""
    if width * height * bytes_per_pixel > SMALL and width * height > PIXELS_PER_BYTE * size:
        raise DamagedImage("oversized", f"the header claims {width}×{height} px in {size} bytes")


def _read_jpeg_header(file: BinaryIO, size: int) -> jpeg_header.Header | None:
    """The checked header of a JPEG, ``None`` of another file; ``file`` stays at its beginning."""
    data = file.read(HEAD)
    if not data.startswith(_JPEG):
        file.seek(0)
        return None
    try:
        header = jpeg_header.read_header(data)
    except DamagedImage as error:
        if error.kind != "truncated" or len(data) == size:
            raise
        header = jpeg_header.read_header(data + file.read())
    file.seek(0)
    if header.precision != 8:
        raise DamagedImage("unreadable", f"a JPEG of {header.precision} bits")
    jpeg_header.check_size(header, size)
    return header


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, from the metadata that have been read."""
    if _has_upright_size(image):
        assert isinstance(image, TiffImageFile)
        value = image.tag_v2.get(Base.Orientation)
        return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    if exif is None and isinstance(profile := image.info.get("Raw profile type exif"), str):
        with suppress(ValueError):  # of ImageMagick: a name, a length, and hexadecimal digits
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    if xmp is None and isinstance(packet := image.info.get("XML:com.adobe.xmp"), str):
        xmp = packet.encode(errors="replace")
    return read_orientation(
        exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b""
    )


def _has_upright_size(image: Image.Image) -> bool:
    """Whether PIL gives the size of the upright image: of a TIFF file with its own orientation."""
    return isinstance(image, TiffImageFile) and Base.Orientation in image.tag_v2


def _has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG file has metadata after its pixels, which PIL reads with them."""
    position = file.tell()
    file.seek(len(_PNG))
    pixels = late = False
    while not late and len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        late = pixels and kind in _PNG_METADATA
        pixels |= kind == b"IDAT"
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    return late


def _is_invisible(image: Image.Image) -> bool:
    """Whether nothing is visible: often an alpha channel that a program did not fill.

    Args:
        image: as from ``with_alpha``.
    """
    if (colour := image.info.get("transparency")) is not None:
        return image.getextrema() == (colour, colour)
    bands = image.getbands()
    return bands[-1] in ("A", "a") and image.getchannel(bands[-1]).getextrema() == (0, 0)


def _has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size in bytes; what fails within is ``DamagedImage``."""
    with _as_damaged_image(path):
        size = jpeg_header.check_file(path)
        with path.open("rb") as file:
            yield file, size


@contextmanager
def _as_damaged_image(path: Path) -> Iterator[None]:
    """Convert what PIL raises for a damaged file to ``DamagedImage``, with the name of the file."""
    try:
        with warnings.catch_warnings():
            # PIL warns about damaged metadata in files whose pixels are intact.
            warnings.simplefilter("ignore")
            yield
    except DamagedImage as error:
        raise DamagedImage(error.kind, f"{path}: {error}") from None
    except UnidentifiedImageError:
        kind = "empty" if path.stat().st_size == 0 else "not_an_image"
        raise DamagedImage(kind, f"{path}: not an image file") from None
    except Image.DecompressionBombError as error:
        raise DamagedImage("oversized", f"{path}: {error}") from None
    except DECODER_ERRORS as error:
        if is_exhausted(error):
            raise
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise DamagedImage(kind, f"{path}: {error}") from None
