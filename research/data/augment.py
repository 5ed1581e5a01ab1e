"""Augmentation of images for classification, on the device: policies, erasing, mixup, cutmix.

It has two stages: the first changes uint8 pixels and is not applied to inputs that are loaded as
coefficients; the second mixes the network's inputs, pixels or coefficients. Frames with boxes are
augmented in ``research.data.frames.transform``, RGB + X frames in ``research.data.rgbx.transform``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks

ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images, after crop and flip.

    All random parameters are drawn per image.

    Args:
        policy: torchvision's ``randaugment`` (Cubuk et al., 2020), ``trivialaugment`` (Müller and
            Hutter, 2021) or ``autoaugment_cifar`` (Cubuk et al., 2019), or ``None``.
        magnitude: strength of ``randaugment``'s operations, 0…30.
        operations: number of ``randaugment``'s operations per image.
        erasing: probability that a rectangle of an image is filled with the mean colour (Zhong et
            al., 2020), with the distribution of torchvision's ``RandomErasing``.
        mixup: α of the Beta distribution of ``lam`` in mixup (Zhang et al., 2018); 0 for no mixup.
        cutmix: the same for cutmix (Yun et al., 2019). If both are set, each image gets one of
            them with probability one half.
        mix_probability: probability that an image is mixed.
    """

    policy: str | None
    magnitude: int
    operations: int
    erasing: float
    mixup: float
    cutmix: float
    mix_probability: float

    def pixels(
        self, images: Tensor, fill: Sequence[float], generator: torch.Generator | None
    ) -> Tensor:
        """The first stage: policy and erasing.

        Args:
            images: uint8 [B, 3, H, W].
            fill: RGB of erased rectangles on a 0…1 scale.
            generator: on the CPU.
        """
        if self.policy is not None and len(images):
            images = self._policy(images, generator)
        if self.erasing:
            images = _erase(images, self.erasing, fill, _numpy_generator(generator))
        return images

    def mix(
        self, batch: ClassificationBatch, generator: torch.Generator | None
    ) -> ClassificationBatch:
        """The second stage: mix every image with another image of the batch.

        Args:
            batch: inputs float [B, 3, H, W], or float ``Blocks``, in which the boxes of cutmix
                are aligned to 16×16 pixels so that luma and chroma agree.
            generator: on the CPU.

        Returns:
            The batch with ``labels_b`` and ``lam``; ``lam`` is 1 for images that are not mixed.
        """
        if not (self.mixup or self.cutmix):
            return batch
        rng, count = _numpy_generator(generator), len(batch)
        device = batch.labels.device
        partner = torch.from_numpy(rng.permutation(count)).to(device, non_blocking=True)
        cut = rng.random(count) < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        alpha = np.where(cut, self.cutmix, self.mixup)
        lam = rng.beta(alpha, alpha)
        lam[rng.random(count) >= self.mix_probability] = 1
        rows, columns = _grid_size(batch.inputs)
        edges = _cutmix_boxes(np.where(cut, lam, 1), rows, columns, rng)
        mixup_lam = torch.from_numpy(np.where(cut, 1, lam).astype(np.float32))
        boxes = torch.from_numpy(edges).to(device, non_blocking=True)
        weight = mixup_lam.to(device, non_blocking=True)[:, None, None]
        weight = weight * ~box_mask(boxes, rows, columns)
        return replace(
            batch,
            inputs=_blend(batch.inputs, partner, weight),
            labels_b=batch.labels[partner],
            lam=weight.mean((1, 2)),
        )

    def _policy(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        from torchvision.transforms import v2

        policies: dict[str, Any] = {
            "randaugment": lambda: v2.RandAugment(self.operations, self.magnitude),
            "trivialaugment": v2.TrivialAugmentWide,
            "autoaugment_cifar": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        }
        policy = policies[str(self.policy)]()
        seed = _draw_seed(generator)
        # torchvision draws from the global CPU generator, whose state is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([policy(image) for image in images])


@dataclass(frozen=True)
class Augment:
    """An augmentation with the fill colour of a data set, for a device transform.

    Attributes:
        augmentation: what is applied.
        fill: RGB of erased rectangles on a 0…1 scale.
    """

    augmentation: Augmentation
    fill: Sequence[float]

    def pixels(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.augmentation.pixels(images, self.fill, generator)

    def mix(
        self, batch: ClassificationBatch, generator: torch.Generator | None
    ) -> ClassificationBatch:
        return self.augmentation.mix(batch, generator)


def box_mask(edges: Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows, columns] bool, True inside boxes [B, 4] of (top, left, bottom, right)."""
    row = torch.arange(rows, device=edges.device)[None, :, None]
    column = torch.arange(columns, device=edges.device)[None, None, :]
    top, left, bottom, right = edges[:, :, None, None].unbind(1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _erase(
    images: Tensor, probability: float, fill: Sequence[float], rng: np.random.Generator
) -> Tensor:
    """``torchvision.transforms.RandomErasing`` for a batch."""
    count, _, height, width = images.shape
    area = height * width * rng.uniform(*ERASED_AREA, (count, TRIES))
    narrow, wide = np.log(ERASED_RATIO)
    ratio = np.exp(rng.uniform(narrow, wide, (count, TRIES)))
    h, w = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = np.arange(count), fits.argmax(1)
    chosen = (rng.random(count) < probability) & fits.any(1)
    h, w = np.where(chosen, h[first], 0), np.where(chosen, w[first], 0)
    top = np.floor(rng.random(count) * (height - h + 1))
    left = np.floor(rng.random(count) * (width - w + 1))
    edges = torch.from_numpy(np.stack([top, left, top + h, left + w], 1))
    inside = box_mask(edges.to(images.device, non_blocking=True), height, width)
    colour = torch.tensor([round(255 * value) for value in fill], dtype=torch.uint8)
    colour = colour.to(images.device, non_blocking=True)[:, None, None]
    return torch.where(inside[:, None], colour, images)


def _cutmix_boxes(
    lam: NDArray[np.float64], rows: int, columns: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Edges [B, 4] of boxes with area fraction 1 - lam, in cells, clipped to the image."""
    half_side = np.sqrt(1 - lam)[:, None] / 2
    centre = rng.random((len(lam), 2))
    edges = np.concatenate([centre - half_side, centre + half_side], 1).clip(0, 1)
    return np.rint(edges * (rows, columns, rows, columns)).astype(np.int64)


def _grid_size(inputs: Tensor | Blocks) -> tuple[int, int]:
    """Rows and columns of the grid on which inputs are mixed: pixels, or chroma blocks."""
    grid = inputs.cbcr if isinstance(inputs, Blocks) else inputs
    return grid.shape[-2], grid.shape[-1]


def _blend(inputs: Tensor | Blocks, partner: Tensor, weight: Tensor) -> Tensor | Blocks:
    """Interpolate between inputs and their partners with a weight per cell, [B, rows, columns]."""
    if isinstance(inputs, Blocks):
        y, cbcr = inputs
        luma_weight = weight.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return Blocks(
            torch.lerp(y[partner], y, luma_weight[:, None]),
            torch.lerp(cbcr[partner], cbcr, weight[:, None, None]),
        )
    return torch.lerp(inputs[partner], inputs, weight[:, None])


def _draw_seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator))


def _numpy_generator(generator: torch.Generator | None) -> np.random.Generator:
    # torch cannot sample a Beta distribution with a given generator.
    return np.random.default_rng(_draw_seed(generator))
