"""Small data sets kept whole in memory, on the device if they fit there; no worker processes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from research.batch import ClassificationBatch
from research.data.crops import PadCrop
from research.data.loader import SampleKey


class Resident:
    """Images of one size with a class each, in memory, copied to a device once.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        keep: copy them to an accelerator.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], *, keep: bool) -> None:
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels)
        self.keep = keep
        self.copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def stays_on(self, device: torch.device) -> bool:
        """Whether batches are made on this device, and not shipped to it."""
        return device.type == "cpu" or self.keep

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels where batches for this device are made."""
        if device.type == "cpu" or not self.keep:
            return self.images, self.labels
        if device not in self.copies:
            self.copies[device] = self.images.to(device), self.labels.to(device)
        return self.copies[device]


class ResidentSamples:
    """One split as batches gathered where the images are.

    Args:
        images: uint8 [N, 3, H, W], of this split and perhaps of others.
        labels: int64 [N], on the same device.
        positions: which of them are this split's.
        crop: random cuts; null takes the images whole.
        size: side of the batches' images in pixels; others are resized (bilinear, antialiased).
        seed: of the run; with the epoch it draws the cuts.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        positions: NDArray[np.int64],
        crop: PadCrop | None,
        size: int,
        seed: int,
    ) -> None:
        self.images = images
        self.labels = labels
        self.positions = torch.from_numpy(positions).to(images.device)
        self.crop = crop
        self.size = size
        self.seed = seed
        self.left_out: dict[str, int] = {}
        self.drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        index = torch.tensor([key.index for key in keys], dtype=torch.int64)
        index = index.to(self.images.device)
        which = self.positions[index]
        images = self.images[which]
        if self.crop is not None:
            images = self.crop.cut(images, self._corners(self.crop, keys[0].epoch)[index])
        return ClassificationBatch(index, resized(images, self.size), self.labels[which])

    def _corners(self, crop: PadCrop, epoch: int) -> Tensor:
        if self.drawn is None or self.drawn[0] != epoch:
            corners = torch.from_numpy(crop.corners(self.seed, epoch, len(self)))
            self.drawn = epoch, corners.to(self.images.device)
        return self.drawn[1]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, H, W] to [B, 3, size, size], bilinear with antialiasing, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    floats = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return floats.round().clamp(0, 255).to(torch.uint8)
