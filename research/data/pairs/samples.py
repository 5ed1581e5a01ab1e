"""Dataset of photo pairs that reads a whole batch in one call."""

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
from research.data.image_files import decode
from research.data.image_modes import to_rgb
from research.data.loader import SampleKey
from research.data.pairs.lists import Pair, PairSet
from research.utils.errors import DamagedImage


class SquareResize:
    """Reads photos of any aspect ratio as squares.

    Args:
        size: side of the square in pixels.
        fill: RGB 0…255 to pad with; ``None`` crops the centred square instead.
    """

    def __init__(self, size: int, fill: Sequence[int] | None) -> None:
        self.size = size
        self.fill = fill

    def __call__(self, path: Path) -> Tensor:
        """The photo, uint8 [3, S, S], resized with PIL's antialiased bilinear filter.

        Raises:
            DamagedImage: if the file cannot be read.
        """
        pixels = self._crop(path) if self.fill is None else self._pad(path, self.fill)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _pad(self, path: Path, fill: Sequence[int]) -> NDArray[np.uint8]:
        image = read_photo(path, lambda size: max(size) / self.size)
        box = Letterbox.of(image.height, image.width, self.size)
        canvas = np.empty((self.size, self.size, 3), np.uint8)
        canvas[:] = fill
        resized = image.resize((box.width, box.height), Image.Resampling.BILINEAR)
        rows = slice(box.pad_y, box.pad_y + box.height)
        columns = slice(box.pad_x, box.pad_x + box.width)
        canvas[rows, columns] = np.asarray(resized)
        return canvas

    def _crop(self, path: Path) -> NDArray[np.uint8]:
        image = read_photo(path, lambda size: min(size) / self.size)
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        edges = (left, top, left + side, top + side)
        square = (self.size, self.size)
        return np.asarray(image.resize(square, Image.Resampling.BILINEAR, box=edges))


class PairSamples:
    """Pairs as batches; a pair with a damaged photo is left out of its batch and counted.

    Args:
        pairs: pairs of a split.
        load: network input of a photo, by its index.
        shape: shape of that input, for empty batches.
        dtype: type of that input, for empty batches.
        skipped: number of pairs that the data set skipped, by reason.
    """

    def __init__(
        self,
        pairs: PairSet,
        load: Callable[[int], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        skipped: Mapping[str, int],
    ) -> None:
        self.pairs = pairs
        self.load = load
        self.shape = tuple(shape)
        self.dtype = dtype
        self.skipped = dict(skipped)

    def __len__(self) -> int:
        return len(self.pairs.pairs)

    @property
    def groups(self) -> NDArray[np.int64]:
        """The series of each pair."""
        return np.array([pair.series for pair in self.pairs.pairs], np.int64)

    def sample_name(self, index: int) -> str:
        pair = self.pairs.pairs[index]
        return f"{self.pairs.photos[pair.first]} with {self.pairs.photos[pair.second]}"

    def __getitems__(self, keys: list[SampleKey]) -> PairBatch:
        loaded: dict[int, Tensor | str] = {}  # a photo can be in several pairs of a batch
        indices: list[int] = []
        inputs: list[Tensor] = []
        skipped: Counter[str] = Counter()
        for key in keys:
            pair = self.pairs.pairs[key.index]
            both = [self._load_once(photo, loaded) for photo in (pair.first, pair.second)]
            photos = [photo for photo in both if isinstance(photo, Tensor)]
            if len(photos) < len(both):
                skipped[f"left_out/{next(kind for kind in both if isinstance(kind, str))}"] += 1
                continue
            inputs.append(torch.stack(photos))
            indices.append(key.index)
        empty = torch.empty(0, 2, *self.shape, dtype=self.dtype)
        batch = collate_pairs([self.pairs.pairs[index] for index in indices], inputs, empty)
        batch.index = torch.tensor(indices, dtype=torch.int64)
        batch.skipped = dict(skipped)
        kinds = {photo: kind for photo, kind in loaded.items() if isinstance(kind, str)}
        batch.left_out = {str(self.pairs.photos[photo]): kind for photo, kind in kinds.items()}
        return batch

    def _load_once(self, photo: int, loaded: dict[int, Tensor | str]) -> Tensor | str:
        """The input of a photo, or the kind of its damage."""
        if photo not in loaded:
            try:
                loaded[photo] = self.load(photo)
            except DamagedImage as error:
                loaded[photo] = error.kind
        return loaded[photo]


def load_photo(photos: Sequence[Path], resize: SquareResize, index: int) -> Tensor:
    """Pixels of a photo, uint8 [3, S, S]."""
    return resize(photos[index])


def load_feature(features: Tensor, index: int) -> Tensor:
    """Row of a photo in features [N, D]."""
    return features[index]


class PhotoIndex:
    """File names, series and pixels of the photos of a batch, for display.

    Args:
        resize: reads photos as squares.

    Attributes:
        photos: files of the data set; empty before it is prepared.
        series: names of the series; empty before the data set is prepared.
    """

    def __init__(self, resize: SquareResize) -> None:
        self.resize = resize
        self.photos: Sequence[Path] = []
        self.series: Sequence[str] = []

    def images(self, batch: PairBatch) -> list[Tensor]:
        """The first photos and the second, uint8 [B, 3, S, S] each."""
        images = {photo: self._image(photo) for photo in set(batch.photos.flatten().tolist())}
        return [torch.stack([images[photo] for photo in side]) for side in batch.photos.T.tolist()]

    def names(self, batch: PairBatch) -> dict[str, list[str]]:
        """``series``, and the files ``first`` and ``second``."""
        first, second = (
            [self.photos[photo].name for photo in side] for side in batch.photos.T.tolist()
        )
        series = [self.series[number] for number in batch.series.tolist()]
        return {"series": series, "first": first, "second": second}

    def _image(self, photo: int) -> Tensor:
        try:
            return self.resize(self.photos[photo])
        except DamagedImage:
            # Damaged after its features were cached: a missing picture must not end the run.
            return torch.full((3, self.resize.size, self.resize.size), 255, dtype=torch.uint8)


def collate_pairs(pairs: Sequence[Pair], inputs: Sequence[Tensor], empty: Tensor) -> PairBatch:
    """A batch of pairs with their inputs [2, …] each; ``empty`` is the input of no pairs."""
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
    """Pixels of a photo.

    Args:
        path: the file.
        shrink: maximum reduction as a function of (width, height), for formats that decode smaller
            images with less work, as JPEG does in powers of two.
        mode: ``RGB`` or ``L``.

    Raises:
        DamagedImage: if the file cannot be decoded.
    """
    image = decode(path, shrink, grey=mode == "L")
    return image if image.mode == mode else to_rgb(image).convert(mode)
