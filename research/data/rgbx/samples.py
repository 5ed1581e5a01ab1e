"""Dataset of RGB + X frames that reads a whole batch in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from research.batch import DetectionBatch
from research.data.frames.frame import Frame
from research.data.frames.letterbox import Letterbox
from research.data.loader import SampleKey
from research.data.rgbx.arrays import ArraySpec, Pixels, letterbox, read_array
from research.utils.errors import DamagedImage


class ArraySamples:
    """Frames as batches; a damaged file is left out of its batch and counted.

    Args:
        frames: frames of a split.
        size: side of the canvas in pixels.
        spec: required channels and type of every file.
        skipped: number of frames that the data set skipped, by kind.
    """

    def __init__(
        self, frames: Sequence[Frame], size: int, spec: ArraySpec, skipped: Mapping[str, int]
    ) -> None:
        self.frames = frames
        self.size = size
        self.spec = spec
        self.skipped = dict(skipped)
        self.has_ignored = any(any(frame.ignored) for frame in frames)

    def __len__(self) -> int:
        return len(self.frames)

    def sample_name(self, index: int) -> str:
        return str(self.frames[index].image)

    def __getitems__(self, keys: list[SampleKey]) -> DetectionBatch:
        arrays: list[Pixels] = []
        indices: list[int] = []
        skipped: Counter[str] = Counter()
        for key in keys:
            try:
                arrays.append(read_array(self.frames[key.index].image, self.spec))
            except DamagedImage as error:
                skipped[f"left_out/{error.kind}"] += 1
                continue
            indices.append(key.index)
        frames = [self.frames[index] for index in indices]
        batch = collate_frames(arrays, self.size, self.spec, frames)
        if not self.has_ignored:  # of all batches of a split, or of none
            batch.ignored = None
        batch.index = torch.tensor(indices, dtype=torch.int64)
        batch.skipped = dict(skipped)
        return batch


def collate_frames(
    arrays: Sequence[Pixels], size: int, spec: ArraySpec, frames: Sequence[Frame] | None = None
) -> DetectionBatch:
    """A batch of letterboxed arrays, which may differ in size.

    Args:
        arrays: arrays [H, W, C].
        size: side of the canvas in pixels.
        spec: channels and type of the arrays.
        frames: boxes and labels of the arrays; ``None`` for a batch without boxes.
    """
    count = len(arrays)
    slots = max([1, *(len(frame.boxes) for frame in frames or ())])
    inputs = np.zeros((count, spec.channels, size, size), spec.dtype)
    boxes, mask = np.zeros((count, slots, 4), np.float32), np.zeros((count, slots), bool)
    labels, ignored = np.zeros((count, slots), np.int64), np.zeros((count, slots), bool)
    sizes = np.array([array.shape[:2] for array in arrays], np.int32).reshape(-1, 2)
    for row, array in enumerate(arrays):
        inputs[row] = letterbox(array, size)
        if frames is None or not frames[row].boxes:
            continue
        height, width = array.shape[:2]
        own = np.array(frames[row].boxes, dtype=np.float64)
        boxes[row, : len(own)] = Letterbox.of(height, width, size).boxes(own)
        labels[row, : len(own)] = frames[row].labels
        ignored[row, : len(frames[row].ignored)] = frames[row].ignored
        mask[row, : len(own)] = ~ignored[row, : len(own)]
    tensors = (torch.from_numpy(part) for part in (inputs, boxes, mask, labels, sizes))
    return DetectionBatch(torch.arange(count), *tensors, ignored=torch.from_numpy(ignored))
