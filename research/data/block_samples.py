"""Images of one stored size as rows of blocks, and the block crops cut from them.

A warehouse's rows and files read the way a warehouse would hold them go through the same code, so
that a store can be checked against its sources, batch for batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
"""Pixels to which crops snap: a block of subsampled chroma."""


@dataclass(frozen=True)
class BlockCrop:
    """Which squares of whole blocks are cut from a square image.

    Attributes:
        stored: side of the stored image in pixels, a multiple of 16.
        size: side of the cut in pixels, a multiple of 16, at most ``stored``.
    """

    stored: int
    size: int

    @property
    def middle(self) -> int:
        """First row and column of the centred cut, in chroma blocks."""
        return (self.stored - self.size) // MCU // 2

    def corners(self, seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
        """[samples, 2] first row and column of each sample's random cut, in chroma blocks.

        Drawn for a whole epoch at once: a generator a sample would cost more than its copy.
        """
        rng = np.random.default_rng((seed, epoch, 3))
        return rng.integers(0, (self.stored - self.size) // MCU + 1, (samples, 2))

    def centre(self, blocks: Blocks) -> Blocks:
        """The centred cut of a batch of whole images, block-major."""
        luma, chroma = self.slices(self.middle, self.middle)
        return Blocks(blocks.y[:, *luma], blocks.cbcr[:, :, *chroma])

    def slices(self, top: int, left: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of a cut in luma blocks, and in chroma blocks."""
        side = self.size // MCU
        luma = slice(2 * top, 2 * (top + side)), slice(2 * left, 2 * (left + side))
        return luma, (slice(top, top + side), slice(left, left + side))


class BlockRows(Protocol):
    """Images of one size as int16 blocks."""

    def cut(
        self, indices: Sequence[int], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> tuple[Blocks, list[int], dict[str, int]]:
        """Cuts from several images.

        Args:
            indices: which images.
            crop: the size of a cut.
            corners: [B, 2] where each begins, in chroma blocks.

        Returns:
            int16 block-major cuts; the places in ``indices`` that they belong to, without
            those that turned out damaged; damage by kind.
        """
        ...


class FileRows:
    """Image files, read whole at the stored size by a ``BitstreamReader``."""

    def __init__(self, files: Sequence[Path], reader: Reader, crop: CentreCrop) -> None:
        self.files = files
        self.reader = reader
        self.crop = crop

    def cut(
        self, indices: Sequence[int], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> tuple[Blocks, list[int], dict[str, int]]:
        luma, chroma = [], []
        kept: list[int] = []
        damage: Counter[str] = Counter()
        for place, (index, (top, left)) in enumerate(zip(indices, corners.tolist(), strict=True)):
            try:
                sample = self.reader.read(self.files[index], self.crop, np.random.default_rng(0))
            except DamagedImage as error:
                damage[f"left_out/{error.kind}"] += 1
                continue
            if sample.detour:
                damage[f"fallback/{sample.detour}"] += 1
            y, cbcr = sample.arrays
            in_luma, in_chroma = crop.slices(top, left)
            luma.append(y[in_luma])
            chroma.append(cbcr[:, *in_chroma])
            kept.append(place)
        if not kept:
            whole = self.reader.stack([])
            assert isinstance(whole, Blocks)
            return crop.centre(whole), kept, dict(damage)
        blocks = Blocks(torch.from_numpy(np.stack(luma)), torch.from_numpy(np.stack(chroma)))
        return blocks, kept, dict(damage)


class BlockSamples:
    """One split as batches of block crops.

    Args:
        rows: the images.
        labels: a class index each.
        crop: what is cut.
        seed: of the run; with the epoch it draws the random cuts.
        random: random cuts; centred ones when false.
        left_out: samples that are not among ``rows``, by kind of damage.
    """

    def __init__(
        self,
        rows: BlockRows,
        labels: Sequence[int] | Tensor,
        crop: BlockCrop,
        seed: int,
        *,
        random: bool,
        left_out: dict[str, int] | None = None,
    ) -> None:
        self.rows = rows
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.crop = crop
        self.seed = seed
        self.random = random
        self.left_out = left_out or {}
        self.drawn: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        indices = [key.index for key in keys]
        corners = self._corners(keys[0].epoch)[indices]
        inputs, kept, damage = self.rows.cut(indices, self.crop, corners)
        index = torch.tensor(indices, dtype=torch.int64)[kept]
        return ClassificationBatch(index, inputs, self.labels[index], skipped=damage)

    def _corners(self, epoch: int) -> NDArray[np.int64]:
        if not self.random:
            epoch = 0
        if self.drawn is None or self.drawn[0] != epoch:
            corners = np.full((len(self), 2), self.crop.middle)
            if self.random:
                corners = self.crop.corners(self.seed, epoch, len(self))
            self.drawn = epoch, corners
        return self.drawn[1]
