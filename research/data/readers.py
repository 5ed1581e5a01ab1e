"""From one file to one fixed-size sample: pixels, or the JPEG's own coefficients.

What depends on a file's own size happens here, in the loader's workers: decoding, the crop box,
the resize. Both readers cut the same boxes; only the grid to which a box snaps differs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from research.compression.blocks import Blocks
from research.compression.dct import block_dct, dct_basis, rgb_to_ycbcr
from research.compression.geometry import crop_and_resize, snap_box
from research.compression.jpeg import MIN_SIDE, Planes, UnsupportedJpeg, read_planes
from research.compression.selection import Selection
from research.data.crops import Crop
from research.utils.errors import DamagedImage


class Sample(NamedTuple):
    """What a reader makes of a file.

    Attributes:
        arrays: uint8 [3, S, S] pixels; or int16 ``y`` [S/8, S/8, k_luma] and ``cbcr``
            [2, S/16, S/16, k_chroma].
        detour: why the file was not read the direct way (``cmyk``, ``not_jpeg``, …), or ''.
    """

    arrays: tuple[NDArray[np.generic], ...]
    detour: str = ""


class Reader(Protocol):
    """Reads one file into one sample and stacks samples into a batch's inputs."""

    def read(self, path: Path, crop: Crop, rng: np.random.Generator) -> Sample: ...

    def stack(self, samples: list[Sample]) -> torch.Tensor | Blocks: ...


def decode(path: Path, before: Callable[[Image.Image], object] | None = None) -> Image.Image:
    """The file's pixels as they are stored (any PIL mode).

    Args:
        path: the file.
        before: does something to the opened image before its pixels are read, such as drafting.

    Raises:
        DamagedImage: when there is nothing whole to decode.
    """
    try:
        with warnings.catch_warnings():
            # PIL warns of damaged metadata in files whose pixels are whole.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(path.read_bytes()))
            width, height = image.size
            if before is not None:
                before(image)
            image.load()
    except UnidentifiedImageError:
        kind = "empty" if path.stat().st_size == 0 else "not_an_image"
        raise DamagedImage(kind, f"{path}: not an image file") from None
    except Image.DecompressionBombError as error:
        raise DamagedImage("oversized", f"{path}: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise DamagedImage(kind, f"{path}: {error}") from None
    if min(width, height) < MIN_SIDE:
        raise DamagedImage("too_small", f"{path}: {width}x{height} px")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the same colours, without PIL's warning of palettes
        image = image.convert("RGBA")
    return image.convert("RGB")


class PixelReader:
    """Decodes any image format and resizes the crop with an antialiased bilinear filter.

    Args:
        size: side of the square result, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, path: Path, crop: Crop, rng: np.random.Generator) -> Sample:
        image = decode(path)
        box = crop.box(image.height, image.width, rng)
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        resized = to_rgb(image).resize((self.size, self.size), Image.Resampling.BILINEAR, box=edges)
        pixels = np.asarray(resized).transpose(2, 0, 1)
        return Sample((pixels,), detour="cmyk" if image.mode == "CMYK" else "")

    def stack(self, samples: list[Sample]) -> torch.Tensor:
        if not samples:
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.from_numpy(np.stack([sample.arrays[0] for sample in samples]))


class BitstreamReader:
    """Reads a JPEG's own quantised coefficients and crops and resizes them as coefficients.

    A file that holds none that we can use (another format, CMYK, 12 bit, …) is decoded to pixels
    and transformed, and says so in ``Sample.detour``.

    Args:
        size: side of the square result in pixels, a multiple of 16.
        selection: the frequencies to ship.
    """

    def __init__(self, size: int, selection: Selection) -> None:
        self.size = size
        self.selection = selection
        self.pixels = PixelReader(size)
        self.luma_basis = dct_basis()[list(selection.luma)]
        self.chroma_basis = dct_basis()[list(selection.chroma)]

    def read(self, path: Path, crop: Crop, rng: np.random.Generator) -> Sample:
        try:
            planes = self._planes(path)
        except UnsupportedJpeg as error:
            pixels = self.pixels.read(path, crop, rng).arrays[0]
            return Sample(self._transform(pixels), error.reason)
        except OSError as error:
            raise DamagedImage("unreadable", f"{path}: {error}") from None
        header = planes.header
        box = snap_box(header, *crop.box(header.height, header.width, rng))
        y, cbcr = crop_and_resize(planes, box, self.size, self.selection)
        return Sample((_int16(y), _int16(cbcr)))

    def stack(self, samples: list[Sample]) -> Blocks:
        grid = self.size // 8
        if not samples:
            y = torch.empty(0, grid, grid, len(self.selection.luma), dtype=torch.int16)
            half, kept = grid // 2, len(self.selection.chroma)
            return Blocks(y, y.new_empty(0, 2, half, half, kept))
        luma, chroma = zip(*(sample.arrays for sample in samples), strict=True)
        return Blocks(torch.from_numpy(np.stack(luma)), torch.from_numpy(np.stack(chroma)))

    @staticmethod
    def _planes(path: Path) -> Planes:
        with path.open("rb") as file:
            start = file.read(2)
        if start and start != b"\xff\xd8":
            raise UnsupportedJpeg("not_jpeg")
        return read_planes(path)

    def _transform(self, pixels: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
        rgb = torch.from_numpy(pixels.astype(np.float32))[None]
        y, cbcr = rgb_to_ycbcr(rgb)
        luma = block_dct(y - 128, self.luma_basis)[0].permute(1, 2, 0)
        chroma = block_dct(cbcr - 128, self.chroma_basis)[0].permute(0, 2, 3, 1)
        return _int16(luma.numpy()), _int16(chroma.numpy())


def _int16(coefficients: NDArray[np.float32]) -> NDArray[np.int16]:
    # Damage inside a whole file's entropy code can give any value at all.
    return np.clip(np.rint(coefficients), -32768, 32767).astype(np.int16)
