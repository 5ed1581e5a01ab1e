"""Folders of RGB + X arrays with YOLO labels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from research.batch import DetectionBatch
from research.data.frames.frame import Frame, FrameSet
from research.data.frames.limits import log_skipped
from research.data.frames.yolo import read_class_names, read_yolo, yolo_folders
from research.data.index import ProgressCallback
from research.data.loader import BatchSource
from research.data.rgbx.arrays import COLOURS, Form, Headers, pictures, read_array, sampled
from research.data.rgbx.layout import DESCRIPTION, LEDGER, USUAL, extra_channels, grouped
from research.data.rgbx.samples import ArraySamples, stacked
from research.data.rgbx.statistics import channel_statistics
from research.data.rgbx.transform import RgbxAugmentation, RgbxTransform
from research.data.source import USUAL_BOXES, Demo, NetworkInput, expected_classes
from research.data.transforms import DeviceTransform
from research.data.warehouse.plan import assign_splits
from research.utils.errors import UserError

log = logging.getLogger(__name__)


class RgbxFolder:
    """``ROOT/images/**/*.npy`` [H, W, 3 + X] with ``ROOT/labels/**/*.txt``, perhaps by split.

    Frames without a box are kept: they are what false alarms are learnt from.

    Args:
        name: what the tracker calls the data set.
        root: the folder.
        x: names of the channels after red, green and blue; null: those of ``rgbx.json``, else
            thermal, or thermal and event.
        class_names: in index order; null: those of ``classes.txt`` or a YAML file, else as many
            numbers as there are classes.
        image_size: side of the square network input in pixels; null: the network's own.
        batch_size: samples a batch, in training and validation.
        workers: loader processes; null chooses by device.
        pin_memory: page-locked batches; null chooses by device.
        val_fraction: share of the groups held out where the folder has no validation split.
        test_fraction: the same for testing, where the folder has no split of its own; 0: none.
        split_seed: of these draws.
        group_by: regular expression, searched in paths below images/, whose first group (or whole
            match) is the sequence; null: sub-folders, or every frame by itself.
        missing_labels: a frame without a label file is ``negative``, or an ``error``.
        mean: of each channel on a 0…1 scale; null: measured.
        std: likewise.
        statistics_images: how many training files are measured.
        augmentation: of training frames, on the device.
        max_train_images: keep at most so many training frames, evenly spaced.
        max_val_images: the same for validation.
        cache_dir: folder for measured statistics.
        demo: renders the folder first, when it is ours to make.
        network: what the network asks for.
    """

    def __init__(
        self,
        name: str,
        root: str,
        x: Sequence[str] | None,
        class_names: Sequence[str] | None,
        image_size: int | None,
        batch_size: int,
        workers: int | None,
        pin_memory: bool | None,
        val_fraction: float,
        test_fraction: float,
        split_seed: int,
        group_by: str | None,
        missing_labels: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        statistics_images: int,
        augmentation: RgbxAugmentation,
        max_train_images: int | None,
        max_val_images: int | None,
        cache_dir: str,
        demo: Demo | None,
        network: NetworkInput,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.x = x
        self.class_names = class_names
        self.image_size = image_size or network.size
        self.batch_size = batch_size
        self.workers = workers
        self.pin_memory = pin_memory
        self.fractions = val_fraction, test_fraction
        self.split_seed = split_seed
        self.group_by = group_by
        self.missing_labels = missing_labels
        self.given = mean, std
        self.statistics_images = statistics_images
        self.augmentation = augmentation
        self.max_images = {"train": max_train_images, "val": max_val_images}
        self.cache = Path(cache_dir)
        self.demo = demo
        self.network = network
        self.classes: list[str] = []
        self.channels: list[str] = []
        self.dtype = "uint8"
        self.recalled: Mapping[str, Any] | None = None
        self.splits: dict[str, list[Frame]] = {}
        self.left_out: dict[str, int] = {}

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        if self.network.coefficients is not None:
            raise UserError(
                "dataset", f"dataset={self.name}: arrays hold pixels", "give compression=none"
            )
        if self.demo is not None:
            self.demo.render(progress)
        if (self.root / LEDGER).exists() and not (self.root / DESCRIPTION).exists():
            raise UserError(
                "dataset.root",
                f"dataset.root: preparing {self.root} was stopped",
                "run the same python -m research.prepare rgbx command again",
            )
        folders = yolo_folders(self.root)
        if not folders:
            raise UserError(
                "dataset.root",
                f"dataset.root: {self.root} holds no images/ beside labels/",
                "give the folder that does, or make it with python -m research.prepare rgbx",
            )
        headers = Headers()
        found = read_yolo(
            self.root, folders, headers.files, self.missing_labels == "error", self.class_names
        )
        log_skipped(found.problems)
        form = headers.common()
        self.dtype, self.channels = form.dtype, [*COLOURS, *extra_channels(self.root, form, self.x)]
        if not found.classes:
            raise UserError(
                "dataset.class_names",
                f"{self.root}: no label file has a box, and no classes.txt names a class",
                "add labels, or give dataset.class_names=[a,b]",
            )
        self.classes = found.classes
        reason = self.recalled and self.check_compatible(self.recalled)
        if reason:
            raise UserError("dataset", reason)
        for kind in ("missing_image", "missing_file", "invalid"):
            if count := sum(getattr(report, kind) for report in found.runs):
                self.left_out[kind] = count
        self._split(grouped(found, list(folders), self.group_by))

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        left_out = self.left_out if split == "train" else {}
        return ArraySamples(self.frames(split), self.image_size, self.form, left_out)

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        count = len(self.channels)
        mean, std = [0.0] * count, [1.0] * count
        if measured:
            mean, std = self._statistics(progress)
        return RgbxTransform(mean, std, self.augmentation)

    def read(self, paths: Sequence[Path]) -> DetectionBatch:
        return stacked([read_array(path, self.form) for path in paths], self.image_size, self.form)

    def load_image(self, path: Path) -> list[Image]:
        """A file for people: its colours, then a grey image for each other channel."""
        return pictures(read_array(path, self.form))

    def expected_metadata(self, model: Mapping[str, Any], *, look: bool) -> dict[str, Any]:
        extra = model.get("x_channels") or len(self.x or USUAL[2])
        return {
            "name": self.name,
            "classes": expected_classes(model, self._known_classes() if look else None, 1),
            "channels": [*COLOURS, *map(str, range(extra))],
            "transform": {"max_boxes": USUAL_BOXES},
        }

    def _known_classes(self) -> list[str] | None:
        if self.class_names is not None:
            return list(self.class_names)
        return read_class_names(self.root) or (
            None if self.demo is None else list(self.demo.classes)
        )

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        return {
            split: (len(frames), self.left_out if split == "train" else {})
            for split, frames in self.splits.items()
        }

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": self.classes,
            "channels": self.channels,
            "dtype": self.dtype,
            "transform": {"image_size": self.image_size},
        }

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        self.classes, self.channels = list(metadata["classes"]), list(metadata["channels"])
        self.dtype = metadata["dtype"]
        self.recalled = metadata

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        theirs = list(metadata.get("channels", COLOURS))
        if theirs != self.channels:
            return (
                f"the model was trained on {', '.join(theirs)}, {self.root} has "
                f"{', '.join(self.channels)}; use files with the same channels in the same order"
            )
        known = len(metadata["classes"])
        if len(self.classes) > known:
            return (
                f"the model was trained on {known} classes, {self.root} has {len(self.classes)}; "
                "use labels of the same classes"
            )
        return None

    def fingerprint(self) -> str:
        """Quick hash of the data: every frame's split, name, boxes, and a sample of its file."""
        digest = hashlib.sha256(repr((self.classes, self.channels, self.dtype)).encode())
        for split, frames in self.splits.items():
            for frame in frames:
                told = split, frame.name, frame.image.stat().st_size, frame.boxes, frame.labels
                digest.update(repr(told).encode())
                digest.update(sampled(frame.image))
        return digest.hexdigest()[:16]

    def baseline(self) -> str | None:
        return None

    @property
    def form(self) -> Form:
        """What every file must be."""
        return Form(len(self.channels), self.dtype)

    def frames(self, split: str) -> list[Frame]:
        """A split's frames.

        Raises:
            UserError: when the data set has no such split.
        """
        if split not in self.splits:
            raise UserError(
                "split",
                f"split={split}: {self.root} has {', '.join(self.splits)}",
                f"add a folder {split}/ to it, or give dataset.test_fraction=0.1 from training on",
            )
        return self.splits[split]

    def _split(self, found: FrameSet) -> None:
        """Settles ``splits``, groups whole."""
        val, test = self.fractions
        test = 0.0 if found.split else test  # a folder with splits of its own has what it wants
        groups = {frame.group for frame in found.frames}
        try:
            splits = assign_splits(
                groups, found.split, val=val, test=test, seed=self.split_seed, named={}
            )
        except UserError:
            raise UserError(
                "dataset.val_fraction",
                f"{self.root}: validation and testing leave none of {len(groups)} sequences for "
                "training",
                "give smaller dataset.val_fraction and test_fraction, a finer "
                "dataset.group_by, or folders train/ and val/",
            ) from None
        for split in ("train", "val", "test"):
            frames = [frame for frame in found.frames if splits[frame.group] == split]
            limit = self.max_images.get(split)
            if limit is not None and limit < len(frames):
                chosen = np.linspace(0, len(frames) - 1, limit).round().astype(int)
                frames = [frames[place] for place in chosen]
            if frames:
                self.splits[split] = frames
        log.info(
            "%s: %s frames in %d sequences",
            self.root,
            " + ".join(f"{len(frames)} {split}" for split, frames in self.splits.items()),
            len(groups),
        )

    def _statistics(self, progress: ProgressCallback | None) -> tuple[list[float], list[float]]:
        mean, std = self.given
        for key, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != len(self.channels):
                raise UserError(
                    f"dataset.{key}",
                    f"dataset.{key}: {len(values)} numbers for {len(self.channels)} channels "
                    f"({', '.join(self.channels)})",
                    "give one for each",
                )
        if mean is None or std is None:
            files = [frame.image for frame in self.frames("train")]
            cache = self.cache / "statistics"
            measured = channel_statistics(
                files, self.form, self.statistics_images, self.fingerprint(), cache, progress
            )
            mean, std = mean or measured.mean, std or measured.std
        return list(mean), list(std)
