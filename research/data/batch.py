"""Batches: small typed records that travel from the loader to the device.

The loader ships compact integers (uint8 pixels, int16 coefficients); the device transform makes
floats of them. A batch also carries what was lost on the way: samples that could not be read are
simply not in it, and are counted by kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from research.compression.blocks import Blocks


@dataclass
class Batch:
    """What every task's batch has.

    Attributes:
        index: [B] int64, the samples' positions in their data set.
        damage: samples left out of this batch (``left_out/KIND``) and samples read by a detour
            (``fallback/KIND``), by kind.
    """

    index: Tensor
    damage: dict[str, int] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same record with ``function`` applied to every tensor in it."""
        return replace(
            self, **{f.name: _map(getattr(self, f.name), function) for f in fields(self)}
        )

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
    """

    inputs: Tensor | Blocks
    labels: Tensor


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Blocks):
        return Blocks(function(value.y), function(value.cbcr))
    return value
