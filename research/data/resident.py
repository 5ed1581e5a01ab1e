"""Small data sets that are kept in memory, on the device if they fit, without workers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from research.batch import ClassificationBatch
from research.data.crops import PadCrop
from research.data.loader import SampleKey


class ResidentImages:
    """Labelled images of one size in memory, copied to a device at most once.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        on_device: copy them to an accelerator.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], *, on_device: bool
    ) -> None:
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels)
        self.on_device = on_device
        self.copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def stays_on(self, device: torch.device) -> bool:
        """Whether batches are created on this device rather than copied to it."""
        return device.type == "cpu" or self.on_device

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on the device where batches for ``device`` are created."""
        if device.type == "cpu" or not self.on_device:
            return self.images, self.labels
        if device not in self.copies:
            self.copies[device] = self.images.to(device), self.labels.to(device)
        return self.copies[device]


class ResidentSamples:
    """One split as batches, gathered on the device of the images.

    Args:
        images: uint8 [N, 3, H, W], also of other splits.
        labels: int64 [N], on the same device.
        positions: indices of this split's images.
        crop: random crops; ``None`` for whole images.
        size: side of the batches' images in pixels; resized (bilinear, antialiased) if it differs.
        seed: seed of the run; crops are drawn from (seed, epoch).
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
        self.skipped: dict[str, int] = {}
        self.drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def sample_name(self, index: int) -> str:
        return f"image {int(self.positions[index])}"

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        index = torch.tensor([key.index for key in keys], dtype=torch.int64)
        index = index.to(self.images.device, non_blocking=True)
        positions = self.positions[index]
        images = self.images[positions]
        if self.crop is not None:
            images = self.crop.crop(images, self._corners(self.crop, keys[0].epoch)[index])
        return ClassificationBatch(index, resize(images, self.size), self.labels[positions])

    def _corners(self, crop: PadCrop, epoch: int) -> Tensor:
        if self.drawn is None or self.drawn[0] != epoch:
            corners = torch.from_numpy(crop.corners(self.seed, epoch, len(self)))
            self.drawn = epoch, corners.to(self.images.device, non_blocking=True)
        return self.drawn[1]


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [B, 3, H, W] to [B, 3, size, size], bilinear with antialiasing, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    floats = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return floats.round().clamp(0, 255).to(torch.uint8)
