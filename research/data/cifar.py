"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as a data set."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from research.batch import ClassificationBatch
from research.compression.selection import ALL_FREQUENCIES
from research.data import cifar_files
from research.data.augment import Augment, Augmentation
from research.data.cifar_files import SIDE, Part
from research.data.crops import CentreCrop, PadCrop
from research.data.index import ProgressCallback
from research.data.loader import BatchSource
from research.data.readers import PixelReader, decode, to_rgb
from research.data.resident import Resident, ResidentSamples, resized
from research.data.source import IMAGENET_CLASSES, NetworkInput, expected_classes
from research.data.splits import check_num_classes, spread_over
from research.data.transforms import CoefficientTransform, DeviceTransform, PixelTransform
from research.utils.errors import UserError

log = logging.getLogger(__name__)

GIB = 2**30
Splits = dict[str, tuple[str, NDArray[np.int64]]]
"""Of each split, the part that its images are in and their places there."""


class Cifar:
    """32×32 photographs of 10 or 100 classes: 50,000 to train on, 10,000 to test.

    Of the training images some are held out for validation, the same ones whatever the seed of the
    run, so that runs of several seeds are judged alike; the test images are the ``test`` split.

    Args:
        name: what the tracker calls the data set.
        root: folder with the files in any of the layouts of ``cifar_files.read``.
        download: fetch them when they are not there.
        classes: 10 or 100.
        num_classes: how many classes there must be; null takes any.
        val_images: training images held out, as many of each class as of any other.
        split_seed: draws them, and what ``max_train_images`` and ``max_val_images`` keep.
        full_train: hold out none; the validation split is then the test set (the protocol of He
            et al., 2016, and Huang et al., 2017).
        image_size: side of the network's input in pixels; other sizes than 32 are resized.
        padding: zeros on each side, out of which training images are cut at random.
        random_crop: do so.
        random_flip: mirror half of the training images (on the device).
        mean: RGB means on a 0…1 scale, for networks on pixels; null: the network's own.
        std: RGB standard deviations on a 0…1 scale; null: the network's own.
        augmentation: what else happens to training images, on the device.
        batch_size: samples a batch, in training and validation.
        workers: loader processes; null: none. There are none where the images are on the device.
        pin_memory: page-locked batches; null chooses by device.
        on_device: keep the images in the device's memory; null: when they fit ``device_budget``.
        device_budget: in GiB.
        max_train_images: keep at most so many training images, spread over the classes.
        max_val_images: the same for validation.
        cache_dir: folder for DCT statistics.
        network: what the network asks for.
    """

    def __init__(
        self,
        name: str,
        root: str,
        download: bool,
        classes: int,
        num_classes: int | None,
        val_images: int,
        split_seed: int,
        full_train: bool,
        image_size: int,
        padding: int,
        random_crop: bool,
        random_flip: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augmentation: Augmentation,
        batch_size: int,
        workers: int | None,
        pin_memory: bool | None,
        on_device: bool | None,
        device_budget: float,
        max_train_images: int | None,
        max_val_images: int | None,
        cache_dir: str,
        network: NetworkInput,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.download = download
        self.family = cifar_files.FAMILIES[classes]
        self.num_classes = num_classes
        self.val_images = val_images
        self.split_seed = split_seed
        self.full_train = full_train
        self.image_size = image_size
        self.crop = PadCrop(padding) if random_crop and padding else None
        self.random_flip = random_flip
        self.mean = list(mean or network.mean)
        self.std = list(std or network.std)
        self.augment = Augment(augmentation, self.mean)
        self.batch_size = batch_size
        self.workers = workers
        self.pin_memory = pin_memory
        self.on_device = on_device
        self.device_budget = device_budget
        self.max_images = {"train": max_train_images, "val": max_val_images}
        self.cache = Path(cache_dir)
        self.coefficients = network.coefficients
        self.classes: list[str] = []
        self.parts: dict[str, Resident] = {}
        self.splits: Splits = {}
        self.digest = ""

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        """Read the files (or fetch them first) and hold out validation images.

        Args:
            seed: not used: the split is the same for every run.
            progress: not told; a few seconds.

        Raises:
            UserError: see ``cifar_files.read``; or the settings do not fit the data.
        """
        self.classes = list(self.family.classes)
        check_num_classes(self.num_classes, self.classes, self.family.title)
        parts = cifar_files.read(self.root, len(self.classes), download=self.download)
        self.splits = self._split(parts)
        size = sum(part.pixels.nbytes for part in parts.values())
        keep = size <= self.device_budget * GIB if self.on_device is None else self.on_device
        self.parts = {
            name: Resident(part.pixels, part.labels, keep=keep) for name, part in parts.items()
        }
        digest = hashlib.sha256()
        for part, places in self.splits.values():
            digest.update(np.stack([places, parts[part].labels[places]]).tobytes())
        for part in parts:
            digest.update(parts[part].pixels.data)
        self.digest = digest.hexdigest()[:16]
        if self.full_train:
            log.info(
                "dataset.full_train=true: every training image is trained on and the validation "
                "split is the test set, so the best epoch is chosen by it"
            )

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        """One split, with random cuts if they are for training.

        Raises:
            UserError: when the data set has no such split.
        """
        if split not in self.splits:
            raise UserError("split", f"split={split}: this data set has {', '.join(self.splits)}")
        part, places = self.splits[split]
        if self.parts[part].stays_on(device):
            self.pin_memory = False
            self.workers = self.workers if device.type == "cpu" else 0
        self.workers = self.workers or 0
        crop = self.crop if train else None
        images, labels = self.parts[part].on(device)
        return ResidentSamples(images, labels, places, crop, self.image_size, seed)

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        kept = self.coefficients
        if kept is None:
            return PixelTransform(self.mean, self.std, self.random_flip, self.augment)
        numbers = None
        if measured:
            part, places = self.splits["train"]
            images, labels = self.parts[part].on(torch.device("cpu"))
            plain = ResidentSamples(images, labels, places, None, self.image_size, seed=0)
            key = {"data": self.digest, "image_size": self.image_size, "resize": f"from {SIDE}"}
            numbers = kept.statistics(
                plain, ALL_FREQUENCIES, key, self.cache / "statistics", progress
            )
        return CoefficientTransform(
            kept.selection, kept.range_, numbers, self.random_flip, augment=self.augment
        )

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        """Images cut to their central square and brought to 32 px first; every label is -1."""
        reader, crop, rng = PixelReader(SIDE), CentreCrop(1.0), np.random.default_rng(0)
        inputs = reader.stack([reader.read(path, crop, rng) for path in paths])
        index = torch.arange(len(paths))
        return ClassificationBatch(
            index, resized(inputs, self.image_size), torch.full_like(index, -1)
        )

    def load_image(self, path: Path) -> list[Image]:
        return [to_rgb(decode(path))]

    def expected_metadata(self, model: Mapping[str, Any], *, look: bool) -> dict[str, Any]:
        known = self.family.classes if look else None
        return {"name": self.name, "classes": expected_classes(model, known, IMAGENET_CLASSES)}

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        return {name: (len(places), {}) for name, (_, places) in self.splits.items()}

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "classes": self.classes}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        self.classes = list(metadata["classes"])

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        return None

    def fingerprint(self) -> str:
        """Hash of every pixel and of the splits; the same for every layout of the files."""
        return self.digest

    def baseline(self) -> str | None:
        return None

    def _split(self, parts: Mapping[str, Part]) -> Splits:
        labels = parts["train"].labels
        every = {name: np.arange(len(part.labels)) for name, part in parts.items()}
        splits: Splits = {"train": ("train", every["train"]), "val": ("test", every["test"])}
        if not self.full_train:
            if self.val_images >= len(labels):
                raise UserError(
                    "dataset.val_images",
                    f"dataset.val_images={self.val_images}: {self.family.title} has "
                    f"{len(labels):,} training images",
                    "hold out fewer",
                )
            held = spread_over(labels, self.val_images, np.random.default_rng((self.split_seed, 5)))
            splits["train"] = "train", np.setdiff1d(every["train"], held)
            splits["val"] = "train", held
        for number, (name, (part, places)) in enumerate(splits.items()):
            limit = self.max_images[name]
            if limit is not None and limit < len(places):
                rng = np.random.default_rng((self.split_seed, 6, number))
                chosen = spread_over(parts[part].labels[places], limit, rng)
                splits[name] = part, places[chosen]
        return {**splits, "test": ("test", every["test"])}
