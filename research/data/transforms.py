"""Device transforms: from a loaded batch to the input of a model, and back to images.

For coefficients, pixels are transformed here, while coefficients from the bitstream are used
directly. The steps after that are the same for both: flip, range, normalisation, each on the
selected frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from research.batch import Batch, ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.dct import block_dct, dct_basis, rgb_to_ycbcr
from research.compression.decoder import Decoder
from research.compression.geometry import flip_channels
from research.compression.selection import Selection
from research.compression.statistics import Statistics
from research.data.augment import Augment
from research.data.augment_rules import ALTERNATING

EPSILON = 1e-6
CONSTANT = 1e-3
"""A frequency with a smaller standard deviation counts as constant: rounding of float32 makes 1e-6
of the chroma of grey images, one step of quantisation in a million blocks makes 1e-3."""


class DeviceTransform(nn.Module):
    """Transforms a loaded batch to the input of a model, on the device.

    Random operations are applied in training mode only and use the given generator, so that they
    depend only on the position in the run. They are drawn on the CPU and copied with
    ``non_blocking=True``: otherwise the host would wait until the device has finished its queue.

    Attributes:
        memory_format: of the model, in which its inputs are returned. A model that gets another
            format converts tensors in many of its layers.
        shows: what ``to_images`` does with inputs, in words.
    """

    memory_format: torch.memory_format = torch.contiguous_format
    shows: str = "without normalisation"

    def __call__(self, batch: Any, generator: torch.Generator | None) -> Any:
        """``forward``, in the memory format of the model; no copy if it has that already."""
        return super().__call__(batch, generator).in_format(self.memory_format)

    def floats(self, pixels: Tensor) -> Tensor:
        """A float32 copy of integers [..., C, H, W] in the memory format of the model."""
        images = pixels.flatten(0, -4)
        images = images.to(torch.float32, copy=True, memory_format=self.memory_format)
        return images.unflatten(0, pixels.shape[:-3])

    def forward(self, batch: Any, generator: torch.Generator | None) -> Any:
        """The batch with transformed inputs."""
        raise NotImplementedError

    def to_images(self, batch: Any) -> list[Tensor]:
        """Images of a transformed batch to look at, each uint8 RGB [B, 3, H, W].

        RGB inputs give one; inputs with further channels give several, the first in colour.
        """
        raise NotImplementedError

    def names(self, batch: Any) -> dict[str, list[str]]:
        """Names of the samples of a batch, [B] per column; empty by default."""
        return {}


class PixelTransform(DeviceTransform):
    """uint8 pixels [B, 3, H, W] to normalised floats, with random horizontal flips in training.

    Args:
        mean: mean of RGB on a 0…1 scale.
        std: standard deviation of RGB on a 0…1 scale.
        flip: which images are flipped in training, see ``flipped``.
        augment: further augmentation in training.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool | str,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.flip = flip
        self.augment = augment
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    mean: Tensor
    std: Tensor

    def forward(
        self, batch: ClassificationBatch, generator: torch.Generator | None
    ) -> ClassificationBatch:
        assert isinstance(batch.inputs, Tensor)
        augment = self.augment if self.training else None
        pixels = batch.inputs if augment is None else augment.pixels(batch.inputs, generator)
        if self.training and self.flip:  # bytes, of which a copy costs a quarter of one of floats
            chosen = flipped(self.flip, batch, generator)
            pixels = torch.where(chosen[:, None, None, None], pixels.flip(-1), pixels)
        images = self.floats(pixels).div_(255).sub_(self.mean).div_(self.std)
        batch = replace(batch, inputs=images)
        return batch if augment is None else augment.mix(batch, generator)

    def to_images(self, batch: ClassificationBatch) -> list[Tensor]:
        """The images before normalisation."""
        assert isinstance(batch.inputs, Tensor)
        pixels = (batch.inputs * self.std + self.mean) * 255
        return [pixels.round().clamp(0, 255).to(torch.uint8)]


