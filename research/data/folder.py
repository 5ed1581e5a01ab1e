"""Classification data in image folders: ``ROOT/CLASS/file.jpg``, from one or several roots."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.selection import ALL_FREQUENCIES, Selection, covering
from research.compression.statistics import Statistics
from research.config.overrides import override
from research.data.baseline import linear_top1
from research.data.block_samples import BlockCrop, BlockSamples, FileRows
from research.data.classification import ClassificationData, CommonImages
from research.data.coefficients import CoefficientSpec
from research.data.crops import CentreCrop, Crop, RandomResizedCrop
from research.data.datamodule import Demo
from research.data.frames.layout import split_from_name
from research.data.index import content_hash, index_folder
from research.data.listing import PassedOver, list_folders, log_files
from research.data.loader import BatchSource, EpochLoader, SampleKey
from research.data.readers import BitstreamReader, PixelReader, Reader, Sample
from research.data.splits import (
    Split,
    check_not_empty,
    check_num_classes,
    check_same_classes,
    class_of,
    common_classes,
    format_names,
    hold_out,
    split_named,
    subsample,
)
from research.data.texts import names_alike
from research.utils.cache import cached
from research.utils.counts import with_n
from research.utils.errors import DamagedImage, UserError

log = logging.getLogger(__name__)
SHARED = {
    "dataset.train_dirs": "they count twice",
    "dataset.val_dir": "validation on training images says nothing about new ones; without "
    "dataset.val_dir a fraction is held out",
    "dataset.test_dir": "their test metrics say nothing about new images",
}
"""What it means that the images of a key are in another folder too."""


class ImageFolders(ClassificationData):
    """Classification data in folders with one sub-folder per class.

    Several training roots either have the same classes or no class in common (a data set divided
    by images or by classes); anything else is an error.

    Args:
        train_dirs: training roots.
        val_dir: validation root; ``None``: a random fraction of the training images.
        test_dir: test root, only used by ``evaluate split=test``.
        val_fraction: fraction of the training images to hold out if ``val_dir`` is ``None``.
        split_seed: seed of this draw, and of the subsets ``max_train_images`` and
            ``max_val_images``; ``None``: that of the run.
        random_crop: random resized crops in training instead of the validation crop.
        crop_scale: range of a random crop's area as a fraction of the image.
        crop_ratio: range of a random crop's width / height.
        crop_pct: side of the validation crop as a fraction of the short side; ``None``: the
            network's own.
        linear_baseline: after training, fit and print a linear classifier on colours.
        stored_size: read every file as in a prepared store of this image size and crop its
            blocks; ``None`` crops the image itself.
        demo: renders the folders first, for demo data sets.
        common: see ``CommonImages``.
    """

    splits: dict[str, Split]

    def __init__(
        self,
        train_dirs: Sequence[str],
        val_dir: str | None,
        test_dir: str | None,
        val_fraction: float,
        split_seed: int | None,
        random_crop: bool,
        crop_scale: Sequence[float],
        crop_ratio: Sequence[float],
        crop_pct: float | None,
        linear_baseline: bool,
        stored_size: int | None,
        demo: Demo | None,
        **common: Unpack[CommonImages],
    ) -> None:
        super().__init__(**common)
        self.train_dirs = [Path(path) for path in train_dirs]
        self.val_dir = None if val_dir is None else Path(val_dir)
        self.test_dir = None if test_dir is None else Path(test_dir)
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.linear_baseline = linear_baseline
        self.demo = demo
        self.random_crop = random_crop
        self.block_crop = None if stored_size is None else BlockCrop(stored_size, self.image_size)
        crop_pct = self.network.crop_pct if crop_pct is None else crop_pct
        self.eval_crop = CentreCrop(crop_pct if self.block_crop is None else 1.0)
        self.train_crop: Crop = self.eval_crop
        if random_crop:
            low, high = crop_scale
            narrow, wide = crop_ratio
            self.train_crop = RandomResizedCrop((low, high), (narrow, wide))
        self.passed_over = PassedOver()
        self.identities: list[tuple[str, Path, set[int]]] = []

    def prepare(self, seed: int) -> None:
        """Index the folders, determine the classes and the splits.

        Args:
            seed: draws held-out images and subsets, unless ``split_seed`` is set.

        Raises:
            UserError: for a missing or empty folder, inconsistent class folders, or a split
                without a readable file.
        """
        if self.demo is not None:
            self.demo.render()
        self.passed_over, self.remarks, self.identities = PassedOver(), [], []
        seed = seed if self.split_seed is None else self.split_seed
        keys = dict.fromkeys(("train", "val"), "dataset.train_dirs")
        roots = [self._index(root, keys["train"]) for root in self.train_dirs]
        self.classes = common_classes(self.train_dirs, roots, keys["train"])
        where = ", ".join(map(str, self.train_dirs))
        check_num_classes(self.num_classes, self.classes, where)
        train = self._split(list(zip(self.train_dirs, roots, strict=True)))
        if self.val_dir is None:
            train, val = hold_out(train, self.val_fraction, seed)
        else:
            keys["val"] = "dataset.val_dir"
            val = self._eval_split(self.val_dir, keys["val"])
        self.splits = {"train": train, "val": val}
        if self.test_dir is not None:
            keys["test"] = "dataset.test_dir"
            self.splits["test"] = self._eval_split(self.test_dir, keys["test"])
        held_out = f"{self.val_fraction:g} of each class, held out by seed {seed}"
        self.reading = f"CLASS/image folders in {where}; val is {self.val_dir or held_out}"
        self._remark_shared_files()
        for one, other in names_alike(self.classes):
            differ = "differ only in letter case, spaces or Unicode form"
            self.remark(f"the class folders {one!r} and {other!r} {differ}: they are two classes")
        for name, split in self.splits.items():
            check_not_empty(name, split, keys[name])
            limit = self.max_images.get(name)
            if limit is not None and limit < len(split.files):
                self.splits[name] = subsample(split, limit, seed)
        self.remark_missing_classes(
            {name: np.array(split.labels, np.int64) for name, split in self.splits.items()}
        )

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        files = split_named(self.splits, split, "this data set", "set dataset.test_dir=FOLDER")
        if self.block_crop is not None:
            rows = FileRows(files.files, self._reader(), self.eval_crop)
            random = train and self.random_crop
            return BlockSamples(
                rows, files.labels, self.block_crop, seed, random=random, skipped=files.skipped
            )
        crop = self.train_crop if train else self.eval_crop
        return ImageSamples(files, self._reader(), crop, seed)

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        """Read images with validation crops; every label is -1."""
        reader, rng = self._reader(), np.random.default_rng(0)
        inputs = reader.stack([reader.read(path, self.eval_crop, rng) for path in paths])
        if self.block_crop is not None and isinstance(inputs, Blocks):
            inputs = self.block_crop.centre(inputs)
        index = torch.arange(len(paths))
        return ClassificationBatch(index, inputs, torch.full_like(index, -1))

    def known_classes(self) -> Sequence[str] | None:
        folders = {name for root in self.train_dirs if root.is_dir() for name in list_folders(root)}
        return sorted(folders) or (None if self.demo is None else list(self.demo.classes))

    def skipped_samples(self, split: str) -> Mapping[str, int]:
        return self.splits[split].skipped

    def baseline(self) -> str | None:
        """Validation top-1 of a linear classifier on colours, see ``linear_top1``."""
        if not self.linear_baseline:
            return None
        reader = PixelReader(self.image_size)
        splits = [self.splits[name] for name in ("train", "val")]
        key = {
            "linear_baseline": [content_hash(split.files, self.cache) for split in splits],
            "labels": hashlib.sha256(repr([split.labels for split in splits]).encode()).hexdigest(),
            "image_size": self.image_size,
            "crop_pct": self.eval_crop.pct,
        }
        samples = (ImageSamples(split, reader, self.eval_crop, seed=0) for split in splits)
        loaders = (EpochLoader(split, 256, seed=0, train=False) for split in samples)
        top1 = cached(self.cache / "baselines", key, lambda: linear_top1(*loaders))
        value = with_n(f"top1 {top1:.4f}", len(splits[1]), unit=self.unit)
        return f"{value}, a linear classifier on mean colour and DC values"

    def fingerprint(self) -> str:
        """Hash of every file's split, class, name and size, without its content."""
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

    def _shipped(self, spec: CoefficientSpec) -> Selection:
        return spec.selection if self.block_crop is None else covering(spec.selection)

    def _statistics(self, spec: CoefficientSpec) -> Statistics | None:
        """Statistics of all 64 frequencies over the training split with validation crops."""
        if not spec.normalised:
            return None
        split, reader = self.splits["train"], self._reader(ALL_FREQUENCIES)
        crop = f"bilinear, centre crop {self.eval_crop.pct}"
        samples: BatchSource = ImageSamples(split, reader, self.eval_crop, seed=0)
        if self.block_crop is not None:
            crop = f"centre blocks of {self.block_crop.stored}"
            rows = FileRows(split.files, reader, self.eval_crop)
            samples = BlockSamples(rows, split.labels, self.block_crop, seed=0, random=False)
        measured = [split.files[index] for index in spec.measured(samples)]
        content = content_hash(measured, self.cache)
        key = {"content": content, "image_size": self.image_size, "resize": crop}
        return spec.statistics(samples, ALL_FREQUENCIES, key, self.cache / "statistics")

    def _index(self, root: Path, key: str) -> dict[str, str]:
        if not root.is_dir():
            raise UserError(key, f"{key}: no folder {root}", "set the folder of the class folders")
        entries, passed_over = index_folder(root, self.cache)
        index = {name: entry.damage for name, entry in entries.items() if "/" in name}
        self.identities.append((key, root, {entries[name].identity for name in index}))
        for name in sorted(entries.keys() - index.keys()):
            passed_over.add("outside a class folder", name)
        self.passed_over.update(passed_over)
        log_files(root, index, passed_over)
        if not index:
            raise UserError(
                key, f"{key}: {root} has no CLASS/IMAGE files", "use one sub-folder per class"
            )
        classes = {class_of(name) for name in index}
        _refuse_splits(root, classes, index, key)
        empty = [name for name in list_folders(root) if name not in classes]
        if empty:
            raise UserError(
                key,
                f"{key}: {root} has class folder {format_names(empty)} without any image",
                "add images or remove it",
            )
        return index

    def _eval_split(self, root: Path, key: str) -> Split:
        index = self._index(root, key)
        check_same_classes(self.classes, {class_of(name) for name in index}, root, key)
        return self._split([(root, index)])

    def _remark_shared_files(self) -> None:
        """Remark folders with files in common, by whatever links; each with one before it."""
        for (first, root, files), (key, other, theirs) in combinations(self.identities, 2):
            if count := len(files & theirs):
                where = f"{first}={root}" if root != other else first
                both = f"{count} of the {len(theirs)} images in {other} are in {where} too"
                self.remark(f"{key}: {both}: {SHARED[key]}")
        self.identities = []  # as large as the index

    def _split(self, roots: list[tuple[Path, dict[str, str]]]) -> Split:
        label_of = {name: label for label, name in enumerate(self.classes)}
        files: list[Path] = []
        labels: list[int] = []
        skipped: Counter[str] = Counter()
        for root, index in roots:
            for name, damage in index.items():
                if damage:
                    skipped[damage] += 1
                else:
                    files.append(root / name)
                    labels.append(label_of[class_of(name)])
        return Split(files, labels, dict(skipped))


