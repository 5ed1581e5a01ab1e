"""Data set of RGB + X arrays with YOLO labels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL.Image import Image

from research.batch import DetectionBatch
from research.data.datamodule import DEFAULT_MAX_BOXES, Common, DataModule, Demo
from research.data.frames.declared import read_class_names
from research.data.frames.frame import Frame, FrameSet
from research.data.frames.limits import log_reading
from research.data.frames.yolo import read_yolo, yolo_folders
from research.data.index import ProgressCallback
from research.data.listing import log_skipped
from research.data.loader import BatchSource
from research.data.rgbx.arrays import (
    COLOURS,
    ArraySpec,
    HeaderCollector,
    read_array,
    read_chunks,
    to_pil_images,
)
from research.data.rgbx.layout import (
    DEFAULT_NAMES,
    DESCRIPTION,
    LEDGER,
    add_ignored,
    channel_names,
    group_by_sequence,
    source_reading,
)
from research.data.rgbx.samples import ArraySamples, collate_frames
from research.data.rgbx.statistics import channel_statistics
from research.data.rgbx.transform import RgbxAugmentation, RgbxTransform
from research.data.splits import evenly_spaced, split_named
from research.data.transforms import DeviceTransform
from research.data.warehouse.plan import assign_splits
from research.utils.errors import UserError

log = logging.getLogger(__name__)


class RgbxFolder(DataModule):
    """``ROOT/images/**/*.npy`` [H, W, 3 + X] with ``ROOT/labels/**/*.txt``, optionally by split.

    Frames without boxes are used as negatives.

    Args:
        root: the folder.
        x: names of the channels after red, green and blue; ``None`` for those of ``rgbx.json``, or
            else thermal, or thermal and event.
        class_names: class names in index order; ``None`` for those of ``classes.txt`` or a YAML
            file, or else the class numbers.
        image_size: side of the square network input in pixels; ``None`` for the network's own.
        val_fraction: fraction of the groups for validation, if the folder has no validation split.
        test_fraction: fraction of the groups for testing, if the folder has no splits; 0 for none.
        split_seed: seed of these draws.
        group_by: regular expression, searched in paths below images/, whose first group (or whole
            match) is the sequence; ``None`` groups by sub-folder, or each frame by itself.
        missing_labels: a frame without a label file is ``negative``, or an ``error``.
        mean: mean of each channel on a 0…1 scale; ``None`` to measure it.
        std: standard deviation of each channel on a 0…1 scale; ``None`` to measure it.
        statistics_images: maximum number of training files that are measured.
        augmentation: augmentation of training frames, on the device.
        demo: renders the frames first, if any.
        common: see ``Common``.
    """

    splits: dict[str, list[Frame]]
    default_classes = 1

    def __init__(
        self,
        root: str,
        x: Sequence[str] | None,
        class_names: Sequence[str] | None,
        image_size: int | None,
        val_fraction: float,
        test_fraction: float,
        split_seed: int,
        group_by: str | None,
        missing_labels: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        statistics_images: int,
        augmentation: RgbxAugmentation,
        demo: Demo | None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.x = x
        self.class_names = class_names
        self.image_size = image_size or self.network.size
        self.fractions = val_fraction, test_fraction
        self.split_seed = split_seed
        self.group_by = group_by
        self.missing_labels = missing_labels
        self.mean, self.std = mean, std
        self.statistics_images = statistics_images
        self.augmentation = augmentation
        self.demo = demo
        self.channels: list[str] = []
        self.dtype = "uint8"
        self.skipped: dict[str, int] = {}

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        self.refuse_coefficients()
        if self.demo is not None:
            self.demo.render(progress)
        if (self.root / LEDGER).exists() and not (self.root / DESCRIPTION).exists():
            raise UserError(
                "dataset.root",
                f"dataset.root: {self.root} is not completely prepared",
                "run the same python -m research.prepare rgbx command again",
            )
        folders = yolo_folders(self.root)
        if not folders:
            raise UserError(
                "dataset.root",
                f"dataset.root: {self.root} has no folders images/ and labels/",
                "set the folder that has, or make one with python -m research.prepare rgbx",
            )
        collector = HeaderCollector()
        try:
            frame_set = read_yolo(
                self.root,
                folders,
                collector.files,
                self.missing_labels == "error",
                self.class_names,
            )
        except UserError as error:
            if error.key != "data_yaml":
                raise
            raise UserError("dataset.root", error.message, "fix or remove one of them") from None
        if source := source_reading(self.root):
            log.info("%s: prepared from a source %s", self.root, source)
        log_reading(frame_set)
        log_skipped(frame_set.problems)
        spec = collector.common_spec()
        self.dtype, self.channels = spec.dtype, channel_names(self.root, spec, self.x)
        if not frame_set.classes:
            raise UserError(
                "dataset.class_names",
                f"{self.root}: no label file has a box, and there is no classes.txt",
                "add labels, or set dataset.class_names=[a,b]",
            )
        self.classes = frame_set.classes
        frame_set = add_ignored(frame_set)
        self.check_loaded("dataset.root")
        for kind in ("missing_image", "missing_file", "invalid"):
            if count := sum(getattr(run, kind) for run in frame_set.runs):
                self.skipped[kind] = count
        self._split(group_by_sequence(frame_set, list(folders), self.group_by))

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        return ArraySamples(
            self.frames(split), self.image_size, self.spec, self.skipped_samples(split)
        )

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        count = len(self.channels)
        mean, std = [0.0] * count, [1.0] * count
        if measured:
            mean, std = self._statistics(progress)
        return RgbxTransform(mean, std, self.augmentation)

    def read(self, paths: Sequence[Path]) -> DetectionBatch:
        arrays = [read_array(path, self.spec) for path in paths]
        return collate_frames(arrays, self.image_size, self.spec)

    def load_image(self, path: Path) -> list[Image]:
        """RGB images of a file: the colours, then each X channel in grey."""
        return to_pil_images(read_array(path, self.spec))

    def expected_metadata(self, model: Mapping[str, Any], *, own_classes: bool) -> dict[str, Any]:
        extra = model.get("x_channels") or len(self.x or DEFAULT_NAMES[2])
        return {
            **super().expected_metadata(model, own_classes=own_classes),
            "channels": [*COLOURS, *map(str, range(extra))],
            "transform": {"max_boxes": DEFAULT_MAX_BOXES},
        }

    def known_classes(self) -> Sequence[str] | None:
        if self.class_names is not None:
            return list(self.class_names)
        return read_class_names(self.root) or (
            None if self.demo is None else list(self.demo.classes)
        )

    def skipped_samples(self, split: str) -> Mapping[str, int]:
        return self.skipped if split == "train" else {}

    def metadata(self) -> dict[str, Any]:
        return {
            **super().metadata(),
            "channels": self.channels,
            "dtype": self.dtype,
            "transform": {"image_size": self.image_size},
        }

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        super().load_metadata(metadata)
        self.channels, self.dtype = list(metadata["channels"]), metadata["dtype"]

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        theirs = list(metadata.get("channels", COLOURS))
        if theirs != self.channels:
            return (
                f"the model was trained on {', '.join(theirs)}, but {self.root} has "
                f"{', '.join(self.channels)}; use files with the same channels in the same order"
            )
        known = len(metadata["classes"])
        if len(self.classes) > known:
            return (
                f"the model was trained on {known} classes, but {self.root} has "
                f"{len(self.classes)}; use labels of the same classes"
            )
        return None

    def fingerprint(self) -> str:
        """Quick hash of the data: split, name and boxes of every frame, and chunks of its file."""
        digest = hashlib.sha256(repr((self.classes, self.channels, self.dtype)).encode())
        for split, frames in self.splits.items():
            for frame in frames:
                size = frame.image.stat().st_size
                content = split, frame.name, size, frame.boxes, frame.labels
                digest.update(repr(content + frame.ignored).encode())
                digest.update(read_chunks(frame.image))
        return digest.hexdigest()[:16]

    @property
    def spec(self) -> ArraySpec:
        """Required channels and type of every file."""
        return ArraySpec(len(self.channels), self.dtype)

    def frames(self, split: str) -> list[Frame]:
        """The frames of a split.

        Raises:
            UserError: if the data set has no such split.
        """
        advice = "add a folder test/ to it, or train with dataset.test_fraction=0.1"
        return split_named(self.splits, split, self.root, advice)

    def _split(self, frame_set: FrameSet) -> None:
        """Set ``splits``; all frames of a group are in the same split."""
        val, test = self.fractions
        test = 0.0 if frame_set.split else test  # no test split is drawn beside the folder's own
        groups = {frame.group for frame in frame_set.frames}
        try:
            splits = assign_splits(
                groups, frame_set.split, val=val, test=test, seed=self.split_seed, named={}
            )
        except UserError:
            raise UserError(
                "dataset.val_fraction",
                f"{self.root}: validation and test take all of {len(groups)} sequences and leave "
                "none for training",
                "lower dataset.val_fraction or dataset.test_fraction, set a finer "
                "dataset.group_by, or use folders train/ and val/",
            ) from None
        for split in ("train", "val", "test"):
            frames = [frame for frame in frame_set.frames if splits[frame.group] == split]
            chosen = evenly_spaced(len(frames), self.max_images.get(split))
            if frames:
                self.splits[split] = [frames[index] for index in chosen]
        log.info(
            "%s: %s frames in %d sequences",
            self.root,
            " + ".join(f"{len(frames)} {split}" for split, frames in self.splits.items()),
            len(groups),
        )

    def _statistics(self, progress: ProgressCallback | None) -> tuple[list[float], list[float]]:
        mean, std = self.mean, self.std
        for key, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != len(self.channels):
                raise UserError(
                    f"dataset.{key}",
                    f"dataset.{key}: {len(values)} numbers for {len(self.channels)} channels "
                    f"({', '.join(self.channels)})",
                    "set one for each channel",
                )
        if mean is None or std is None:
            files = [frame.image for frame in self.frames("train")]
            measured = channel_statistics(
                files, self.spec, self.statistics_images, self.cache, progress
            )
            mean, std = mean or measured.mean, std or measured.std
        return list(mean), list(std)
