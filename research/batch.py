"""Batches: dataclasses of tensors, which the loader makes and the device transform converts.

The loader makes integers (uint8 or uint16 pixels, int16 coefficients), the device transform floats.
A sample that cannot be read is not in its batch; ``skipped`` counts such samples by kind.
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
    """Base class of the batches of all tasks.

    Attributes:
        index: [B] int64, indices of the samples in their data set.
        inputs: input of the network.
        skipped: counts by kind of samples that could not be read and are not in this batch
            (``left_out/KIND``), and of samples that were read by a fallback (``fallback/KIND``).
        left_out: the files that could not be read, with the kind of damage.
        epoch: of the training, from 1; set by the loader.
    """

    index: Tensor
    inputs: Any
    skipped: dict[str, int] = field(default_factory=dict, kw_only=True)
    left_out: dict[str, str] = field(default_factory=dict, kw_only=True)
    epoch: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with ``function`` applied to every tensor."""
        return replace(
            self, **{f.name: _map(getattr(self, f.name), function) for f in fields(self)}
        )

    def cat(self, other: Self) -> Self:
        """This batch followed by the samples of another one; the others are of this batch."""
        both = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return replace(self, **{name: _cat(first, second) for name, first, second in both})

    def to(self, device: torch.device) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def in_format(self, memory_format: torch.memory_format) -> Self:
        """The same with images or coefficients in a memory format; other inputs do not change."""
        return replace(self, inputs=_in_format(self.inputs, memory_format))

    def pin_memory(self) -> Self:
        return self.map(Tensor.pin_memory)


@dataclass
class ClassificationBatch(Batch):
    """Images or their DCT coefficients, with one class per image.

    Attributes:
        inputs: [B, 3, H, W] pixels (uint8 0…255 from the loader, float after the device
            transform), or ``Blocks``.
        labels: [B] int64 class indices.
        labels_b: [B] int64, second class of each image, from mixup or cutmix; None without them.
        lam: [B] float32 in 0…1, weight of ``labels``; ``labels_b`` has weight 1 − ``lam``.
    """

    inputs: Tensor | Blocks
    labels: Tensor
    labels_b: Tensor | None = field(default=None, kw_only=True)
    lam: Tensor | None = field(default=None, kw_only=True)


class Targets(NamedTuple):
    """Ground-truth boxes and ignore regions of a batch of frames, padded to ``M`` per frame.

    Attributes:
        boxes: [B, M, 4] float32 xyxy as fractions of the frame, 0…1; zero in padding.
        mask: [B, M] bool, True for the box of an object, False for padding and ignore regions.
        labels: [B, M] int64 class indices.
        ignored: [B, M] bool, True for an ignore region: neither an object nor background; None if
            the data set has none.
    """

    boxes: Tensor
    mask: Tensor
    labels: Tensor
    ignored: Tensor | None = None


@dataclass
class DetectionBatch(Batch):
    """Square, letterboxed frames with the boxes in them; a frame may have none.

    Attributes:
        inputs: [B, 3 + X, S, S] pixels: red, green, blue, then X further channels (X may be 0).
            uint8 or uint16 from the loader, float after the device transform: 0…1 for frames of a
            warehouse, normalised for RGB + X.
        boxes: see ``Targets``.
        mask: see ``Targets``.
        labels: see ``Targets``.
        sizes: [B, 2] int32 height and width of the frames before they were letterboxed.
        ignored: see ``Targets``.
        areas: [B, M] float32 areas in pixels of the files, by which COCO's metrics sort boxes into
            small, medium and large; 0 in padding. None: those of the boxes.
    """

    inputs: Tensor
    boxes: Tensor
    mask: Tensor
    labels: Tensor
    sizes: Tensor
    ignored: Tensor | None = field(default=None, kw_only=True)
    areas: Tensor | None = field(default=None, kw_only=True)

    @property
    def targets(self) -> Targets:
        return Targets(self.boxes, self.mask, self.labels, self.ignored)


@dataclass
class PairBatch(Batch):
    """Pairs of photos of the same series, and which of the two people prefer.

    Attributes:
        inputs: [B, 2, 3, S, S] pixels (uint8 0…255 from the loader, normalised float after the
            device transform), or [B, 2, D] float32 features.
        preference: [B] float32 in 0…1, fraction of the votes for the first photo; 0.5 is a tie.
        series: [B] int64, index into the data set's names of series.
        photos: [B, 2] int64, indices into the data set's list of photos.
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


def _in_format(inputs: Any, memory_format: torch.memory_format) -> Any:
    if isinstance(inputs, Blocks):
        y, cbcr = inputs
        # Networks read both chroma planes as the channels of one image.
        planes = cbcr.flatten(1, 2).contiguous(memory_format=memory_format)
        return Blocks(
            y.contiguous(memory_format=memory_format), planes.unflatten(1, cbcr.shape[1:3])
        )
    if isinstance(inputs, Tensor) and inputs.dim() >= 4:
        images = inputs.flatten(0, -4).contiguous(memory_format=memory_format)
        return images.unflatten(0, inputs.shape[:-3])
    return inputs


def _cat(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, Blocks):
        return Blocks(_cat(first.y, second.y), _cat(first.cbcr, second.cbcr))
    return first
