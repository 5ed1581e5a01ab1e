"""Image folders: ``ROOT/CLASS/file.jpg``, from one or several roots."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.selection import ALL_FREQUENCIES, Selection, covering
from research.compression.statistics import Statistics
from research.data.augment import Augment, Augmentation
from research.data.baseline import linear_top1
from research.data.block_samples import BlockCrop, BlockSamples, FileRows
from research.data.coefficients import Coefficients
from research.data.crops import CentreCrop, Crop, RandomResizedCrop
from research.data.index import ProgressCallback, index_folder
from research.data.loader import BatchSource, EpochLoader, SampleKey
from research.data.readers import BitstreamReader, PixelReader, Reader, Sample, decode, to_rgb
from research.data.source import IMAGENET_CLASSES, Demo, NetworkInput, expected_classes
from research.data.splits import (
    Split,
    check_num_classes,
    check_same_classes,
    class_of,
    common_classes,
    hold_out,
    listed,
    nothing_left,
    spread,
)
from research.data.transforms import CoefficientTransform, DeviceTransform, PixelTransform
from research.utils.errors import DamagedImage, UserError

log = logging.getLogger(__name__)


class ImageFolders:
    """Classification data in folders, one sub-folder a class.

    Several training roots either all hold the same classes or share none (a data set cut up by
    images or by classes); anything between is taken for a mistake.

    Args:
        name: what the tracker calls the data set.
        train_dirs: training roots.
        val_dir: validation root; when null, a seeded share of the training images is held out.
        test_dir: test root, only read by ``evaluate split=test``.
        val_fraction: share of the training images held out when ``val_dir`` is null.
        num_classes: how many classes the folders must hold; null takes any.
        image_size: side of the square network input, in pixels; null: the network's own.
        batch_size: samples a batch, in training and validation.
        workers: loader processes; null chooses by device.
        pin_memory: page-locked batches; null chooses by device.
        random_crop: random resized crops in training; the validation crop when false.
        random_flip: mirror half of the training images (on the device).
        crop_scale: range of a random crop's share of the image area.
        crop_ratio: range of a random crop's width / height.
        crop_pct: side of the validation crop as a share of the short side; null: the network's own.
        mean: RGB means on a 0…1 scale, for networks on pixels; null: the network's own.
        std: RGB standard deviations on a 0…1 scale; null: the network's own.
        augmentation: what else happens to training images, on the device.
        max_train_images: keep at most so many training images, spread over the classes.
        max_val_images: the same for validation.
        cache_dir: folder for the index of headers and for DCT statistics.
        linear_baseline: after training, fit and print a linear classifier on colours.
        stored_size: read every file as a warehouse of this image size holds it, and cut the
            input from its blocks; null for crops of the image itself.
        demo: makes the folders first, when they are ours to make.
        network: what the network asks for.
    """

    def __init__(
        self,
        name: str,
        train_dirs: Sequence[str],
        val_dir: str | None,
        test_dir: str | None,
        val_fraction: float,
        num_classes: int | None,
        image_size: int | None,
        batch_size: int,
        workers: int | None,
        pin_memory: bool | None,
        random_crop: bool,
        random_flip: bool,
        crop_scale: Sequence[float],
        crop_ratio: Sequence[float],
        crop_pct: float | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augmentation: Augmentation,
        max_train_images: int | None,
        max_val_images: int | None,
        cache_dir: str,
        linear_baseline: bool,
        stored_size: int | None,
        demo: Demo | None,
        network: NetworkInput,
    ) -> None:
        self.name = name
        self.train_dirs = [Path(path) for path in train_dirs]
        self.val_dir = None if val_dir is None else Path(val_dir)
        self.test_dir = None if test_dir is None else Path(test_dir)
        self.val_fraction = val_fraction
        self.num_classes = num_classes
        self.image_size = image_size or network.size
        self.batch_size = batch_size
        self.workers = workers
        self.pin_memory = pin_memory
        self.random_flip = random_flip
        self.mean = list(mean or network.mean)
        self.std = list(std or network.std)
        self.augment = Augment(augmentation, self.mean)
        self.max_images = {"train": max_train_images, "val": max_val_images, "test": None}
        self.cache = Path(cache_dir)
        self.linear_baseline = linear_baseline
        self.demo = demo
        self.coefficients = network.coefficients
        self.random_crop = random_crop
        self.block_crop = None if stored_size is None else BlockCrop(stored_size, self.image_size)
        share = network.crop_pct if crop_pct is None else crop_pct
        self.eval_crop = CentreCrop(share if self.block_crop is None else 1.0)
        self.train_crop: Crop = self.eval_crop
        if random_crop:
            low, high = crop_scale
            narrow, wide = crop_ratio
            self.train_crop = RandomResizedCrop((low, high), (narrow, wide))
        self.classes: list[str] = []
        self.splits: dict[str, Split] = {}

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        """Read (or recall) every header, settle the classes and the splits.

        Args:
            seed: draws the held-out share and the kept images.
            progress: told while headers are read.

        Raises:
            UserError: for a missing or empty folder, class folders that do not fit together, or
                a split in which no file can be read.
        """
        if self.demo is not None:
            self.demo.render(progress)
        roots = [self._index(root, "dataset.train_dirs", progress) for root in self.train_dirs]
        self.classes = common_classes(self.train_dirs, roots)
        where = ", ".join(map(str, self.train_dirs))
        check_num_classes(self.num_classes, self.classes, where)
        train = self._split(list(zip(self.train_dirs, roots, strict=True)))
        if self.val_dir is None:
            train, val = hold_out(train, self.val_fraction, seed)
        else:
            val = self._eval_split(self.val_dir, "dataset.val_dir", progress)
        self.splits = {"train": train, "val": val}
        if self.test_dir is not None:
            self.splits["test"] = self._eval_split(self.test_dir, "dataset.test_dir", progress)
        for which, split in self.splits.items():
            limit = self.max_images[which]
            if limit is not None and limit < len(split.files):
                self.splits[which] = spread(split, limit, seed)
            if not split.files:
                raise UserError(f"dataset.{which}", nothing_left(which, split))

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        """One split, with training or validation crops.

        Raises:
            UserError: when the data set has no such split.
        """
        if split not in self.splits:
            raise UserError(
                "split",
                f"split={split}: this data set has {', '.join(self.splits)}"
                + ("; give dataset.test_dir=FOLDER" if split == "test" else ""),
            )
        files = self.splits[split]
        if self.block_crop is not None:
            rows = FileRows(files.files, self._reader(), self.eval_crop)
            random = train and self.random_crop
            return BlockSamples(
                rows, files.labels, self.block_crop, seed, random=random, left_out=files.left_out
            )
        crop = self.train_crop if train else self.eval_crop
        return ImageSamples(files, self._reader(), crop, seed)

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        if self.coefficients is None:
            return PixelTransform(self.mean, self.std, self.random_flip, self.augment)
        numbers = None
        if measured:
            numbers = self._statistics(self.coefficients, progress)
        return CoefficientTransform(
            self.coefficients.selection,
            self.coefficients.range_,
            numbers,
            self.random_flip,
            self._shipped(self.coefficients),
            self.augment,
        )

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        """Images with validation crops; every label is -1."""
        reader, rng = self._reader(), np.random.default_rng(0)
        inputs = reader.stack([reader.read(path, self.eval_crop, rng) for path in paths])
        if self.block_crop is not None and isinstance(inputs, Blocks):
            inputs = self.block_crop.centre(inputs)
        index = torch.arange(len(paths))
        return ClassificationBatch(index, inputs, torch.full_like(index, -1))

    def load_image(self, path: Path) -> list[Image]:
        return [to_rgb(decode(path))]

    def expected_metadata(self, model: Mapping[str, Any], *, look: bool) -> dict[str, Any]:
        known = self._class_folders() if look else None
        return {"name": self.name, "classes": expected_classes(model, known, IMAGENET_CLASSES)}

    def _class_folders(self) -> list[str] | None:
        folders = {
            folder.name
            for root in self.train_dirs
            if root.is_dir()
            for folder in root.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        }
        return sorted(folders) or (None if self.demo is None else list(self.demo.classes))

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        return {name: (len(split.files), split.left_out) for name, split in self.splits.items()}

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "classes": self.classes}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        self.classes = list(metadata["classes"])

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        return None

    def baseline(self) -> str | None:
        """Validation top-1 of a linear classifier on this data's colours; see ``baseline``."""
        if not self.linear_baseline:
            return None
        reader = PixelReader(self.image_size)
        uncropped = (
            ImageSamples(self.splits[split], reader, self.eval_crop, seed=0)
            for split in ("train", "val")
        )
        top1 = linear_top1(*(EpochLoader(part, 256, seed=0, train=False) for part in uncropped))
        return f"top1 {top1:.4f}, a linear classifier on mean colour and DC values"

    def fingerprint(self) -> str:
        """Quick hash of the data: every file's split, relative name and size (no content)."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            for path, label in zip(split.files, split.labels, strict=True):
                line = f"{name}/{self.classes[label]}/{path.name}:{path.stat().st_size}\n"
                digest.update(line.encode())
        return digest.hexdigest()[:16]

    def _reader(self, selection: Selection | None = None) -> Reader:
        size = self.image_size if self.block_crop is None else self.block_crop.stored
        if self.coefficients is None or self.coefficients.source == "pixels":
            return PixelReader(size)
        return BitstreamReader(size, selection or self._shipped(self.coefficients))

    def _shipped(self, kept: Coefficients) -> Selection:
        return kept.selection if self.block_crop is None else covering(kept.selection)

    def _statistics(
        self, kept: Coefficients, progress: ProgressCallback | None
    ) -> Statistics | None:
        """Of all 64 frequencies over the training split, as validation would see it."""
        split, reader = self.splits["train"], self._reader(ALL_FREQUENCIES)
        crop = f"bilinear, centre crop {self.eval_crop.pct}"
        samples: BatchSource = ImageSamples(split, reader, self.eval_crop, seed=0)
        if self.block_crop is not None:
            crop = f"centre blocks of {self.block_crop.stored}"
            rows = FileRows(split.files, reader, self.eval_crop)
            samples = BlockSamples(rows, split.labels, self.block_crop, seed=0, random=False)
        key = {"data": self.fingerprint(), "image_size": self.image_size, "resize": crop}
        return kept.statistics(samples, ALL_FREQUENCIES, key, self.cache / "statistics", progress)

    def _index(self, root: Path, key: str, progress: ProgressCallback | None) -> dict[str, str]:
        if not root.is_dir():
            raise UserError(
                key, f"{key}: no folder {root}", "give the folder that holds the classes"
            )
        entries = index_folder(root, self.cache, progress)
        index = {name: entry.damage for name, entry in entries.items() if "/" in name}
        if not index:
            raise UserError(
                key, f"{key}: {root} holds no CLASS/IMAGE files", "one folder a class is read"
            )
        filled = {class_of(name) for name in index}
        empty = sorted(
            folder.name
            for folder in root.iterdir()
            if folder.is_dir() and folder.name not in filled and not folder.name.startswith(".")
        )
        if empty:
            raise UserError(
                key,
                f"{key}: {root} holds class folder {listed(empty)} without any image",
                "fill or remove it",
            )
        return index

    def _eval_split(self, root: Path, key: str, progress: ProgressCallback | None) -> Split:
        index = self._index(root, key, progress)
        missing = check_same_classes(self.classes, {class_of(name) for name in index}, root, key)
        if missing:
            log.warning("%s: %s has no image of class %s", key, root, listed(missing))
        return self._split([(root, index)])

    def _split(self, roots: list[tuple[Path, dict[str, str]]]) -> Split:
        position = {name: label for label, name in enumerate(self.classes)}
        files: list[Path] = []
        labels: list[int] = []
        left_out: Counter[str] = Counter()
        for root, index in roots:
            for name, damage in index.items():
                if damage:
                    left_out[damage] += 1
                else:
                    files.append(root / name)
                    labels.append(position[class_of(name)])
        return Split(files, labels, dict(left_out))


class ImageSamples:
    """One split as batches; a file that turns out damaged leaves its batch and is counted.

    Args:
        split: files and labels.
        reader: turns a file into a fixed-size sample.
        crop: where to cut it.
        seed: with a key's epoch and index, seeds the crop.
    """

    def __init__(self, split: Split, reader: Reader, crop: Crop, seed: int) -> None:
        self.split = split
        self.reader = reader
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.files)

    @property
    def left_out(self) -> dict[str, int]:
        return self.split.left_out

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        samples: list[Sample] = []
        kept: list[int] = []
        damage: Counter[str] = Counter()
        for key in keys:
            rng = np.random.default_rng((self.seed, key.epoch, key.index))
            try:
                sample = self.reader.read(self.split.files[key.index], self.crop, rng)
            except DamagedImage as error:
                damage[f"left_out/{error.kind}"] += 1
                continue
            if sample.detour:
                damage[f"fallback/{sample.detour}"] += 1
            samples.append(sample)
            kept.append(key.index)
        labels = torch.tensor([self.split.labels[index] for index in kept], dtype=torch.int64)
        inputs = self.reader.stack(samples)
        return ClassificationBatch(
            torch.tensor(kept, dtype=torch.int64), inputs, labels, skipped=dict(damage)
        )
