"""The device's half of preprocessing for frames: floats, and augmentation of frame and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from research.batch import DetectionBatch
from research.data.transforms import DeviceTransform, half

VISIBLE = 0.25
"""A box of which the zoom leaves a smaller share inside the frame is no target any more."""


class FrameAugmentation:
    """What is drawn anew for every frame of every epoch (guide 5's list).

    Args:
        flip: mirror half of the frames.
        flip_vertical: turn half of them upside down; for scenes without an above and below.
        zoom: range of the enlargement, about a random place; below 1 the frame shrinks on black.
        brightness: largest change of the mean, on a 0…1 scale, either way.
        contrast: largest share by which differences from the mean grow or shrink.
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
    """Makes floats in [0, 1] of uint8 frames [B, 3, S, S]; augments frames and boxes in training.

    Args:
        augmentation: what happens in training; nothing when null.
    """

    def __init__(self, augmentation: FrameAugmentation | None) -> None:
        super().__init__()
        self.augmentation = augmentation

    def forward(self, batch: DetectionBatch, generator: torch.Generator | None) -> DetectionBatch:
        # In place from here on: fresh memory for a batch of frames costs more than the arithmetic.
        batch = replace(batch, inputs=batch.inputs.float().div_(255))
        change = self.augmentation
        if not self.training or change is None:
            return batch
        batch = random_flip_zoom(batch, change, generator)
        color_jitter(batch.inputs, change, generator)
        if change.noise:
            batch.inputs.add_(noise_like(batch.inputs, generator), alpha=change.noise)
        return replace(batch, inputs=batch.inputs.clamp_(0, 1))

    def to_images(self, batch: DetectionBatch) -> list[Tensor]:
        return [(batch.inputs * 255).round().clamp(0, 255).to(torch.uint8)]


def random_flip_zoom(
    batch: DetectionBatch, change: FrameAugmentation, generator: torch.Generator | None
) -> DetectionBatch:
    """Float frames [B, C, S, S] and their boxes, mirrored and zoomed; what comes in is 0.

    Black, or a channel's mean, whichever 0 stands for by then.
    """
    if change.flip:
        batch = _mirror(batch, half(len(batch), generator, batch.inputs.device), axis=0)
    if change.flip_vertical:
        batch = _mirror(batch, half(len(batch), generator, batch.inputs.device), axis=1)
    if change.zoom != (1.0, 1.0):
        batch = _zoom(batch, change.zoom, generator)
    return batch


def color_jitter(
    images: Tensor,
    change: FrameAugmentation,
    generator: torch.Generator | None,
    there: Tensor | None = None,
) -> None:
    """Changes brightness and contrast of float images [B, C, H, W] in place, each by its own.

    Args:
        images: on a 0…1 scale.
        change: how much.
        generator: of what is drawn.
        there: [B, H, W] bool, where the frames are, whose mean stays; black elsewhere. Everywhere
            when null.
    """
    if change.brightness or change.contrast:
        drawn = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images.device) * 2 - 1
        mean = images.mean((1, 2, 3), keepdim=True)
        if there is not None:
            mean /= there[:, None].float().mean((1, 2, 3), keepdim=True)
        gain = 1 + change.contrast * drawn[0]
        images.mul_(gain).add_(mean * (1 - gain) + change.brightness * drawn[1])


def noise_like(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, one for each of ``images``."""
    return torch.randn(images.shape, generator=generator).to(images.device)


def _mirror(batch: DetectionBatch, chosen: Tensor, axis: int) -> DetectionBatch:
    """Mirrors the chosen frames along x (axis 0) or y (axis 1)."""
    images = torch.where(chosen[:, None, None, None], batch.inputs.flip(3 - axis), batch.inputs)
    mirrored = batch.boxes.clone()
    mirrored[..., axis] = 1 - batch.boxes[..., axis + 2]
    mirrored[..., axis + 2] = 1 - batch.boxes[..., axis]
    boxes = torch.where((chosen[:, None] & batch.mask)[..., None], mirrored, batch.boxes)
    return replace(batch, inputs=images, boxes=boxes)


def _zoom(
    batch: DetectionBatch, zoom: tuple[float, float], generator: torch.Generator | None
) -> DetectionBatch:
    """A place x of the frame goes to s·x + t; what leaves the frame is cut off."""
    count, device = len(batch), batch.inputs.device
    drawn = torch.rand(3, count, generator=generator).to(device)
    scale = zoom[0] + (zoom[1] - zoom[0]) * drawn[0]
    # Enlarged, the frame stays filled; shrunk, it stays whole.
    shift = drawn[1:].T * (1 - scale)[:, None]
    # grid_sample asks where an output place comes from, on a scale of -1…1.
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = (1 - 2 * shift) / scale[:, None] - 1
    grid = F.affine_grid(theta, list(batch.inputs.shape), align_corners=False)
    images = F.grid_sample(batch.inputs, grid, align_corners=False)
    moved = batch.boxes * scale[:, None, None] + shift.repeat(1, 2)[:, None]
    inside = moved.clamp(0, 1)
    seen = _area(inside) > VISIBLE * _area(moved)
    mask = batch.mask & seen
    return replace(batch, inputs=images, boxes=inside * mask[..., None], mask=mask)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
