"""How a frame of RGB + X becomes a sample of a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.data.rgbx.arrays import RANGES, ArraySpec, Pixels, letterbox
from research.data.rgbx.modalities import read_frame
from research.data.warehouse.encoders import FrameEncoder, SampleSpec
from research.data.warehouse.manifest import TensorSpec


@dataclass(frozen=True)
class ChannelEncoder(FrameEncoder):
    """Letterboxed frames of red, green, blue and X further channels, with their boxes.

    Tensors of a sample are those of ``FrameEncoder``, with ``images`` uint8 or uint16
    [S, S, 3 + X], and ``sums`` int64 [2, 3 + X]: the sums of the values and of their squares over
    all pixels of the source, for the statistics of the channels.

    Attributes:
        channels: names of all channels.
        dtype: ``uint8`` or ``uint16``.
    """

    channels: tuple[str, ...] = field(kw_only=True)
    dtype: str = field(kw_only=True)

    @property
    def spec(self) -> ArraySpec:
        return ArraySpec(len(self.channels), self.dtype)

    def transform(self) -> dict[str, Any]:
        return {**super().transform(), "channels": list(self.channels), "dtype": self.dtype}

    def tensors(self) -> dict[str, TensorSpec]:
        images = TensorSpec(self.dtype, (self.image_size, self.image_size, len(self.channels)))
        sums = TensorSpec("int64", (2, len(self.channels)))
        return {**super().tensors(), "images": images, "sums": sums}

    def index_entry(self, sample: SampleSpec) -> dict[str, Any]:
        return {**super().index_entry(sample), "path": sample.target["path"]}

    def images(self, sample: SampleSpec) -> tuple[dict[str, NDArray[np.generic]], int, int]:
        array = read_frame(sample.files, self.spec)
        canvas = letterbox(array, self.image_size).transpose(1, 2, 0)
        height, width, _ = array.shape
        return {"images": canvas, "sums": channel_sums(array)}, height, width


def channel_sums(array: Pixels) -> NDArray[np.int64]:
    """Sums of the values and of their squares of each channel [2, C], exact."""
    levels = np.arange(RANGES[array.dtype.name] + 1, dtype=np.int64)
    planes = array.reshape(-1, array.shape[2]).T
    counts = np.stack([np.bincount(plane, minlength=len(levels)) for plane in planes])
    return np.stack([counts @ levels, counts @ (levels * levels)])
