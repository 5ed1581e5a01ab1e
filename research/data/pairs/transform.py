"""Device transforms of pairs: conversion to normalised floats, random mirroring and swapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from research.batch import PairBatch, PhotoBatch
from research.data.pairs.samples import PhotoIndex
from research.data.transforms import DeviceTransform, bernoulli

MIN_STD = 1e-6
"""A feature with a smaller standard deviation counts as constant."""


class PairTransform(DeviceTransform):
    """Converts uint8 photos [B, 2, 3, S, S] or [B, 3, S, S] to normalised floats.

    In training mode, half of the pairs are mirrored (both photos alike), and half are swapped.

    Args:
        mean: RGB means on a 0…1 scale.
        std: RGB standard deviations on a 0…1 scale.
        flip: mirror half of the pairs in training.
        swap: swap half of the pairs in training.
        photo_index: names of the photos.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool,
        swap: bool,
        photo_index: PhotoIndex,
    ) -> None:
        super().__init__()
        self.photo_index = photo_index
        self.flip = flip
        self.swap = swap
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    mean: Tensor
    std: Tensor

    def forward(
        self, batch: PairBatch | PhotoBatch, generator: torch.Generator | None
    ) -> PairBatch | PhotoBatch:
        pixels = batch.inputs
        if self.training and self.flip:
            chosen = bernoulli(len(pixels), generator, pixels.device)
            chosen = chosen.view(-1, *[1] * (pixels.dim() - 1))
            pixels = torch.where(chosen, pixels.flip(-1), pixels)
        images = self.floats(pixels).div_(255).sub_(self.mean).div_(self.std)
        batch = replace(batch, inputs=images)
        if self.training and self.swap and isinstance(batch, PairBatch):
            return swap_pairs(batch, bernoulli(len(images), generator, images.device))
        return batch

    def to_images(self, batch: PairBatch) -> list[Tensor]:
        """The first photos, then the second, as loaded."""
        pixels = (batch.inputs * self.std + self.mean) * 255
        return list(pixels.round().clamp(0, 255).to(torch.uint8).unbind(1))

    def names(self, batch: PairBatch) -> dict[str, list[str]]:
        return self.photo_index.names(batch)


class FeatureTransform(DeviceTransform):
    """Standardises features [B, 2, D] or [B, D]; swaps half of the pairs in training.

    Args:
        mean: [D] means over the training photos.
        std: [D] standard deviations over the training photos.
        swap: swap half of the pairs in training.
        photo_index: names and pixels of the photos.
    """

    def __init__(self, mean: Tensor, std: Tensor, swap: bool, photo_index: PhotoIndex) -> None:
        super().__init__()
        self.photo_index = photo_index
        self.swap = swap
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float().clamp(min=MIN_STD))

    mean: Tensor
    std: Tensor
    shows: str = "photos in place of their features"

    def forward(
        self, batch: PairBatch | PhotoBatch, generator: torch.Generator | None
    ) -> PairBatch | PhotoBatch:
        batch = replace(batch, inputs=(batch.inputs.float() - self.mean) / self.std)
        if self.training and self.swap and isinstance(batch, PairBatch):
            return swap_pairs(batch, bernoulli(len(batch.inputs), generator, batch.inputs.device))
        return batch

    def to_images(self, batch: PairBatch) -> list[Tensor]:
        """The first photos, then the second, read from their files."""
        return self.photo_index.images(batch)

    def names(self, batch: PairBatch) -> dict[str, list[str]]:
        return self.photo_index.names(batch)


def swap_pairs(batch: PairBatch, chosen: Tensor) -> PairBatch:
    """A copy of the batch in which the chosen pairs have their photos swapped.

    Args:
        batch: the batch, which is not modified.
        chosen: [B] bool, True for pairs to swap.
    """
    mask = chosen.view(-1, *[1] * (batch.inputs.dim() - 1))
    return replace(
        batch,
        inputs=torch.where(mask, batch.inputs.flip(1), batch.inputs),
        preference=torch.where(chosen, 1 - batch.preference, batch.preference),
        photos=torch.where(chosen[:, None], batch.photos.flip(1), batch.photos),
    )
