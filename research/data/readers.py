"""Read an image file as a sample of fixed size: pixels, or the coefficients of the JPEG.

Everything that depends on the size of the file is done here, in the loader's workers: decoding,
crop, resize. Both readers use the same crop boxes; a ``BitstreamReader`` aligns them to MCUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from research.compression.blocks import Blocks
from research.compression.dct import block_dct, dct_basis, rgb_to_ycbcr
from research.compression.geometry import crop_and_resize, snap_box, upright
from research.compression.jpeg import Planes, UnsupportedJpeg, read_planes, require_jpegio
from research.compression.jpeg_header import check_file
from research.compression.selection import Selection
from research.data.crops import Crop
from research.data.image_files import decode
from research.data.image_modes import resize_to_rgb
from research.utils.conditions import is_exhausted
from research.utils.errors import DamagedImage


class Sample(NamedTuple):
    """One image.

    Attributes:
        arrays: uint8 [3, S, S] pixels; or int16 ``y`` [S/8, S/8, k_luma] and ``cbcr``
            [2, S/16, S/16, k_chroma].
        fallback: why the file was not read in the usual way (``cmyk``, ``not_jpeg``, …), or ''.
    """

    arrays: tuple[NDArray[np.generic], ...]
    fallback: str = ""


class Reader(Protocol):
    """Reads files as samples and stacks samples to the inputs of a batch."""

    def read(self, path: Path, crop: Crop, rng: np.random.Generator) -> Sample: ...

    def stack(self, samples: list[Sample]) -> torch.Tensor | Blocks: ...


class PixelReader:
    """Reads pixels of any image format; crops are resized with antialiased bilinear filtering.

    Args:
        size: side of the square result, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, path: Path, crop: Crop, rng: np.random.Generator) -> Sample:
        image = decode(path)
        box = crop.box(image.height, image.width, rng)
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        resized = resize_to_rgb(image, (self.size, self.size), edges)
        pixels = np.asarray(resized).transpose(2, 0, 1)
        return Sample((pixels,), fallback="cmyk" if image.mode == "CMYK" else "")

    def stack(self, samples: list[Sample]) -> torch.Tensor:
        if not samples:
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.from_numpy(np.stack([sample.arrays[0] for sample in samples]))


class BitstreamReader:
    """Reads the quantised coefficients of JPEG files; crops and resizes in the DCT domain.

    Files without usable coefficients (another format, CMYK, 12 bit, …) are decoded to pixels and
    transformed; ``Sample.fallback`` is the reason. Turned images are turned block by block, see
    ``geometry.upright``.

    Args:
        size: side of the square result in pixels, a multiple of 16.
        selection: the frequencies to return.
    """

    def __init__(self, size: int, selection: Selection) -> None:
        require_jpegio()
        self.size = size
        self.selection = selection
        self.pixels = PixelReader(size)
        self.luma_basis = dct_basis()[list(selection.luma)]
        self.chroma_basis = dct_basis()[list(selection.chroma)]

    def read(self, path: Path, crop: Crop, rng: np.random.Generator) -> Sample:
        try:
            planes = self._planes(path)
        except UnsupportedJpeg as error:
            fallback = error.reason
        except DamagedImage as error:
            raise DamagedImage(error.kind, f"{path}: {error}") from None
        except OSError as error:
            if is_exhausted(error):
                raise
            raise DamagedImage("unreadable", f"{path}: {error}") from None
        else:
            return self._crop(planes, crop, rng)
        pixels = self.pixels.read(path, crop, rng).arrays[0]
        return Sample(self._transform(pixels), fallback)

    def _crop(self, planes: Planes, crop: Crop, rng: np.random.Generator) -> Sample:
        header = planes.header
        box = snap_box(header, *crop.box(header.height, header.width, rng))
        y, cbcr = crop_and_resize(planes, box, self.size, self.selection)
        return Sample((_int16(y), _int16(cbcr)))

    def stack(self, samples: list[Sample]) -> Blocks:
        grid = self.size // 8
        if not samples:
            y = torch.empty(0, grid, grid, len(self.selection.luma), dtype=torch.int16)
            chroma_grid, channels = grid // 2, len(self.selection.chroma)
            return Blocks(y, y.new_empty(0, 2, chroma_grid, chroma_grid, channels))
        luma, chroma = zip(*(sample.arrays for sample in samples), strict=True)
        return Blocks(torch.from_numpy(np.stack(luma)), torch.from_numpy(np.stack(chroma)))

    @staticmethod
    def _planes(path: Path) -> Planes:
        check_file(path)
        with path.open("rb") as file:
            signature = file.read(2)
        if signature and signature != b"\xff\xd8":
            raise UnsupportedJpeg("not_jpeg")
        return upright(read_planes(path))

    def _transform(self, pixels: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
        rgb = torch.from_numpy(pixels.astype(np.float32))[None]
        y, cbcr = rgb_to_ycbcr(rgb)
        luma = block_dct(y - 128, self.luma_basis)[0].permute(1, 2, 0)
        chroma = block_dct(cbcr - 128, self.chroma_basis)[0].permute(0, 2, 3, 1)
        return _int16(luma.numpy()), _int16(chroma.numpy())


def _int16(coefficients: NDArray[np.float32]) -> NDArray[np.int16]:
    # Damaged entropy-coded data can decode to arbitrarily large values.
    return np.clip(np.rint(coefficients), -32768, 32767).astype(np.int16)
