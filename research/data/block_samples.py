"""Batches of block-aligned crops from images that are stored as DCT blocks of one size.

The rows of a prepared store and files read at the stored size go through the same code, so that a
store can be compared with its sources batch by batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.data.crops import CentreCrop
from research.data.loader import SampleKey
from research.data.readers import Reader
from research.utils.errors import DamagedImage

MCU = 16
"""Alignment of crops in pixels: a block of subsampled chroma."""


@dataclass(frozen=True)
class BlockCrop:
    """Square crops of whole blocks from a square image.

    Attributes:
        stored: side of the stored image in pixels, a multiple of 16.
        size: side of the crop in pixels, a multiple of 16, at most ``stored``.
    """

    stored: int
    size: int

    @property
    def middle(self) -> int:
        """First row and column of the centre crop, in chroma blocks."""
        return (self.stored - self.size) // MCU // 2

    def corners(self, seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
        """First row and column [samples, 2] of each sample's random crop, in chroma blocks.

        Drawn for a whole epoch at once: a generator per sample would cost more than copying it.
        """
        rng = np.random.default_rng((seed, epoch, 3))
        return rng.integers(0, (self.stored - self.size) // MCU + 1, (samples, 2))

    def centre(self, blocks: Blocks) -> Blocks:
        """The centre crop of a batch of whole images, block-major."""
        luma, chroma = self.slices(self.middle, self.middle)
        return Blocks(blocks.y[:, *luma], blocks.cbcr[:, :, *chroma])

    def slices(self, top: int, left: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of a crop in luma blocks, and in chroma blocks."""
        side = self.size // MCU
        luma = slice(2 * top, 2 * (top + side)), slice(2 * left, 2 * (left + side))
        return luma, (slice(top, top + side), slice(left, left + side))


class BlockCrops(NamedTuple):
    """Crops of several images of the same size.

    Attributes:
        blocks: int16, block-major.
        positions: of the images among those that were asked for, without damaged ones.
        skipped: see ``Batch``.
        left_out: see ``Batch``.
    """

    blocks: Blocks
    positions: list[int]
    skipped: dict[str, int]
    left_out: dict[str, str]


class BlockRows(Protocol):
    """Images of one size as int16 blocks."""

    def name(self, index: int) -> str:
        """The file or row of an image, for messages."""
        ...

    def crop(
        self, indices: NDArray[np.int64], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> BlockCrops:
        """Read one crop of each of several images.

        Args:
            indices: of the images.
            crop: the size of the crops.
            corners: first row and column of each, [B, 2], in chroma blocks.

        Returns:
            int16 block-major crops.
        """
        ...


class FileRows:
    """Image files, read at the stored size by a ``BitstreamReader``."""

    def __init__(self, files: Sequence[Path], reader: Reader, file_crop: CentreCrop) -> None:
        self.files = files
        self.reader = reader
        self.file_crop = file_crop

    def name(self, index: int) -> str:
        return str(self.files[index])

    def crop(
        self, indices: NDArray[np.int64], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> BlockCrops:
        luma, chroma = [], []
        positions: list[int] = []
        skipped: Counter[str] = Counter()
        left_out: dict[str, str] = {}
        crops = zip(indices.tolist(), corners.tolist(), strict=True)
        for position, (index, corner) in enumerate(crops):
            try:
                sample = self.reader.read(
                    self.files[index], self.file_crop, np.random.default_rng(0)
                )
            except DamagedImage as error:
                skipped[f"left_out/{error.kind}"] += 1
                left_out[self.name(index)] = error.kind
                continue
            if sample.fallback:
                skipped[f"fallback/{sample.fallback}"] += 1
            y, cbcr = sample.arrays
            luma_slices, chroma_slices = crop.slices(*corner)
            luma.append(y[luma_slices])
            chroma.append(cbcr[:, *chroma_slices])
            positions.append(position)
        if not positions:
            empty = self.reader.stack([])
            assert isinstance(empty, Blocks)
            return BlockCrops(crop.centre(empty), positions, dict(skipped), left_out)
        blocks = Blocks(torch.from_numpy(np.stack(luma)), torch.from_numpy(np.stack(chroma)))
        return BlockCrops(blocks, positions, dict(skipped), left_out)


class BlockSamples:
    """One split as batches of block crops.

    Args:
        rows: the images.
        labels: their class indices.
        crop: size of the crops.
        seed: seed of the run; random crops are drawn from (seed, epoch).
        random: random crops if True, centre crops otherwise.
        skipped: counts of samples that are not among ``rows``, by kind of damage.
    """

    def __init__(
        self,
        rows: BlockRows,
        labels: Sequence[int] | Tensor,
        crop: BlockCrop,
        seed: int,
        *,
        random: bool,
        skipped: dict[str, int] | None = None,
    ) -> None:
        self.rows = rows
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.crop = crop
        self.seed = seed
        self.random = random
        self.skipped = skipped or {}
        self.drawn: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def sample_name(self, index: int) -> str:
        return self.rows.name(index)

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        indices = np.array([key.index for key in keys], dtype=np.int64)
        corners = self._corners(keys[0].epoch if keys else 0)[indices]
        crops = self.rows.crop(indices, self.crop, corners)
        index = torch.from_numpy(indices[crops.positions])
        return ClassificationBatch(
            index,
            crops.blocks,
            self.labels[index],
            skipped=crops.skipped,
            left_out=crops.left_out,
        )

    def _corners(self, epoch: int) -> NDArray[np.int64]:
        if not self.random:
            epoch = 0
        if self.drawn is None or self.drawn[0] != epoch:
            corners = np.full((len(self), 2), self.crop.middle)
            if self.random:
                corners = self.crop.corners(self.seed, epoch, len(self))
            self.drawn = epoch, corners
        return self.drawn[1]
