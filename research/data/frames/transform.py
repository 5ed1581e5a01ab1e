"""Device transform of frames: conversion to float, and augmentation of images and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from research.batch import DetectionBatch
from research.data.transforms import DeviceTransform, bernoulli

MIN_VISIBLE = 0.25
"""Boxes are dropped if a smaller fraction of their area remains in the frame after the zoom; of
ignore regions any remaining part is kept."""


class FrameAugmentation:
    """Parameters of the random augmentation of frames (guide 5's list).

    Args:
        flip: mirror half of the frames.
        flip_vertical: flip half of the frames vertically; for scenes without up and down.
        zoom: range of the scale, about a random point; below 1 the frame is padded with black.
        brightness: largest change of the mean, up or down, on a 0…1 scale.
        contrast: largest relative change of the differences from the mean.
        noise: standard deviation of Gaussian noise, on a 0…1 scale.
    """

    def __init__(
        self,
        flip: bool,
        flip_vertical: bool,
        zoom: Sequence[float],
        brightness: float,
        contrast: float,
        noise: float,
    ) -> None:
        self.flip = flip
        self.flip_vertical = flip_vertical
        self.zoom = (float(zoom[0]), float(zoom[1]))
        self.brightness = brightness
        self.contrast = contrast
        self.noise = noise


class FrameTransform(DeviceTransform):
    """Converts uint8 frames [B, 3, S, S] to floats in [0, 1]; augments in training.

    Args:
        augmentation: augmentation in training, if any.
    """

    def __init__(self, augmentation: FrameAugmentation | None) -> None:
        super().__init__()
        self.augmentation = augmentation

    def forward(self, batch: DetectionBatch, generator: torch.Generator | None) -> DetectionBatch:
        # In place from here on: allocating a batch of frames costs more than the arithmetic.
        batch = replace(batch, inputs=self.floats(batch.inputs).div_(255))
        augmentation = self.augmentation
        if not self.training or augmentation is None:
            return batch
        batch = random_flip_zoom(batch, augmentation, generator)
        color_jitter(batch.inputs, augmentation, generator)
        if augmentation.noise:
            batch.inputs.add_(noise_like(batch.inputs, generator), alpha=augmentation.noise)
        return replace(batch, inputs=batch.inputs.clamp_(0, 1))

    def to_images(self, batch: DetectionBatch) -> list[Tensor]:
        return [(batch.inputs * 255).round().clamp(0, 255).to(torch.uint8)]


def random_flip_zoom(
    batch: DetectionBatch, augmentation: FrameAugmentation, generator: torch.Generator | None
) -> DetectionBatch:
    """Randomly mirror and zoom float frames [B, C, S, S] and their boxes.

    Padding is 0: black, or the channel mean if frames are normalised already.
    """
    if augmentation.flip:
        batch = _mirror(batch, bernoulli(len(batch), generator, batch.inputs.device), axis=0)
    if augmentation.flip_vertical:
        batch = _mirror(batch, bernoulli(len(batch), generator, batch.inputs.device), axis=1)
    if augmentation.zoom != (1.0, 1.0):
        batch = _zoom(batch, augmentation.zoom, generator)
    return batch


def color_jitter(
    images: Tensor,
    augmentation: FrameAugmentation,
    generator: torch.Generator | None,
    valid_mask: Tensor | None = None,
) -> None:
    """Randomly change brightness and contrast of float images [B, C, H, W] in place.

    Args:
        images: on a 0…1 scale.
        augmentation: largest changes.
        generator: random number generator.
        valid_mask: [B, H, W] bool, False for black padding, which is excluded from the mean;
            ``None`` for images without padding.
    """
    if augmentation.brightness or augmentation.contrast:
        drawn = torch.rand(2, len(images), 1, 1, 1, generator=generator) * 2 - 1
        drawn = drawn.to(images.device, non_blocking=True)
        mean = images.mean((1, 2, 3), keepdim=True)
        if valid_mask is not None:
            mean /= valid_mask[:, None].float().mean((1, 2, 3), keepdim=True)
        gain = 1 + augmentation.contrast * drawn[0]
        images.mul_(gain).add_(mean * (1 - gain) + augmentation.brightness * drawn[1])


def noise_like(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape of ``images``."""
    return torch.randn(images.shape, generator=generator).to(images.device, non_blocking=True)


def _mirror(batch: DetectionBatch, chosen: Tensor, axis: int) -> DetectionBatch:
    """Mirror the chosen frames along x (axis 0) or y (axis 1)."""
    images = torch.where(chosen[:, None, None, None], batch.inputs.flip(3 - axis), batch.inputs)
    mirrored = batch.boxes.clone()
    mirrored[..., axis] = 1 - batch.boxes[..., axis + 2]
    mirrored[..., axis + 2] = 1 - batch.boxes[..., axis]
    filled = _filled(batch)
    boxes = torch.where((chosen[:, None] & filled)[..., None], mirrored, batch.boxes)
    return replace(batch, inputs=images, boxes=boxes)


def _zoom(
    batch: DetectionBatch, zoom: tuple[float, float], generator: torch.Generator | None
) -> DetectionBatch:
    """Map a point x of the frame to s·x + t, with s and t drawn for each frame; clip boxes."""
    count, device = len(batch), batch.inputs.device
    drawn = torch.rand(3, count, generator=generator).to(device, non_blocking=True)
    scale = zoom[0] + (zoom[1] - zoom[0]) * drawn[0]
    # With s > 1 the frame stays filled; with s < 1 it stays complete.
    shift = drawn[1:].T * (1 - scale)[:, None]
    # grid_sample needs the inverse map, from output to input, in coordinates -1…1.
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = (1 - 2 * shift) / scale[:, None] - 1
    grid = F.affine_grid(theta, list(batch.inputs.shape), align_corners=False)
    images = F.grid_sample(batch.inputs, grid, align_corners=False)
    moved = batch.boxes * scale[:, None, None] + shift.repeat(1, 2)[:, None]
    clipped = moved.clamp(0, 1)
    visible = _area(clipped) > MIN_VISIBLE * _area(moved)
    batch = replace(batch, inputs=images, mask=batch.mask & visible)
    if batch.ignored is not None:
        # What remains of an ignore region is still not background.
        batch = replace(batch, ignored=batch.ignored & (_area(clipped) > 0))
    return replace(batch, boxes=clipped * _filled(batch)[..., None])


def _filled(batch: DetectionBatch) -> Tensor:
    """[B, M] slots with the box of an object or an ignore region."""
    return batch.mask if batch.ignored is None else batch.mask | batch.ignored


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
