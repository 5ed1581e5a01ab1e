"""Pairs of photos as batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from research.batch import PairBatch
from research.data.frames.letterbox import Letterbox
from research.data.loader import SampleKey
from research.data.pairs.lists import Pair, PairSet
from research.data.readers import decode, to_rgb
from research.utils.errors import DamagedImage

Look = Callable[[int], Tensor]
"""A photo, by its index, as the network's input."""


class Canvas:
    """Puts a photo of any shape into a square.

    Args:
        size: side of the square in pixels.
        fill: RGB 0…255 around a photo that is no square; null cuts its centred square instead.
    """

    def __init__(self, size: int, fill: Sequence[int] | None) -> None:
        self.size = size
        self.fill = fill

    def __call__(self, path: Path) -> Tensor:
        """The photo, uint8 [3, S, S], resized with PIL's antialiased bilinear filter.

        Raises:
            DamagedImage: when it cannot be read.
        """
        pixels = self._cut(path) if self.fill is None else self._padded(path, self.fill)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _padded(self, path: Path, fill: Sequence[int]) -> NDArray[np.uint8]:
        image = read_photo(path, lambda box: max(box) / self.size)
        box = Letterbox.of(image.height, image.width, self.size)
        canvas = np.empty((self.size, self.size, 3), np.uint8)
        canvas[:] = fill
        resized = image.resize((box.width, box.height), Image.Resampling.BILINEAR)
        rows, columns = (
            slice(start, start + extent)
            for start, extent in ((box.pad_y, box.height), (box.pad_x, box.width))
        )
        canvas[rows, columns] = np.asarray(resized)
        return canvas

    def _cut(self, path: Path) -> NDArray[np.uint8]:
        image = read_photo(path, lambda box: min(box) / self.size)
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        edges = (left, top, left + side, top + side)
        square = (self.size, self.size)
        return np.asarray(image.resize(square, Image.Resampling.BILINEAR, box=edges))


class PairSamples:
    """Pairs as batches; one with a photo that turns out damaged leaves its batch and is counted.

    Args:
        pairs: of a split.
        look: the network's input of a photo.
        shape: of that input, for a batch of which nothing is left.
        dtype: likewise.
        left_out: pairs that the data set left out, by kind.
    """

    def __init__(
        self,
        pairs: PairSet,
        look: Look,
        shape: Sequence[int],
        dtype: torch.dtype,
        left_out: Mapping[str, int],
    ) -> None:
        self.pairs = pairs
        self.look = look
        self.shape = tuple(shape)
        self.dtype = dtype
        self.skipped = dict(left_out)

    def __len__(self) -> int:
        return len(self.pairs.pairs)

    def __getitems__(self, keys: list[SampleKey]) -> PairBatch:
        seen: dict[int, Tensor | str] = {}  # photos of a series meet more than once in a batch
        kept: list[int] = []
        inputs: list[Tensor] = []
        damage: Counter[str] = Counter()
        for key in keys:
            pair = self.pairs.pairs[key.index]
            both = [self._once(photo, seen) for photo in (pair.first, pair.second)]
            photos = [photo for photo in both if isinstance(photo, Tensor)]
            if len(photos) < len(both):
                damage[f"left_out/{next(kind for kind in both if isinstance(kind, str))}"] += 1
                continue
            inputs.append(torch.stack(photos))
            kept.append(key.index)
        empty = torch.empty(0, 2, *self.shape, dtype=self.dtype)
        batch = collated([self.pairs.pairs[index] for index in kept], inputs, empty)
        batch.index = torch.tensor(kept, dtype=torch.int64)
        batch.skipped = dict(damage)
        return batch

    def _once(self, photo: int, seen: dict[int, Tensor | str]) -> Tensor | str:
        """The photo, or the kind of its damage."""
        if photo not in seen:
            try:
                seen[photo] = self.look(photo)
            except DamagedImage as error:
                seen[photo] = error.kind
        return seen[photo]


class PhotoLook:
    """A photo's pixels by its index.

    Args:
        photos: files.
        canvas: what makes squares of them.
    """

    def __init__(self, photos: Sequence[Path], canvas: Canvas) -> None:
        self.photos = photos
        self.canvas = canvas

    def __call__(self, index: int) -> Tensor:
        return self.canvas(self.photos[index])


class Album:
    """A data set's photos for people.

    Args:
        canvas: what makes squares of them.

    Attributes:
        photos: files; none before the data set is prepared.
        series: names, likewise.
    """

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.photos: Sequence[Path] = []
        self.series: Sequence[str] = []

    def pictures(self, batch: PairBatch) -> list[Tensor]:
        """The first photos and the second, uint8 [B, 3, S, S] each."""
        seen = {photo: self._picture(photo) for photo in set(batch.photos.flatten().tolist())}
        return [torch.stack([seen[photo] for photo in side]) for side in batch.photos.T.tolist()]

    def names(self, batch: PairBatch) -> dict[str, list[str]]:
        """``series``, and the files ``first`` and ``second``."""
        first, second = (
            [self.photos[photo].name for photo in side] for side in batch.photos.T.tolist()
        )
        series = [self.series[number] for number in batch.series.tolist()]
        return {"series": series, "first": first, "second": second}

    def _picture(self, photo: int) -> Tensor:
        try:
            return self.canvas(self.photos[photo])
        except DamagedImage:
            # Its features were kept from when it could be read, and a picture ends no run.
            return torch.full((3, self.canvas.size, self.canvas.size), 255, dtype=torch.uint8)


class FeatureLook:
    """A photo's features by its index.

    Args:
        rows: [N, D] features.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, index: int) -> Tensor:
        return self.rows[index]


def collated(pairs: Sequence[Pair], inputs: Sequence[Tensor], empty: Tensor) -> PairBatch:
    """Pairs with their inputs, each [2, …]."""
    return PairBatch(
        torch.arange(len(pairs)),
        torch.stack(list(inputs)) if inputs else empty,
        torch.tensor([pair.preference for pair in pairs], dtype=torch.float32),
        torch.tensor([pair.series for pair in pairs], dtype=torch.int64),
        torch.tensor([(p.first, p.second) for p in pairs], dtype=torch.int64).reshape(-1, 2),
    )


def read_photo(
    path: Path, shrink: Callable[[tuple[int, int]], float] | None = None, mode: str = "RGB"
) -> Image.Image:
    """A photo's pixels.

    Args:
        path: the file.
        shrink: of (width, height): by how much it may be smaller on return, if its format gives
            that for less work; JPEG does, in powers of two.
        mode: ``RGB``, or ``L``.

    Raises:
        DamagedImage: when there is nothing whole to decode.
    """

    def draft(image: Image.Image) -> None:
        scale = 1.0 if shrink is None else max(shrink(image.size), 1.0)
        width, height = (max(1, int(side / scale)) for side in image.size)
        image.draft(mode, (width, height))

    image = decode(path, draft)
    return image if image.mode == mode else to_rgb(image).convert(mode)