def _refuse_splits(root: Path, classes: Set[str], names: Iterable[str], key: str) -> None:
    """Refuse a folder of splits in place of one of classes.

    It has two folders with names of splits, or nothing else, in which pictures are in folders. One
    alone may be a class, and so may folders that all have pictures directly in them.
    """
    depths = {(name.partition("/")[0], name.count("/") > 1) for name in names}
    splits = [name for name in sorted(classes) if split_from_name(name) and (name, True) in depths]
    are_classes = all((name, False) in depths for name in splits)
    if are_classes or len(splits) < min(len(classes), 2):
        return
    found = {split_from_name(name): str(root / name) for name in splits}
    keys = {"train": "train_dirs", "val": "val_dir", "test": "test_dir"}
    words = [
        override(f"dataset.{keys[split]}", [found[split]] if split == "train" else found[split])
        for split in keys
        if split in found
    ]
    raise UserError(
        key,
        f"{key}: {root} has the splits {format_names(splits)} in place of class folders",
        f"set {' '.join(words)}",
    )


class ImageSamples:
    """One split as batches; files that are found damaged are skipped and counted.

    Args:
        split: files and labels.
        reader: reads a file as a sample of fixed size.
        crop: crop boxes.
        seed: seed of the run; a crop is drawn from (seed, epoch, index).
    """

    def __init__(self, split: Split, reader: Reader, crop: Crop, seed: int) -> None:
        self.split = split
        self.reader = reader
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.files)

    @property
    def skipped(self) -> dict[str, int]:
        return self.split.skipped

    def sample_name(self, index: int) -> str:
        return str(self.split.files[index])

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        samples: list[Sample] = []
        indices: list[int] = []
        skipped: Counter[str] = Counter()
        left_out: dict[str, str] = {}
        for key in keys:
            rng = np.random.default_rng((self.seed, key.epoch, key.index))
            try:
                sample = self.reader.read(self.split.files[key.index], self.crop, rng)
            except DamagedImage as error:
                skipped[f"left_out/{error.kind}"] += 1
                left_out[self.sample_name(key.index)] = error.kind
                continue
            if sample.fallback:
                skipped[f"fallback/{sample.fallback}"] += 1
            samples.append(sample)
            indices.append(key.index)
        labels = torch.tensor([self.split.labels[index] for index in indices], dtype=torch.int64)
        inputs = self.reader.stack(samples)
        index = torch.tensor(indices, dtype=torch.int64)
        return ClassificationBatch(index, inputs, labels, skipped=dict(skipped), left_out=left_out)
