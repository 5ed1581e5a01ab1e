"""Batches: small typed records that travel from the loader to the device.

The loader ships compact integers (uint8 or uint16 pixels, int16 coefficients); the device
transform makes floats of them. A batch also carries what was lost on the way: samples that could
not be read are simply not in it, and are counted by kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from research.compression.blocks import Blocks


@dataclass
class Batch:
    """What every task's batch has.

    Attributes:
        index: [B] int64, the samples' positions in their data set.
        inputs: of the network.
        skipped: samples left out of this batch (``left_out/KIND``) and samples read by a fallback
            (``fallback/KIND``), by kind.
    """

    index: Tensor
    inputs: Any
    skipped: dict[str, int] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same record with ``function`` applied to every tensor in it."""
        return replace(
            self, **{f.name: _map(getattr(self, f.name), function) for f in fields(self)}
        )

    def cat(self, other: Self) -> Self:
        """The samples of this batch, then those of another one with the same tensors.

        ``skipped`` is that of this batch.
        """
        both = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return replace(self, **{name: _cat(first, second) for name, first, second in both})

    def to(self, device: torch.device) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self.map(Tensor.pin_memory)


@dataclass
class ClassificationBatch(Batch):
    """Images, or their coefficients, with one class each.

    Attributes:
        inputs: [B, 3, H, W] pixels (uint8 0…255 from the loader, float after the device
            transform), or ``Blocks``.
        labels: [B] int64 class indices.
        labels_b: [B] int64 class indices mixed in by mixup or cutmix; null where nothing is mixed.
        lam: [B] float32 in 0…1, weight of ``labels``; that of ``labels_b`` is the rest.
    """

    inputs: Tensor | Blocks
    labels: Tensor
    labels_b: Tensor | None = field(default=None, kw_only=True)
    lam: Tensor | None = field(default=None, kw_only=True)


class Targets(NamedTuple):
    """True boxes of a batch of frames, in ``M`` slots a frame.

    Attributes:
        boxes: [B, M, 4] float32 xyxy, shares of the frame in 0…1; zero in empty slots.
        mask: [B, M] bool, true where a slot holds a box.
        labels: [B, M] int64 class indices.
    """

    boxes: Tensor
    mask: Tensor
    labels: Tensor


@dataclass
class DetectionBatch(Batch):
    """Square, letterboxed frames with the boxes in them; a frame may have none.

    Attributes:
        inputs: [B, 3 + X, S, S] pixels: red, green, blue, then X more channels where the data
            have them. uint8 or uint16 from the loader; after the device transform float, 0…1 for
            frames of a warehouse, normalised for RGB + X.
        boxes: see ``Targets``.
        mask: see ``Targets``.
        labels: see ``Targets``.
        sizes: [B, 2] int32 height and width of the frames before they were letterboxed.
    """

    inputs: Tensor
    boxes: Tensor
    mask: Tensor
    labels: Tensor
    sizes: Tensor

    @property
    def targets(self) -> Targets:
        return Targets(self.boxes, self.mask, self.labels)


@dataclass
class PairBatch(Batch):
    """Two photos of one series each, and which of them people prefer.

    Attributes:
        inputs: [B, 2, 3, S, S] pixels (uint8 0…255 from the loader, normalised float after the
            device transform), or [B, 2, D] float32 features.
        preference: [B] float32 in 0…1, share of the votes for the first; 0.5 is a tie.
        series: [B] int64, index into the data set's names of series.
        photos: [B, 2] int64, indices into the data set's photos.
    """

    inputs: Tensor
    preference: Tensor
    series: Tensor
    photos: Tensor


@dataclass
class PhotoBatch(Batch):
    """Single photos, for prediction.

    Attributes:
        inputs: [B, 3, S, S] pixels, as in ``PairBatch``, or [B, D] float32 features.
    """

    inputs: Tensor


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Blocks):
        return Blocks(function(value.y), function(value.cbcr))
    return value


def _cat(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Blocks):
        return Blocks(_cat(first.y, second.y), _cat(first.cbcr, second.cbcr))
    return first
