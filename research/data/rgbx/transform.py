"""Device transform of RGB + X frames: conversion to normalised floats, and augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from research.batch import DetectionBatch
from research.data.frames.transform import (
    FrameAugmentation,
    color_jitter,
    noise_like,
    random_flip_zoom,
)
from research.data.rgbx.arrays import COLOURS
from research.data.transforms import DeviceTransform

NUM_COLOURS = len(COLOURS)
MIN_STD = 1e-6
"""A channel with a smaller standard deviation counts as constant, and is only centred: other frames
may differ. A level of 16 bits is 15 times as much: channels of event counts may have few levels."""


class RgbxAugmentation(FrameAugmentation):
    """Parameters of the random augmentation of RGB + X frames.

    Flips and zoom are the same for all channels of a frame; brightness and contrast change the
    colours alone.

    Args:
        flip: mirror half of the frames.
        flip_vertical: flip half of the frames vertically; for scenes without up and down.
        zoom: range of the scale, about a random point; below 1 the frame is padded with the mean.
        brightness: largest change of the colours' mean, up or down, on a 0…1 scale.
        contrast: largest relative change of the colours' differences from their mean.
        noise: standard deviation of Gaussian noise, in standard deviations of each channel.
        modality_dropout: probability that a frame loses a modality: its colours, or all of its
            X channels, with equal probability.
    """

    def __init__(
        self,
        flip: bool,
        flip_vertical: bool,
        zoom: Sequence[float],
        brightness: float,
        contrast: float,
        noise: float,
        modality_dropout: float,
    ) -> None:
        super().__init__(flip, flip_vertical, zoom, brightness, contrast, noise)
        self.modality_dropout = modality_dropout


class RgbxTransform(DeviceTransform):
    """Converts uint8 or uint16 frames [B, 3 + X, S, S] to normalised floats; augments in training.

    Pixels without data are exactly 0, the mean of the channel: letterbox padding, dropped
    modalities, and the padding of a zoom below 1.

    Args:
        mean: mean of each channel, on a 0…1 scale.
        std: standard deviation of each channel, on a 0…1 scale.
        augmentation: augmentation in training, if any.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: RgbxAugmentation | None,
    ) -> None:
        super().__init__()
        # Type of the last batch: files may have another type than those of training.
        self.dtype = torch.uint8
        self.augmentation = augmentation
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        scale = torch.tensor(std)[:, None, None]
        self.register_buffer("std", torch.where(scale < MIN_STD, 1.0, scale))

    mean: Tensor
    std: Tensor

    def forward(self, batch: DetectionBatch, generator: torch.Generator | None) -> DetectionBatch:
        augmentation = self.augmentation if self.training else None
        self.dtype = batch.inputs.dtype
        # In place from here on: allocating a batch of frames costs more than the arithmetic.
        images = self.floats(batch.inputs).div_(torch.iinfo(self.dtype).max)
        mask = valid_mask(batch.sizes, images.shape[-1])
        if augmentation is not None:
            color_jitter(images[:, :NUM_COLOURS], augmentation, generator, mask)
            images[:, :NUM_COLOURS].clamp_(0, 1)
        images.sub_(self.mean).div_(self.std).mul_(mask[:, None])
        batch = replace(batch, inputs=images)
        if augmentation is None:
            return batch
        if augmentation.modality_dropout:
            _drop_modalities(images, augmentation.modality_dropout, generator)
        batch = random_flip_zoom(batch, augmentation, generator)
        if augmentation.noise:
            noise = noise_like(batch.inputs, generator).mul_(batch.inputs != 0)
            batch.inputs.add_(noise, alpha=augmentation.noise)
        return batch

    def to_images(self, batch: DetectionBatch) -> list[Tensor]:
        """The colours, then each X channel in grey.

        16-bit X channels are stretched to their own range, see ``arrays.to_pil_images``.
        """
        pixels = (batch.inputs * self.std + self.mean).clamp(0, 1)
        extra = pixels[:, NUM_COLOURS:]
        if self.dtype != torch.uint8:
            low, high = extra.amin((2, 3), keepdim=True), extra.amax((2, 3), keepdim=True)
            extra = (extra - low) / (high - low).clamp(min=1e-6)
        planes = [plane[:, None].expand(-1, NUM_COLOURS, -1, -1) for plane in extra.unbind(1)]
        return [
            (panel * 255).round().to(torch.uint8) for panel in (pixels[:, :NUM_COLOURS], *planes)
        ]


def valid_mask(sizes: Tensor, size: int) -> Tensor:
    """Pixels of the canvas that are not letterbox padding, for a whole batch.

    Args:
        sizes: [B, 2] height and width of the files.
        size: side of the canvas in pixels.

    Returns:
        [B, size, size] bool, on the device of ``sizes``.
    """
    device = sizes.device
    # The same steps in the same precision as in Letterbox; MPS has no float64.
    sides = sizes.to("cpu" if device.type == "mps" else device).double()
    scale = (size / sides).amin(1, keepdim=True)
    resized = (sides * scale + 0.5).floor().clamp(min=1)
    start = ((size - resized) / 2).floor()[..., None]
    position = torch.arange(size, device=sides.device)
    inside = ((position >= start) & (position < start + resized[..., None])).to(device)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def _drop_modalities(images: Tensor, probability: float, generator: torch.Generator | None) -> None:
    """Set the colours, or all X channels, of random frames to 0, in place."""
    drawn = torch.rand(len(images), generator=generator).to(images.device, non_blocking=True)
    colours, extra = drawn < probability / 2, (drawn >= probability / 2) & (drawn < probability)
    images[:, :NUM_COLOURS].mul_(~colours[:, None, None, None])
    images[:, NUM_COLOURS:].mul_(~extra[:, None, None, None])