class CoefficientTransform(DeviceTransform):
    """Pixels or int16 coefficients to normalised float coefficients.

    Inputs are uint8 pixels [B, 3, H, W], H and W multiples of 16, or int16 block-major ``Blocks``.
    Outputs are float32 ``Blocks``: ``y`` [B, k_luma, H/8, W/8] and ``cbcr``
    [B, 2, k_chroma, H/16, W/16].

    Args:
        selection: the frequencies of the output.
        range_: ``full``, or ``studio`` for BT.601's 16…235.
        statistics: normalise by these; ``None`` for coefficients on JPEG's scale. A frequency that
            is constant in them is only centred: other images may have it.
        flip: which images are flipped horizontally in training, see ``flipped``.
        shipped: the frequencies of int16 ``Blocks``, a superset of ``selection``; ``None`` if they
            are the selection.
        augment: further augmentation in training; its first stage applies to pixels only.
    """

    def __init__(
        self,
        selection: Selection,
        range_: str,
        statistics: Statistics | None,
        flip: bool | str,
        shipped: Selection | None = None,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.flip = flip
        self.augment = augment
        self.selection = selection
        count = len(selection.luma), len(selection.chroma)
        self.shows = "decoded from {} luma and {} chroma coefficients of a block".format(*count)
        shipped = shipped or selection
        self.decoder = Decoder(selection, range_)
        luma, chroma = list(selection.luma), list(selection.chroma)
        luma_index = _positions(selection.luma, shipped.luma)
        chroma_index = _positions(selection.chroma, shipped.chroma)
        self.register_buffer("luma_index", luma_index, persistent=False)
        self.register_buffer("chroma_index", chroma_index, persistent=False)
        self.register_buffer("luma_basis", dct_basis()[luma], persistent=False)
        self.register_buffer("chroma_basis", dct_basis()[chroma], persistent=False)
        zero, one = torch.zeros, torch.ones
        y_mean, y_std = zero(len(luma)), one(len(luma))
        cbcr_mean, cbcr_std = zero(2, len(chroma)), one(2, len(chroma))
        if statistics is not None:
            y_mean, y_std = statistics.y_mean[luma], _divisors(statistics.y_std[luma])
            cbcr_mean = statistics.cbcr_mean[:, chroma]
            cbcr_std = _divisors(statistics.cbcr_std[:, chroma])
        # Saved with the model, because it was trained with these statistics.
        self.register_buffer("y_mean", y_mean[:, None, None])
        self.register_buffer("y_std", y_std[:, None, None])
        self.register_buffer("cbcr_mean", cbcr_mean[:, :, None, None])
        self.register_buffer("cbcr_std", cbcr_std[:, :, None, None])

    y_mean: Tensor
    y_std: Tensor
    cbcr_mean: Tensor
    cbcr_std: Tensor
    luma_index: Tensor | None
    chroma_index: Tensor | None
    luma_basis: Tensor
    chroma_basis: Tensor

    def forward(
        self, batch: ClassificationBatch, generator: torch.Generator | None
    ) -> ClassificationBatch:
        inputs, augment = batch.inputs, self.augment if self.training else None
        if augment is not None and isinstance(inputs, Tensor):
            inputs = augment.pixels(inputs, generator)
        y, cbcr = self._coefficients(inputs)
        if self.training and self.flip:
            y, cbcr = self._flip(y, cbcr, flipped(self.flip, batch, generator))
        y, cbcr = self.decoder.to_range(y, cbcr)
        y = (y - self.y_mean) / self.y_std
        cbcr = (cbcr - self.cbcr_mean) / self.cbcr_std
        batch = replace(batch, inputs=Blocks(y, cbcr))
        return batch if augment is None else augment.mix(batch, generator)

    def to_images(self, batch: ClassificationBatch) -> list[Tensor]:
        """The images decoded from their selected coefficients."""
        assert isinstance(batch.inputs, Blocks)
        y = batch.inputs.y * self.y_std + self.y_mean
        cbcr = batch.inputs.cbcr * self.cbcr_std + self.cbcr_mean
        return [self.decoder(y, cbcr).round().clamp(0, 255).to(torch.uint8)]

    def _coefficients(self, inputs: Tensor | Blocks) -> tuple[Tensor, Tensor]:
        """Selected coefficients on JPEG's scale, full range."""
        if isinstance(inputs, Blocks):
            y = inputs.y if self.luma_index is None else inputs.y[..., self.luma_index]
            cbcr = inputs.cbcr if self.chroma_index is None else inputs.cbcr[..., self.chroma_index]
            y, cbcr = y.permute(0, 3, 1, 2), cbcr.permute(0, 1, 4, 2, 3)
            planes = self.floats(cbcr.flatten(1, 2))
            return self.floats(y), planes.unflatten(1, cbcr.shape[1:3])
        y, cbcr = rgb_to_ycbcr(inputs.float())
        return block_dct(y - 128, self.luma_basis), block_dct(cbcr - 128, self.chroma_basis)

    def _flip(self, y: Tensor, cbcr: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        flipped_y = flip_channels(y, self.selection.luma)
        flipped_cbcr = flip_channels(cbcr, self.selection.chroma)
        return (
            torch.where(chosen[:, None, None, None], flipped_y, y),
            torch.where(chosen[:, None, None, None, None], flipped_cbcr, cbcr),
        )


def _divisors(std: Tensor) -> Tensor:
    return torch.where(std < CONSTANT, 1.0, std + EPSILON)


def _positions(selected: tuple[int, ...], shipped: tuple[int, ...]) -> Tensor | None:
    """Positions of the selected frequencies among the shipped ones; ``None`` if they are equal."""
    if selected == shipped:
        return None
    return torch.tensor([shipped.index(frequency) for frequency in selected], dtype=torch.int64)


def flipped(flip: bool | str, batch: Batch, generator: torch.Generator | None) -> Tensor:
    """[B] bool, which images of a training batch are flipped.

    Args:
        flip: True: each with probability 1/2. ``alternating``: half of them in the first epoch, the
            others in the second, and so on, so that in any two epochs an image is seen in both
            directions (Jordan, 2024, §3.6); which ones depends only on their indices and the epoch.
        batch: with the indices of its images and its epoch.
        generator: draws, if ``flip`` is True.
    """
    if flip != ALTERNATING:
        return bernoulli(len(batch), generator, batch.index.device)
    return ((_hash(batch.index) + batch.epoch) & 1).bool()


def _hash(index: Tensor) -> Tensor:
    """Pseudo-random int64 of int64 numbers from 0, by the finaliser of MurmurHash3 on 31 bits."""
    mixed = index + 1
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & 0x7FFFFFFF
    return mixed ^ (mixed >> 16)


def bernoulli(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """[count] bool, each True with probability 1/2."""
    return (torch.rand(count, generator=generator) < 0.5).to(device, non_blocking=True)
