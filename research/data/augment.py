"""Augmentation of whole batches, on the device: policies, erasing, mixup, cutmix.

In two stages. The first changes uint8 pixels, so inputs that arrive as coefficients cannot have
it; the second mixes what the network takes, pixels or coefficients.
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
    """What happens to a batch of training images beside crop and mirror.

    Everything is drawn for each image by itself.

    Args:
        policy: ``randaugment`` (Cubuk et al., 2020), ``trivialaugment`` (Müller and Hutter,
            2021), ``autoaugment_cifar`` (Cubuk et al., 2019), as torchvision has them, or null.
        magnitude: strength of ``randaugment``'s operations, 0…30.
        operations: how many of them an image gets.
        erasing: probability that a rectangle of an image is filled with the mean colour (Zhong et
            al., 2020); its area and shape as torchvision draws them.
        mixup: α of the Beta distribution from which shares are drawn (Zhang et al., 2018); 0: no
            mixup.
        cutmix: the same for cutmix (Yun et al., 2019). With both, an image gets either with
            probability one half.
        mix_probability: that an image is mixed at all.
    """

    policy: str | None
    magnitude: int
    operations: int
    erasing: float
    mixup: float
    cutmix: float
    mix_probability: float

    def pixels(
        self, images: Tensor, colour: Sequence[float], generator: torch.Generator | None
    ) -> Tensor:
        """The first stage.

        Args:
            images: uint8 [B, 3, H, W].
            colour: RGB on a 0…1 scale, of what is erased.
            generator: on the CPU.
        """
        if self.policy is not None and len(images):
            images = self._policy(images, generator)
        if self.erasing:
            images = _erase(images, self.erasing, colour, _numpy(generator))
        return images

    def mix(
        self, batch: ClassificationBatch, generator: torch.Generator | None
    ) -> ClassificationBatch:
        """The second stage: every image with a share of another one of the batch.

        Args:
            batch: inputs float [B, 3, H, W], or float ``Blocks``, in which cutmix takes whole
                16×16 pixels so that luma and chroma agree.
            generator: on the CPU.

        Returns:
            The batch with ``labels_b`` and ``lam`` filled in; ``lam`` is 1 for what is not mixed.
        """
        if not (self.mixup or self.cutmix):
            return batch
        rng, count = _numpy(generator), len(batch)
        partner = torch.from_numpy(rng.permutation(count)).to(batch.labels.device)
        cut = rng.random(count) < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        alpha = np.where(cut, self.cutmix, self.mixup)
        share = rng.beta(alpha, alpha)
        share[rng.random(count) >= self.mix_probability] = 1
        rows, columns = _cells(batch.inputs)
        edges = _boxes(np.where(cut, share, 1), rows, columns, rng)
        left = torch.from_numpy(np.where(cut, 1, share).astype(np.float32))
        outside = ~inside(torch.from_numpy(edges).to(batch.labels.device), rows, columns)
        weight = left.to(outside.device)[:, None, None] * outside
        return replace(
            batch,
            inputs=_blend(batch.inputs, partner, weight),
            labels_b=batch.labels[partner],
            lam=weight.mean((1, 2)),
        )

    def _policy(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        from torchvision.transforms import v2

        known: dict[str, Any] = {
            "randaugment": lambda: v2.RandAugment(self.operations, self.magnitude),
            "trivialaugment": v2.TrivialAugmentWide,
            "autoaugment_cifar": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        }
        change = known[str(self.policy)]()
        seed = _word(generator)
        # Torchvision draws from the global generator of the CPU, which is lent to it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([change(image) for image in images])


@dataclass(frozen=True)
class Augment:
    """An augmentation with the colour that erasing leaves: what a device transform takes.

    Attributes:
        augmentation: what happens.
        colour: RGB on a 0…1 scale.
    """

    augmentation: Augmentation
    colour: Sequence[float]

    def pixels(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.augmentation.pixels(images, self.colour, generator)

    def mix(
        self, batch: ClassificationBatch, generator: torch.Generator | None
    ) -> ClassificationBatch:
        return self.augmentation.mix(batch, generator)


def inside(edges: Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows, columns] bool, true within boxes [B, 4] of top, left, bottom, right."""
    row = torch.arange(rows, device=edges.device)[None, :, None]
    column = torch.arange(columns, device=edges.device)[None, None, :]
    top, left, bottom, right = edges[:, :, None, None].unbind(1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _erase(
    images: Tensor, probability: float, colour: Sequence[float], rng: np.random.Generator
) -> Tensor:
    """As ``torchvision.transforms.RandomErasing``, all images at once."""
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
    edges = torch.from_numpy(np.stack([top, left, top + h, left + w], 1)).to(images.device)
    fill = torch.tensor([round(255 * value) for value in colour], dtype=torch.uint8)
    return torch.where(
        inside(edges, height, width)[:, None], fill.to(images.device)[:, None, None], images
    )


def _boxes(
    share: NDArray[np.float64], rows: int, columns: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """[B, 4] edges of cutmix boxes in cells; a box of 1 - share of the area, cut at the border."""
    half = np.sqrt(1 - share)[:, None] / 2
    centre = rng.random((len(share), 2))
    edges = np.concatenate([centre - half, centre + half], 1).clip(0, 1)
    return np.rint(edges * (rows, columns, rows, columns)).astype(np.int64)


def _cells(inputs: Tensor | Blocks) -> tuple[int, int]:
    """Rows and columns of the grid on which inputs are mixed: pixels, or blocks of chroma."""
    grid = inputs.cbcr if isinstance(inputs, Blocks) else inputs
    return grid.shape[-2], grid.shape[-1]


def _blend(inputs: Tensor | Blocks, partner: Tensor, weight: Tensor) -> Tensor | Blocks:
    """Inputs and their partners, each cell by its weight [B, rows, columns]."""
    if isinstance(inputs, Blocks):
        y, cbcr = inputs
        fine = weight.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return Blocks(
            torch.lerp(y[partner], y, fine[:, None]),
            torch.lerp(cbcr[partner], cbcr, weight[:, None, None]),
        )
    return torch.lerp(inputs[partner], inputs, weight[:, None])


def _word(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator))


def _numpy(generator: torch.Generator | None) -> np.random.Generator:
    # Beta distributions cannot be drawn from a generator of torch.
    return np.random.default_rng(_word(generator))
