"""Data set of RGB + X frames: a prepared store, or arrays with YOLO labels."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from research.batch import DetectionBatch
from research.data.datamodule import DEFAULT_MAX_BOXES, Common, DataModule, Demo
from research.data.frames.declared import read_class_names
from research.data.frames.frame import Frame
from research.data.frames.limits import log_reading
from research.data.listing import log_skipped
from research.data.loader import BatchSource
from research.data.rgbx.arrays import (
    COLOURS,
    ArraySpec,
    Pixels,
    letterbox,
    read_array,
    read_chunks,
    to_pil_images,
)
from research.data.rgbx.layout import DEFAULT_NAMES, channel_names, group_by_sequence
from research.data.rgbx.sources import plan_channels, read_arrays
from research.data.rgbx.statistics import channel_statistics
from research.data.rgbx.transform import RgbxAugmentation, RgbxTransform
from research.data.splits import evenly_spaced, split_named
from research.data.transforms import DeviceTransform
from research.data.warehouse.build import build
from research.data.warehouse.kinds import FrameSamples, true_labels
from research.data.warehouse.manifest import Manifest, is_store
from research.data.warehouse.plan import assign_splits
from research.data.warehouse.store import Store
from research.utils.counts import counted
from research.utils.errors import UserError

log = logging.getLogger(__name__)


class RgbxFolder(DataModule):
    """A store that ``python -m research.prepare rgbx`` wrote, or a folder of arrays.

    Arrays are ``ROOT/images/**/*.npy`` [H, W, 3 + X] with ``ROOT/labels/**/*.txt``, optionally by
    split. They become a store in ``cache_dir`` when they are first used at ``image_size``, and when
    they change. Frames without boxes are used as negatives.

    Args:
        root: the store or the folder.
        x: names of the channels after red, green and blue; ``None`` for those of the store or of
            ``rgbx.json``, or else thermal, or thermal and event.
        class_names: class names in index order; ``None`` for those of the store, of
            ``classes.txt`` or a YAML file, or else the class numbers.
        image_size: side of the square network input in pixels, that of the store; ``None`` for the
            network's own.
        val_fraction: fraction of the groups for validation, if the folder has no validation split.
        test_fraction: fraction of the groups for testing, if the folder has no splits; 0 for none.
        split_seed: seed of these draws.
        group_by: regular expression, searched in paths below images/, whose first group (or whole
            match) is the sequence; ``None`` groups by sub-folder, or each frame by itself.
        missing_labels: an array without a label file is ``negative``, or an ``error``.
        mean: mean of each channel on a 0…1 scale; ``None`` to measure it.
        std: standard deviation of each channel on a 0…1 scale; ``None`` to measure it.
        statistics_images: maximum number of training frames that are measured.
        augmentation: augmentation of training frames, on the device.
        demo: renders the frames first, if any.
        common: see ``Common``.
    """

    splits: dict[str, NDArray[np.int64]]
    default_classes = 1
    unit = "frames"
    labelled = "box"

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
        self.records: list[dict[str, Any]] = []
        self.frames: dict[str, Frame] = {}  # of a folder of arrays, by name

    def prepare(self, seed: int) -> None:
        self.refuse_coefficients()
        if self.demo is not None:
            self.demo.render()
        manifest = self._load_store() if is_store(self.root) else self._store_arrays()
        self.manifest, self.store = manifest, Store(manifest, "once", self.cache)
        self.reading = f"{self.root}: {manifest.reading or 'frames with channels'}"
        self.store.open()
        self.dtype, stored = manifest.transform["dtype"], manifest.transform["channels"]
        spec = ArraySpec(len(stored), self.dtype)
        self.channels = channel_names(self.root, spec, self.x or stored[len(COLOURS) :])
        self.classes = list(self.class_names or manifest.classes)
        if len(self.classes) != len(manifest.classes):
            raise UserError(
                "dataset.class_names",
                f"dataset.class_names: {len(self.classes)} names, {manifest.path} has "
                f"{', '.join(manifest.classes)}",
                "name all of them, or leave it out",
            )
        self.check_loaded("dataset.root")
        skipped = Counter(manifest.damage)
        for run in manifest.runs.values():
            skipped.update(
                {kind: run[kind] for kind in ("missing_image", "missing_file", "invalid")}
            )
        self.skipped = {kind: count for kind, count in skipped.items() if count}
        self._split()
        self.remarks = []
        self.remark_missing_classes(
            {split: true_labels(self.store, found) for split, found in self.splits.items()}
        )

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        skipped = self.skipped_samples(split)
        return FrameSamples(self.store, self.positions(split), skipped=skipped)

    def transform(self, *, measured: bool = True) -> DeviceTransform:
        count = len(self.channels)
        mean, std = [0.0] * count, [1.0] * count
        if measured:
            mean, std = self._statistics()
        return RgbxTransform(mean, std, self.augmentation)

    def read(self, paths: Sequence[Path]) -> DetectionBatch:
        arrays = [read_array(path, self.spec) for path in paths]
        return collate_arrays(arrays, self.image_size)

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
        if is_store(self.root):
            return Manifest.load(self.root).classes
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
        """Hash of the data and their splits.

        Of arrays as of earlier versions, which runs have recorded: split, name and boxes of every
        frame, and chunks of its file.
        """
        digest = hashlib.sha256(repr((self.classes, self.channels, self.dtype)).encode())
        if not self.frames:
            digest.update(repr((self.manifest.version, self.members())).encode())
            return digest.hexdigest()[:16]
        for split, names in self.members().items():
            for frame in (self.frames[name] for name in names):
                size = frame.image.stat().st_size
                content = split, frame.name, size, frame.boxes, frame.labels
                digest.update(repr(content + frame.ignored).encode())
                digest.update(read_chunks(frame.image))
        return digest.hexdigest()[:16]

    @property
    def spec(self) -> ArraySpec:
        """Required channels and type of every file."""
        return ArraySpec(len(self.channels), self.dtype)

    def members(self) -> dict[str, list[str]]:
        """Names of the frames of each split, in order."""
        return {
            split: [self.records[position]["name"] for position in positions]
            for split, positions in self.splits.items()
        }

    def positions(self, split: str) -> NDArray[np.int64]:
        """Positions of the frames of a split in the store.

        Raises:
            UserError: if the data set has no such split.
        """
        advice = "add a folder test/ to it, or train with dataset.test_fraction=0.1"
        return split_named(self.splits, split, self.root, advice)

    def _load_store(self) -> Manifest:
        manifest = Manifest.load(self.root)
        if manifest.kind != "frames" or "channels" not in manifest.transform:
            raise UserError(
                "dataset.root",
                f"dataset.root: {manifest.path} holds {manifest.kind} of RGB",
                "prepare RGB + X with python -m research.prepare rgbx",
            )
        if (size := manifest.transform["image_size"]) != self.image_size:
            raise UserError(
                "dataset.image_size",
                f"dataset.image_size={self.image_size}: {manifest.path} was prepared with {size}",
                f"set dataset.image_size={size}, or prepare it again with size={self.image_size}",
            )
        if manifest.reading:
            log.info("%s: %s", manifest.folder, manifest.reading)
        return manifest

    def _store_arrays(self) -> Manifest:
        """Write the store of a folder of arrays, or load it if they are unchanged."""
        try:
            labels = self.missing_labels == "error"
            source = read_arrays(self.root, self.x, self.class_names, labels)
        except UserError as error:
            if error.key != "data_yaml":
                raise
            raise UserError("dataset.root", error.message, "fix or remove one of them") from None
        frame_set = source.frame_set
        log_reading(frame_set)
        log_skipped(frame_set.problems)
        self.frames = {frame.name: frame for frame in frame_set.frames}
        own = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]
        plan = plan_channels(source, self.image_size, {})
        out = self.cache / "stores" / own
        return build(plan, out, cache=self.cache)

    def _split(self) -> None:
        """Set ``splits``; all frames of a group are in the same split."""
        records = self.records = self.manifest.records()
        split_of = {group.name: group.split for group in self.manifest.groups}
        is_split = len(self.manifest.splits) > 1
        own = [split_of[record["group"]] if is_split else "" for record in records]
        groups = [record["group"] for record in records]
        if self.group_by is not None:
            paths = [record["path"] for record in records]
            groups = group_by_sequence(self.root, paths, own, self.group_by)
        val, test = self.fractions
        test = 0.0 if is_split else test  # no test split is drawn beside the source's own
        known = dict(zip(groups, own, strict=True)) if is_split else {}
        try:
            splits = assign_splits(
                set(groups), known, val=val, test=test, seed=self.split_seed, named={}
            )
        except UserError:
            raise UserError(
                "dataset.val_fraction",
                f"{self.root}: validation and test take all of {len(set(groups))} sequences and "
                "leave none for training",
                "lower dataset.val_fraction or dataset.test_fraction, set a finer "
                "dataset.group_by, or use folders train/ and val/",
            ) from None
        order = sorted(range(len(records)), key=lambda at: (groups[at], records[at]["name"]))
        for split in ("train", "val", "test"):
            positions = np.array([at for at in order if splits[groups[at]] == split], np.int64)
            if len(positions):
                chosen = evenly_spaced(len(positions), self.max_images.get(split))
                self.splits[split] = positions[chosen]
        log.info(
            "%s: %s frames in %s%s",
            self.root,
            " + ".join(f"{len(positions)} {split}" for split, positions in self.splits.items()),
            counted(len(set(groups)), "sequences"),
            "" if is_split else f", drawn by seed {self.split_seed}",
        )

    def _statistics(self) -> tuple[list[float], list[float]]:
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
            train = self.positions("train").tolist()
            measured = channel_statistics(self.store, train, self.statistics_images)
            mean, std = mean or measured.mean, std or measured.std
        return list(mean), list(std)


def collate_arrays(arrays: Sequence[Pixels], size: int) -> DetectionBatch:
    """Arrays [H, W, C] of any height and width as a batch of letterboxed frames without boxes."""
    count = len(arrays)
    return DetectionBatch(
        torch.arange(count),
        torch.from_numpy(np.stack([letterbox(array, size) for array in arrays])),
        torch.zeros(count, 1, 4),
        torch.zeros(count, 1, dtype=torch.bool),
        torch.zeros(count, 1, dtype=torch.int64),
        torch.tensor([array.shape[:2] for array in arrays], dtype=torch.int32),
    )
