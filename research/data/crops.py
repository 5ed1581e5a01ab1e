"""Crop boxes of training and validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class CropBox(NamedTuple):
    """A crop in pixels of the stored image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RandomResizedCrop:
    """Random area and aspect ratio (Szegedy et al., 2015), distributed as in torchvision.

    Args:
        scale: range of the crop's area as a fraction of the image, 0 < low <= high <= 1.
        ratio: range of width / height.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def box(self, height: int, width: int, rng: np.random.Generator) -> CropBox:
        log_ratio = np.log(self.ratio)
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                return CropBox(int(top), int(left), h, w)
        # The image is too wide or too tall: the largest centred box with a ratio in the range.
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, max(1, round(height * aspect)))
        h = min(height, max(1, round(width / aspect)))
        return CropBox((height - h) // 2, (width - w) // 2, h, w)


@dataclass(frozen=True)
class CentreCrop:
    """The centred square whose side is ``pct`` times the short side.

    The same pixels as "resize the short side to size / pct, then centre crop to size", but cropped
    before the resize.
    """

    pct: float

    def box(self, height: int, width: int, rng: np.random.Generator) -> CropBox:
        side = max(1, round(min(height, width) * self.pct))
        return CropBox((height - side) // 2, (width - side) // 2, side, side)


Crop = RandomResizedCrop | CentreCrop


@dataclass(frozen=True)
class PadCrop:
    """Padding, then a random crop of the original size, as torchvision's ``RandomCrop``.

    Args:
        padding: pixels on each side.
        mode: ``constant`` (black), or ``reflect`` (the image mirrored in its outermost pixels),
            which needs images larger than the padding.
    """

    padding: int
    mode: str = "constant"

    def corners(self, seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
        """First row and column [samples, 2] of each sample's crop in the padded image.

        Drawn for a whole epoch at once: a generator per sample would cost more than copying it.
        """
        rng = np.random.default_rng((seed, epoch, 4))
        return rng.integers(0, 2 * self.padding + 1, (samples, 2))

    def crop(self, images: Tensor, corners: Tensor) -> Tensor:
        """Crop a batch of images [B, C, H, W] at its corners [B, 2], with one gather."""
        count, channels, height, width = images.shape
        padded = self._padded(images)
        image = torch.arange(count, device=images.device)
        channel = torch.arange(channels, device=images.device)
        rows = corners[:, :1] + torch.arange(height, device=images.device)
        columns = corners[:, 1:] + torch.arange(width, device=images.device)
        return padded[
            image[:, None, None, None],
            channel[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def _padded(self, images: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(images, (self.padding,) * 4)
        rows, columns = (  # not F.pad, which reflects no integers on CUDA
            size - 1 - (size - 1 - torch.arange(-self.padding, size + self.padding).abs()).abs()
            for size in images.shape[-2:]
        )
        return images[..., rows.to(images.device)[:, None], columns.to(images.device)]
