"""Where an image is cut: the crop boxes of training and validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class Box(NamedTuple):
    """A crop in pixels of the image as stored."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RandomResizedCrop:
    """Random area and aspect ratio (Szegedy et al., 2015), as torchvision draws them.

    Args:
        scale: range of the crop's share of the image area, 0 < low <= high <= 1.
        ratio: range of width / height.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        log_ratio = np.log(self.ratio)
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                return Box(int(top), int(left), h, w)
        # An image too long or too tall for every draw: the largest centred box of a legal ratio.
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, max(1, round(height * aspect)))
        h = min(height, max(1, round(width / aspect)))
        return Box((height - h) // 2, (width - w) // 2, h, w)


@dataclass(frozen=True)
class CentreCrop:
    """The centred square whose side is ``pct`` of the short side.

    The same pixels as the usual "resize the short side to size / pct, then crop size" of
    validation, cut before the resize instead of after it.
    """

    pct: float

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        side = max(1, round(min(height, width) * self.pct))
        return Box((height - side) // 2, (width - side) // 2, side, side)


Crop = RandomResizedCrop | CentreCrop


@dataclass(frozen=True)
class PadCrop:
    """Zeros around an image, then a cut of its old size at random, as torchvision's ``RandomCrop``.

    Args:
        padding: pixels on each side.
    """

    padding: int

    def corners(self, seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
        """[samples, 2] first row and column of each sample's cut in the padded image.

        Drawn for a whole epoch at once: a generator a sample would cost more than its copy.
        """
        rng = np.random.default_rng((seed, epoch, 4))
        return rng.integers(0, 2 * self.padding + 1, (samples, 2))

    def cut(self, images: Tensor, corners: Tensor) -> Tensor:
        """A batch of images [B, C, H, W], each cut at its own corner [B, 2], as one gather."""
        count, channels, height, width = images.shape
        padded = F.pad(images, (self.padding,) * 4)
        which = torch.arange(count, device=images.device)
        channel = torch.arange(channels, device=images.device)
        rows = corners[:, :1] + torch.arange(height, device=images.device)
        columns = corners[:, 1:] + torch.arange(width, device=images.device)
        return padded[
            which[:, None, None, None],
            channel[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
