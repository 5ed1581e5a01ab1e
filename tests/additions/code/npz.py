"""Images in NumPy archives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from research.batch import ClassificationBatch
from research.data.crops import CentreCrop
from research.data.datamodule import NetworkInput, expected_classes
from research.data.index import ProgressCallback
from research.data.loader import BatchSource, SampleKey
from research.data.readers import PixelReader, decode, to_rgb
from research.data.transforms import DeviceTransform, PixelTransform
from research.utils.errors import UserError


class NpzImages:
    """``ROOT/SPLIT.npz`` with ``images`` [N, S, S, 3] uint8, ``labels`` [N] and ``classes`` [C].

    Args:
        name: what the tracker calls the data set.
        root: folder of ``train.npz`` and ``val.npz``.
        image_size: side S in pixels; ``None``: the network's own.
        batch_size: samples a batch.
        network: what the network asks for.
    """

    workers = pin_memory = None

    def __init__(
        self, name: str, root: str, image_size: int | None, batch_size: int, network: NetworkInput
    ) -> None:
        self.name, self.root, self.batch_size = name, Path(root), batch_size
        self.image_size = image_size or network.size
        self.network = network
        self.classes: list[str] = []
        self.splits: dict[str, NpzSplit] = {}

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        for file in sorted(self.root.glob("*.npz")):
            with np.load(file) as arrays:
                self.classes = arrays["classes"].tolist()
                self.splits[file.stem] = NpzSplit(arrays["images"], arrays["labels"])
        if not {"train", "val"} <= self.splits.keys():
            raise UserError("dataset.root", f"dataset.root={self.root}: no train.npz and val.npz")

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        if split not in self.splits:
            raise UserError("split", f"split={split}: choose one of {', '.join(self.splits)}")
        return self.splits[split]

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        return PixelTransform(self.network.mean, self.network.std, flip=True)

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        reader, crop, rng = PixelReader(self.image_size), CentreCrop(1.0), np.random.default_rng(0)
        images = reader.stack([reader.read(path, crop, rng) for path in paths])
        return ClassificationBatch(torch.arange(len(paths)), images, torch.full((len(paths),), -1))

    def load_image(self, path: Path) -> list[Image]:
        return [to_rgb(decode(path))]

    def expected_metadata(self, model: Mapping[str, Any], *, own_classes: bool) -> dict[str, Any]:
        return {"name": self.name, "classes": expected_classes(model, None, default=10)}

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        return {name: (len(split), {}) for name, split in self.splits.items()}

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "classes": self.classes}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        self.classes = list(metadata["classes"])

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        return None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in self.splits.values():
            digest.update(split.images.numpy().tobytes())
        return digest.hexdigest()[:16]

    def baseline(self) -> str | None:
        return None


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
