"""The device's half of preprocessing for RGB + X frames: normalised floats, and augmentation."""

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

COLOUR_CHANNELS = len(COLOURS)
SMALLEST_STD = 1e-6
"""Below it a channel counts as constant; a level of 16 bits is 15 times as much, and counts of
events may be few levels."""


class RgbxAugmentation(FrameAugmentation):
    """What is drawn anew for every frame of every epoch, alike for all of its channels but light.

    Args:
        flip: mirror half of the frames.
        flip_vertical: turn half of them upside down; for scenes without an above and below.
        zoom: range of the enlargement, about a random place: from 1 on a crop, below 1 the frame
            shrinks on the mean.
        brightness: largest change of the colours' mean, on a 0…1 scale, either way.
        contrast: largest share by which the colours' differences from their mean grow or shrink.
        noise: standard deviation of Gaussian noise, in standard deviations of each channel.
        modality_dropout: probability that a frame loses its colours, or all of its other
            channels, each in half of the cases.
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
    """Makes normalised floats of uint8 or uint16 frames [B, 3 + X, S, S]; augments in training.

    An exact 0 is what is not there, which is the channel's mean: the letterbox's bars, a modality
    that was dropped, what a shrunk frame leaves empty.

    Args:
        mean: of each channel, on a 0…1 scale.
        std: of each channel, on a 0…1 scale.
        augmentation: what happens in training; nothing when null.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: RgbxAugmentation | None,
    ) -> None:
        super().__init__()
        # Of the last batch: a model may meet files of another type than it was trained on.
        self.dtype = torch.uint8
        self.augmentation = augmentation
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None].clamp(min=SMALLEST_STD))

    mean: Tensor
    std: Tensor

    def forward(self, batch: DetectionBatch, generator: torch.Generator | None) -> DetectionBatch:
        change = self.augmentation if self.training else None
        self.dtype = batch.inputs.dtype
        # In place from here on: fresh memory for a batch of frames costs more than the arithmetic.
        images = batch.inputs.float().div_(torch.iinfo(self.dtype).max)
        there = framed(batch.sizes, images.shape[-1])
        if change is not None:
            color_jitter(images[:, :COLOUR_CHANNELS], change, generator, there)
            images[:, :COLOUR_CHANNELS].clamp_(0, 1)
        images.sub_(self.mean).div_(self.std).mul_(there[:, None])
        batch = replace(batch, inputs=images)
        if change is None:
            return batch
        if change.modality_dropout:
            _drop(images, change.modality_dropout, generator)
        batch = random_flip_zoom(batch, change, generator)
        if change.noise:
            noise = noise_like(batch.inputs, generator).mul_(batch.inputs != 0)
            batch.inputs.add_(noise, alpha=change.noise)
        return batch

    def to_images(self, batch: DetectionBatch) -> list[Tensor]:
        """The colours, then a grey panel for each other channel.

        Those of 16 bits, if the last batch had them, are stretched to their own range, see
        ``arrays.pictures``.
        """
        shares = (batch.inputs * self.std + self.mean).clamp(0, 1)
        extra = shares[:, COLOUR_CHANNELS:]
        if self.dtype != torch.uint8:
            low, high = extra.amin((2, 3), keepdim=True), extra.amax((2, 3), keepdim=True)
            extra = (extra - low) / (high - low).clamp(min=1e-6)
        planes = [plane[:, None].expand(-1, COLOUR_CHANNELS, -1, -1) for plane in extra.unbind(1)]
        return [
            (panel * 255).round().to(torch.uint8)
            for panel in (shares[:, :COLOUR_CHANNELS], *planes)
        ]


def framed(sizes: Tensor, size: int) -> Tensor:
    """Where letterboxed frames are on their canvas, as ``Letterbox`` has it.

    Args:
        sizes: [B, 2] height and width of the files.
        size: side of the canvas.

    Returns:
        [B, size, size] bool, on the device of ``sizes``.
    """
    device = sizes.device
    # The same steps in the same precision as in Letterbox, for a whole batch; MPS has no float64.
    sides = sizes.to("cpu" if device.type == "mps" else device).double()
    scale = (size / sides).amin(1, keepdim=True)
    placed = (sides * scale + 0.5).floor().clamp(min=1)
    start = ((size - placed) / 2).floor()[..., None]
    at = torch.arange(size, device=sides.device)
    within = ((at >= start) & (at < start + placed[..., None])).to(device)
    return within[:, 0, :, None] & within[:, 1, None, :]


def _drop(images: Tensor, probability: float, generator: torch.Generator | None) -> None:
    """Sets the colours, or all other channels, of some frames to 0, in place."""
    drawn = torch.rand(len(images), generator=generator).to(images.device)
    colours, others = drawn < probability / 2, (drawn >= probability / 2) & (drawn < probability)
    images[:, :COLOUR_CHANNELS].mul_(~colours[:, None, None, None])
    images[:, COLOUR_CHANNELS:].mul_(~others[:, None, None, None])
