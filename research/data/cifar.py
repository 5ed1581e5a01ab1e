"""The data sets CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from research.batch import ClassificationBatch
from research.compression.selection import ALL_FREQUENCIES
from research.compression.statistics import Statistics
from research.data import cifar_files
from research.data.cifar_files import LabelledImages
from research.data.cifar_rules import SIDE
from research.data.classification import ClassificationData, CommonImages
from research.data.coefficients import CoefficientSpec
from research.data.crops import CentreCrop, PadCrop
from research.data.loader import BatchSource
from research.data.readers import PixelReader
from research.data.resident import ResidentImages, ResidentSamples, resize
from research.data.splits import balanced_subset, check_num_classes, split_named
from research.utils.errors import UserError

log = logging.getLogger(__name__)

GIB = 2**30
Splits = dict[str, tuple[str, NDArray[np.int64]]]
"""For each split, the part of its images (``train`` or ``test``) and their indices in it."""


class Cifar(ClassificationData):
    """32×32 images of 10 or 100 classes: 50,000 for training, 10,000 for testing.

    The validation split is held out of the training images and does not depend on the seed of the
    run, so that runs with different seeds are comparable. The test images are the ``test`` split.

    Args:
        root: folder with the files, in any of the layouts of ``cifar_files.read``.
        download: download them if they are missing.
        classes: 10 or 100.
        val_images: number of training images to hold out, balanced over the classes.
        split_seed: seed of the held-out images and of the subsets ``max_train_images`` and
            ``max_val_images``.
        full_train: train on all training images and validate on the test set (the protocol of He
            et al., 2016, and Huang et al., 2017).
        padding: pixels on each side before a random crop.
        padding_mode: what they are, see ``PadCrop``.
        random_crop: random crops in training.
        on_device: keep the images in device memory; ``None``: if they fit ``device_budget``.
        device_budget: in GiB.
        common: see ``CommonImages``.
    """

    splits: Splits

    def __init__(
        self,
        root: str,
        download: bool,
        classes: int,
        val_images: int,
        split_seed: int,
        full_train: bool,
        padding: int,
        padding_mode: str,
        random_crop: bool,
        on_device: bool | None,
        device_budget: float,
        **common: Unpack[CommonImages],
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.download = download
        self.family = cifar_files.FAMILIES[classes]
        self.val_images = val_images
        self.split_seed = split_seed
        self.full_train = full_train
        self.crop = PadCrop(padding, padding_mode) if random_crop and padding else None
        self.on_device = on_device
        self.device_budget = device_budget
        self.parts: dict[str, ResidentImages] = {}
        self.digest = ""

    def prepare(self, seed: int) -> None:
        """Read the files, after downloading them if needed, and hold out validation images.

        Args:
            seed: not used: the split is the same for every run.

        Raises:
            UserError: see ``cifar_files.read``; or if the settings do not match the data.
        """
        self.classes = list(self.family.classes)
        check_num_classes(self.num_classes, self.classes, self.family.title)
        parts = cifar_files.read(self.root, len(self.classes), download=self.download)
        self.splits = self._split(parts)
        self.remarks = []
        self.remark_missing_classes(
            {name: parts[part].labels[indices] for name, (part, indices) in self.splits.items()}
        )
        size = sum(part.pixels.nbytes for part in parts.values())
        on_device = size <= self.device_budget * GIB if self.on_device is None else self.on_device
        self.parts = {
            name: ResidentImages(part.pixels, part.labels, on_device=on_device)
            for name, part in parts.items()
        }
        digest = hashlib.sha256()
        for part, indices in self.splits.values():
            digest.update(np.stack([indices, parts[part].labels[indices]]).tobytes())
        for part in parts:
            digest.update(parts[part].pixels.data)
        self.digest = digest.hexdigest()[:16]
        held_out = f"held out of its training images by seed {self.split_seed}"
        val = "the test set" if self.full_train else held_out
        self.reading = f"{self.family.title} in {self.root}; val is {val}"
        if self.full_train:
            log.info(
                "dataset.full_train=true: all training images are used for training and the "
                "validation split is the test set, so the best epoch is selected on it"
            )

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        part, indices = split_named(self.splits, split, "this data set", "")
        images, labels = self.parts[part].to(device)
        crop = self.crop if train else None
        return ResidentSamples(images, labels, indices, crop, self.image_size, seed)

    def loading(
        self, device: torch.device, workers: int | None, pin_memory: bool | None
    ) -> tuple[int, bool]:
        """No processes unless they are asked for: no files are read."""
        workers = workers or 0
        if device.type == "cpu":
            return workers, False
        if self.parts["train"].stays_on(device):
            return 0, False
        return super().loading(device, workers, pin_memory)

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        """Read images, centre-cropped to squares and resized to 32 px first; every label is -1."""
        reader, crop, rng = PixelReader(SIDE), CentreCrop(1.0), np.random.default_rng(0)
        inputs = reader.stack([reader.read(path, crop, rng) for path in paths])
        index = torch.arange(len(paths))
        return ClassificationBatch(
            index, resize(inputs, self.image_size), torch.full_like(index, -1)
        )

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        return {name: (len(indices), {}) for name, (_, indices) in self.splits.items()}

    def known_classes(self) -> Sequence[str] | None:
        return self.family.classes

    def fingerprint(self) -> str:
        """Hash of all pixels and of the splits; the same for every layout of the files."""
        return self.digest

    def _statistics(self, spec: CoefficientSpec) -> Statistics | None:
        samples = self.dataset("train", seed=0, train=False, device=torch.device("cpu"))
        key = {"data": self.digest, "image_size": self.image_size, "resize": f"from {SIDE}"}
        return spec.statistics(samples, ALL_FREQUENCIES, key, self.cache / "statistics")

    def _split(self, parts: Mapping[str, LabelledImages]) -> Splits:
        labels = parts["train"].labels
        whole = {name: np.arange(len(part.labels)) for name, part in parts.items()}
        splits: Splits = {"train": ("train", whole["train"]), "val": ("test", whole["test"])}
        if not self.full_train:
            if self.val_images >= len(labels):
                raise UserError(
                    "dataset.val_images",
                    f"dataset.val_images={self.val_images}: {self.family.title} has "
                    f"{len(labels):,} training images",
                    "set a smaller number",
                )
            rng = np.random.default_rng((self.split_seed, 5))
            held_out = balanced_subset(labels, self.val_images, rng)
            splits["train"] = "train", np.setdiff1d(whole["train"], held_out)
            splits["val"] = "train", held_out
        for number, (name, (part, indices)) in enumerate(splits.items()):
            limit = self.max_images[name]
            if limit is not None and limit < len(indices):
                rng = np.random.default_rng((self.split_seed, 6, number))
                subset = balanced_subset(parts[part].labels[indices], limit, rng)
                splits[name] = part, indices[subset]
        return {**splits, "test": ("test", whole["test"])}
