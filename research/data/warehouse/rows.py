"""Crops of the coefficients of a store, from its mapped files or from tensors on a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.compression.blocks import Blocks
from research.compression.selection import Selection
from research.data.block_samples import MCU, BlockCrop, BlockCrops
from research.data.warehouse.store import Store

Positions = NDArray[np.int64]


class StoredRows:
    """Crops copied from the mapped files.

    Args:
        store: the store; mapped in the process that reads.
        positions: positions of the samples in the store.
        shipped: frequencies to copy, a prefix of the stored ones.
    """

    def __init__(self, store: Store, positions: Positions, shipped: Selection) -> None:
        self.store = store
        self.positions = positions
        self.luma, self.chroma = len(shipped.luma), len(shipped.chroma)

    def name(self, index: int) -> str:
        return f"row {self.positions[index]} of {self.store.manifest.folder}"

    def crop(
        self, indices: NDArray[np.int64], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> BlockCrops:
        count, side = len(indices), crop.size // MCU
        y = np.empty((count, 2 * side, 2 * side, self.luma), np.int16)
        cbcr = np.empty((count, 2, side, side, self.chroma), np.int16)
        locate, luma, chroma = self.store.locate, self.luma, self.chroma
        # There are few different corners: their slices are made once.
        starts = range((crop.stored - crop.size) // MCU + 1)
        luma_slices = [slice(2 * start, 2 * (start + side)) for start in starts]
        chroma_slices = [slice(start, start + side) for start in starts]
        crops = zip(self.positions[indices].tolist(), corners.tolist(), strict=True)
        for index, (position, (top, left)) in enumerate(crops):
            tensors, row = locate(position)
            y[index] = tensors["y"][row, luma_slices[top], luma_slices[left], :luma]
            cbcr[index] = tensors["cbcr"][row, :, chroma_slices[top], chroma_slices[left], :chroma]
        blocks = Blocks(torch.from_numpy(y), torch.from_numpy(cbcr))
        return BlockCrops(blocks, list(range(count)), {}, {})


class ResidentRows:
    """The same crops of whole tensors on a device, with one gather per tensor.

    Args:
        y: [N, H/8, W/8, 64] or fewer frequencies.
        cbcr: [N, 2, H/16, W/16, 64] or fewer.
        positions: positions of the samples in them.
        shipped: frequencies to copy, a prefix of the stored ones.
    """

    def __init__(self, y: Tensor, cbcr: Tensor, positions: Positions, shipped: Selection) -> None:
        self.y = y[..., : len(shipped.luma)]
        self.cbcr = cbcr[..., : len(shipped.chroma)]
        self.positions = positions

    def name(self, index: int) -> str:
        return f"row {self.positions[index]}"

    def crop(
        self, indices: NDArray[np.int64], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> BlockCrops:
        device, side = self.y.device, crop.size // MCU
        samples = torch.from_numpy(self.positions[indices]).to(device, non_blocking=True)
        samples = samples[:, None, None]
        starts = torch.from_numpy(corners).to(device, non_blocking=True)
        luma, chroma = torch.arange(2 * side, device=device), torch.arange(side, device=device)
        y = self.y[
            samples,
            (2 * starts[:, :1] + luma)[:, :, None],
            (2 * starts[:, 1:] + luma)[:, None, :],
        ]
        rows = (starts[:, :1] + chroma)[:, None, :, None]
        columns = (starts[:, 1:] + chroma)[:, None, None, :]
        plane = torch.arange(2, device=device)[:, None, None]
        cbcr = self.cbcr[samples[..., None], plane, rows, columns]
        return BlockCrops(Blocks(y, cbcr), list(range(len(indices))), {}, {})
