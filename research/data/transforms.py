"""Device transforms: from a loaded batch to what a model takes, and back to pixels for people.

Both coefficient sources meet here: pixels are transformed, the bitstream's coefficients arrive as
they are. From then on one path: mirror, range, normalisation, all on the kept frequencies, on the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.dct import block_dct, dct_basis, rgb_to_ycbcr
from research.compression.decoder import Decoder
from research.compression.geometry import flip_channels
from research.compression.selection import Selection
from research.compression.statistics import Statistics
from research.data.augment import Augment

EPSILON = 1e-6


class DeviceTransform(nn.Module):
    """Makes of a loaded batch, on the device, what a model takes.

    What is random happens in training mode alone and is drawn from the generator given, so that
    it depends on the place in the run and on nothing else.
    """

    def forward(self, batch: Any, generator: torch.Generator | None) -> Any:
        """The batch with its inputs as the model takes them."""
        raise NotImplementedError

    def to_images(self, batch: Any) -> list[Tensor]:
        """The samples of a transformed batch for people: uint8 RGB [B, 3, H, W] each.

        Plain images give one panel; what has more sensors than eyes have colours gives several,
        the first of them in colour.
        """
        raise NotImplementedError

    def names(self, batch: Any) -> dict[str, list[str]]:
        """What a user calls the samples of a batch, [B] words a column; none unless it is said."""
        return {}


class PixelTransform(DeviceTransform):
    """Turns uint8 pixels [B, 3, H, W] into normalised floats; mirrors half in training.

    Args:
        mean: RGB means on a 0…1 scale.
        std: RGB standard deviations on a 0…1 scale.
        flip: mirror in training.
        augment: what else happens in training, if anything.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool,
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
        images = pixels.float() / 255
        if self.training and self.flip:
            chosen = half(len(images), generator, images.device)
            images = torch.where(chosen[:, None, None, None], images.flip(-1), images)
        batch = replace(batch, inputs=(images - self.mean) / self.std)
        return batch if augment is None else augment.mix(batch, generator)

    def to_images(self, batch: ClassificationBatch) -> list[Tensor]:
        """The images as they went in."""
        assert isinstance(batch.inputs, Tensor)
        pixels = (batch.inputs * self.std + self.mean) * 255
        return [pixels.round().clamp(0, 255).to(torch.uint8)]


class CoefficientTransform(DeviceTransform):
    """Turns pixels or int16 coefficients into normalised float coefficients.

    Takes a ``ClassificationBatch`` whose inputs are uint8 pixels [B, 3, H, W], H and W multiples
    of 16, or int16 block-major ``Blocks`` of the kept frequencies; gives one whose inputs are
    float32 ``Blocks`` ``y`` [B, k_luma, H/8, W/8], ``cbcr`` [B, 2, k_chroma, H/16, W/16].

    In training mode half of the images are mirrored, drawn from the generator given.

    Args:
        selection: the kept frequencies.
        range_: ``full``, or ``studio`` for BT.601's 16…235.
        statistics: normalise by these; null leaves the coefficients on JPEG's scale.
        flip: mirror in training.
        shipped: the frequencies that int16 ``Blocks`` arrive with, ``selection`` among them; null
            when just the selection is shipped, in its own order.
        augment: what else happens in training, if anything; what it does to pixels does not
            happen to inputs that arrive as ``Blocks``.
    """

    def __init__(
        self,
        selection: Selection,
        range_: str,
        statistics: Statistics | None,
        flip: bool,
        shipped: Selection | None = None,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.flip = flip
        self.augment = augment
        self.selection = selection
        shipped = shipped or selection
        self.luma_at = _places(selection.luma, shipped.luma)
        self.chroma_at = _places(selection.chroma, shipped.chroma)
        self.decoder = Decoder(selection, range_)
        luma, chroma = list(selection.luma), list(selection.chroma)
        self.register_buffer("luma_basis", dct_basis()[luma], persistent=False)
        self.register_buffer("chroma_basis", dct_basis()[chroma], persistent=False)
        zero, one = torch.zeros, torch.ones
        y_mean, y_std = zero(len(luma)), one(len(luma))
        cbcr_mean, cbcr_std = zero(2, len(chroma)), one(2, len(chroma))
        if statistics is not None:
            y_mean, y_std = statistics.y_mean[luma], statistics.y_std[luma] + EPSILON
            cbcr_mean = statistics.cbcr_mean[:, chroma]
            cbcr_std = statistics.cbcr_std[:, chroma] + EPSILON
        # Looked up by kept index, and saved with the model: the numbers it was trained on.
        self.register_buffer("y_mean", y_mean[:, None, None])
        self.register_buffer("y_std", y_std[:, None, None])
        self.register_buffer("cbcr_mean", cbcr_mean[:, :, None, None])
        self.register_buffer("cbcr_std", cbcr_std[:, :, None, None])

    y_mean: Tensor
    y_std: Tensor
    cbcr_mean: Tensor
    cbcr_std: Tensor
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
            y, cbcr = self._mirror_half(y, cbcr, generator)
        y, cbcr = self.decoder.to_range(y, cbcr)
        y = (y - self.y_mean) / self.y_std
        cbcr = (cbcr - self.cbcr_mean) / self.cbcr_std
        batch = replace(batch, inputs=Blocks(y, cbcr))
        return batch if augment is None else augment.mix(batch, generator)

    def to_images(self, batch: ClassificationBatch) -> list[Tensor]:
        """What is left of the images in their kept coefficients."""
        assert isinstance(batch.inputs, Blocks)
        y = batch.inputs.y * self.y_std + self.y_mean
        cbcr = batch.inputs.cbcr * self.cbcr_std + self.cbcr_mean
        return [self.decoder(y, cbcr).round().clamp(0, 255).to(torch.uint8)]

    def _coefficients(self, inputs: Tensor | Blocks) -> tuple[Tensor, Tensor]:
        """Kept coefficients on JPEG's own scale, full range."""
        if isinstance(inputs, Blocks):
            # Block-major in memory is channels_last as seen from here: no copy but to float.
            y = inputs.y if self.luma_at is None else inputs.y[..., self.luma_at]
            cbcr = inputs.cbcr if self.chroma_at is None else inputs.cbcr[..., self.chroma_at]
            return y.permute(0, 3, 1, 2).float(), cbcr.permute(0, 1, 4, 2, 3).float()
        y, cbcr = rgb_to_ycbcr(inputs.float())
        return block_dct(y - 128, self.luma_basis), block_dct(cbcr - 128, self.chroma_basis)

    def _mirror_half(
        self, y: Tensor, cbcr: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        chosen = half(len(y), generator, y.device)
        mirrored_y = flip_channels(y, self.selection.luma)
        mirrored_cbcr = flip_channels(cbcr, self.selection.chroma)
        return (
            torch.where(chosen[:, None, None, None], mirrored_y, y),
            torch.where(chosen[:, None, None, None, None], mirrored_cbcr, cbcr),
        )


def _places(wanted: tuple[int, ...], shipped: tuple[int, ...]) -> list[int] | None:
    """Where the wanted frequencies stand among the shipped; null when they are the shipped."""
    return None if wanted == shipped else [shipped.index(frequency) for frequency in wanted]


def half(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """[count] bool, each true with probability one half."""
    return (torch.rand(count, generator=generator) < 0.5).to(device)
