"""``Warehouse``: the data module of prepared stores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.batch import Batch
from research.data.datamodule import Common, DataModule
from research.data.folds import FoldColumns, FoldResult, fold_splits
from research.data.frames.constant_box import best_constant_box, constant_iou
from research.data.frames.transform import FrameAugmentation
from research.data.loader import BatchSource
from research.data.splits import evenly_spaced, split_named
from research.data.transforms import DeviceTransform
from research.data.warehouse.kinds import CoefficientKind, FrameKind, StoreKind, true_boxes
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.store import Store
from research.utils.errors import UserError

GIB = 2**30
FRAMES = FoldColumns("groups", "frames", "mAP50", "mean IoU", "constant box")
Splits = dict[str, NDArray[np.int64]]

log = logging.getLogger(__name__)


class StoreDemo(Protocol):
    """Creates the store of a demo data set on first use."""

    def make(self, out: Path) -> Path:
        """Make sure that the store lies in ``out``; returns the folder of its version."""
        ...


class Warehouse(DataModule):
    """A prepared store as data module: coefficients for a compressed network, frames otherwise.

    Args:
        manifest: a ``manifest.json``, the folder of a version, or a folder of versions.
        image_size: see ``CoefficientKind`` and ``FrameKind``.
        max_boxes: see ``FrameKind``.
        random_crop: see ``CoefficientKind``.
        random_flip: see ``CoefficientKind``.
        augmentation: see ``FrameKind``.
        verify: when to compare checksums: ``always``, ``once`` (until files change) or ``never``.
        on_device: keep the whole store in device memory; ``None``: on an accelerator, if it is
            not larger than ``device_budget``.
        device_budget: in GiB.
        folds: number of folds of cross-validation, of similar size and with groups undivided;
            ``None`` keeps the splits of the manifest.
        fold: the fold that is the test split; the next fold is the validation split.
        baseline: report the result of a constant prediction after training.
        demo: creates the store on first use, for demo data sets.
        common: see ``Common``.
    """

    splits: Splits

    def __init__(
        self,
        manifest: str,
        image_size: int | None,
        max_boxes: int | None,
        random_crop: bool,
        random_flip: bool | str,
        augmentation: FrameAugmentation | None,
        verify: str,
        on_device: bool | None,
        device_budget: float,
        folds: int | None,
        fold: int,
        baseline: bool,
        demo: StoreDemo | None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.path = Path(manifest)
        self.verify = verify
        self.on_device = on_device
        self.device_budget = device_budget
        self.folds = folds
        self.fold = fold
        self.report_baseline = baseline
        self.demo = demo
        self.kind: StoreKind = FrameKind(image_size, max_boxes, augmentation)
        if (coefficients := self.network.coefficients) is not None:
            self.kind = CoefficientKind(image_size, random_crop, random_flip, coefficients)
        self.unit, self.labelled = self.kind.unit, self.kind.labelled
        self.default_classes = self.kind.default_classes
        self.resident: dict[tuple[str, torch.device], Tensor] = {}

    def prepare(self, seed: int) -> None:
        path = self.path if self.demo is None else self.demo.make(self.path)
        manifest = Manifest.load(path)
        if manifest.kind != self.kind.name:
            raise UserError(
                "dataset.manifest",
                f"dataset.manifest: {manifest.path} holds {manifest.kind}, this model reads "
                f"{self.kind.name}",
                f"prepare them with python -m research.prepare {self.kind.name}",
            )
        self.manifest = manifest
        self.reading = f"{manifest.kind} prepared in {manifest.folder}"
        if manifest.reading:
            self.reading += f": {manifest.reading}"
            log.info("%s: %s", manifest.folder, manifest.reading)
        self.check_loaded("dataset.manifest")
        self.kind.configure(manifest.transform)
        self.classes = manifest.classes
        self.store = Store(manifest, self.verify, self.cache)
        self.store.open()
        self.splits = {
            split: positions[evenly_spaced(len(positions), self.max_images.get(split))]
            for split, positions in _split(manifest, self.folds, self.fold).items()
        }
        for split in ("train", "val"):
            if not len(self.splits.get(split, ())):
                raise UserError(
                    "dataset.manifest",
                    f"{manifest.path}: no sample in the {split} split",
                    "prepare it again with val=0.2, or set dataset.folds=5",
                )
        self.remarks = []
        self.remark_missing_classes(
            {split: self.kind.labels(self.store, found) for split, found in self.splits.items()}
        )

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        positions, resident = self.positions(split), None
        if self._fits_on(device):
            resident = partial(self._resident, device)
        return self.kind.dataset(self.store, positions, seed, train=train, resident=resident)

    def loading(
        self, device: torch.device, workers: int | None, pin_memory: bool | None
    ) -> tuple[int, bool]:
        """As of every data set; no processes and no page-locking for a store on the device."""
        if self._fits_on(device):
            return 0, False
        return super().loading(device, workers, pin_memory)

    def transform(self, *, measured: bool = True) -> DeviceTransform:
        store = self.store if measured else None
        train = self.splits.get("train", np.empty(0, np.int64))
        return self.kind.transform(store, train, self.cache / "statistics")

    def read(self, paths: Sequence[Path]) -> Batch:
        return self.kind.read(paths)

    def known_classes(self) -> Sequence[str] | None:
        return Manifest.load(self.path).classes if self.path.exists() else None

    def expected_metadata(self, model: Mapping[str, Any], *, own_classes: bool) -> dict[str, Any]:
        expected = super().expected_metadata(model, own_classes=own_classes)
        return {**expected, "transform": self.kind.expected_transform(model)}

    def skipped_samples(self, split: str) -> Mapping[str, int]:
        return self.manifest.damage if split == "train" else {}

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), "transform": self.manifest.transform}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        super().load_metadata(metadata)
        self.kind.configure(metadata["transform"])

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        ours, theirs = self.manifest.transform, metadata.get("transform", {})
        for key in self.kind.model_keys:
            if ours[key] != theirs.get(key, ours[key]):
                return (
                    f"the model was trained on {key}={theirs[key]}, {self.manifest.path} was "
                    f"prepared with {key}={ours[key]}; prepare it again with {key}={theirs[key]}"
                )
        return None

    def fingerprint(self) -> str:
        """The version of the store: a hash of data and transform."""
        return self.manifest.version

    def baseline(self) -> str | None:
        if not self.report_baseline:
            return None
        return self.kind.baseline(self.store, self.splits["train"], self.splits["val"])

    def fold_result(self, metrics: Any) -> FoldResult | None:
        """IoU of frames with objects beside that of the best constant box of the training split.

        Args:
            metrics: of a detection task, with ``best_iou`` of each frame with objects.
        """
        if self.kind.name != FrameKind.name:
            return None
        boxes, mask = true_boxes(self.store, self.positions("test"))
        has_box = mask.any(1)
        box = best_constant_box(*true_boxes(self.store, self.positions("train")))
        groups = zip(self.groups("test"), has_box.tolist(), strict=True)
        return FoldResult(
            FRAMES,
            [name for name, counts in groups if counts],
            np.array(metrics.best_iou),
            constant_iou(box, boxes[has_box], mask[has_box]).double().numpy(),
        )

    def positions(self, split: str) -> NDArray[np.int64]:
        """Positions of the samples of a split in the store.

        Raises:
            UserError: if the data set has no such split.
        """
        advice = "prepare it again with test=0.1, or set dataset.folds=5"
        return split_named(self.splits, split, self.manifest.path, advice)

    def groups(self, split: str) -> list[str]:
        """The group of each sample of a split."""
        stops = np.array([group.stop for group in self.manifest.groups])
        indices = np.searchsorted(stops, self.positions(split), side="right")
        return [self.manifest.groups[index].name for index in indices]

    def _fits_on(self, device: torch.device) -> bool:
        if self.on_device is not None:
            return self.on_device
        if device.type == "cpu":
            return False
        size = sum(shard.bytes for shard in self.manifest.shards)
        return size <= self.device_budget * GIB

    def _resident(self, device: torch.device, name: str) -> Tensor:
        if (name, device) not in self.resident:
            self.resident[name, device] = self.store.whole(name).to(device)
        return self.resident[name, device]


def _split(manifest: Manifest, folds: int | None, fold: int) -> Splits:
    if folds is None:
        return {split: manifest.split(split) for split in manifest.splits}
    groups = [group for group in manifest.groups if group.stop > group.start]
    sizes = {group.name: group.stop - group.start for group in groups}
    split_of = fold_splits(sizes, folds, fold, f"groups in {manifest.path}")
    ranges: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    for group in groups:
        ranges[split_of[group.name]].append(np.arange(group.start, group.stop))
    return {split: np.concatenate(parts) for split, parts in ranges.items() if parts}
