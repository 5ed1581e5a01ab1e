"""RGB + X frames as batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from research.batch import DetectionBatch
from research.data.frames.frame import Frame
from research.data.frames.letterbox import Letterbox
from research.data.loader import SampleKey
from research.data.rgbx.arrays import Form, Pixels, letterboxed, read_array
from research.utils.errors import DamagedImage


class ArraySamples:
    """Frames as batches; a file that turns out damaged leaves its batch and is counted.

    Args:
        frames: of a split.
        size: side of the canvas in pixels.
        form: that every file must have.
        left_out: files that the data set left out, by kind.
    """

    def __init__(
        self, frames: Sequence[Frame], size: int, form: Form, left_out: Mapping[str, int]
    ) -> None:
        self.frames = frames
        self.size = size
        self.form = form
        self.skipped = dict(left_out)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitems__(self, keys: list[SampleKey]) -> DetectionBatch:
        arrays: list[Pixels] = []
        kept: list[int] = []
        damage: Counter[str] = Counter()
        for key in keys:
            try:
                arrays.append(read_array(self.frames[key.index].image, self.form))
            except DamagedImage as error:
                damage[f"left_out/{error.kind}"] += 1
                continue
            kept.append(key.index)
        batch = stacked(arrays, self.size, self.form, [self.frames[index] for index in kept])
        batch.index = torch.tensor(kept, dtype=torch.int64)
        batch.skipped = dict(damage)
        return batch


def stacked(
    arrays: Sequence[Pixels], size: int, form: Form, frames: Sequence[Frame] | None = None
) -> DetectionBatch:
    """Arrays of any sizes, letterboxed.

    Args:
        arrays: as read.
        size: side of the canvas in pixels.
        form: of the arrays.
        frames: what is in them; nothing when null.
    """
    count = len(arrays)
    slots = max([1, *(len(frame.boxes) for frame in frames or ())])
    inputs = np.zeros((count, form.channels, size, size), form.dtype)
    boxes, mask = np.zeros((count, slots, 4), np.float32), np.zeros((count, slots), bool)
    labels = np.zeros((count, slots), np.int64)
    sizes = np.array([array.shape[:2] for array in arrays], np.int32).reshape(-1, 2)
    for row, array in enumerate(arrays):
        inputs[row] = letterboxed(array, size)
        if frames is None or not frames[row].boxes:
            continue
        height, width = array.shape[:2]
        found = np.array(frames[row].boxes, dtype=np.float64)
        boxes[row, : len(found)] = Letterbox.of(height, width, size).boxes(found)
        mask[row, : len(found)] = True
        labels[row, : len(found)] = frames[row].labels
    tensors = (torch.from_numpy(part) for part in (inputs, boxes, mask, labels, sizes))
    return DetectionBatch(torch.arange(count), *tensors)
