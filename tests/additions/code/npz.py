"""Images in NumPy archives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from research.batch import ClassificationBatch
from research.data.crops import CentreCrop
from research.data.datamodule import Common, DataModule
from research.data.loader import BatchSource, SampleKey
from research.data.readers import PixelReader
from research.data.splits import split_named
from research.data.transforms import DeviceTransform, PixelTransform
from research.utils.errors import UserError


class NpzImages(DataModule):
    """``ROOT/SPLIT.npz`` with ``images`` [N, S, S, 3] uint8, ``labels`` [N] and ``classes`` [C].

    Args:
        root: folder of ``train.npz`` and ``val.npz``.
        image_size: side S in pixels; ``None``: the network's own.
        common: see ``Common``.
    """

    splits: dict[str, NpzSplit]

    def __init__(self, root: str, image_size: int | None, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.image_size = image_size or self.network.size

    def prepare(self, seed: int) -> None:
        for file in sorted(self.root.glob("*.npz")):
            with np.load(file) as arrays:
                self.classes = arrays["classes"].tolist()
                self.splits[file.stem] = NpzSplit(arrays["images"], arrays["labels"])
        if not {"train", "val"} <= self.splits.keys():
            raise UserError("dataset.root", f"dataset.root={self.root}: no train.npz and val.npz")

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        return split_named(self.splits, split, self.root, "add test.npz")

    def transform(self, *, measured: bool = True) -> DeviceTransform:
        return PixelTransform(self.network.mean, self.network.std, flip=True)

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        reader, crop, rng = PixelReader(self.image_size), CentreCrop(1.0), np.random.default_rng(0)
        images = reader.stack([reader.read(path, crop, rng) for path in paths])
        return ClassificationBatch(torch.arange(len(paths)), images, torch.full((len(paths),), -1))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in self.splits.values():
            digest.update(split.images.numpy().tobytes())
        return digest.hexdigest()[:16]


class NpzSplit:
    """The samples of one file.

    Args:
        images: [N, S, S, 3] uint8.
        labels: [N] class indices.
    """

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        index = torch.tensor([key.index for key in keys])
        return ClassificationBatch(index, self.images[index], self.labels[index])
