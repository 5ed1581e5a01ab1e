"""``DataModule``: the interface of data sets; ``NetworkInput``: what a network needs from one.

Its implementations are the classes that ``conf/dataset`` names as ``_target_``. ``dataset(split)``
gives an object whose ``__getitems__`` reads batches and counts damaged files in ``batch.skipped``,
such as ``folder.ImageSamples`` and ``warehouse.kinds.FrameSamples``.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from research.batch import Batch
from research.data.coefficients import CoefficientSpec
from research.data.image_files import decode
from research.data.image_modes import to_rgb
from research.data.listing import LeftOutFiles
from research.data.loader import BatchSource
from research.data.splits import format_names
from research.data.transforms import DeviceTransform
from research.utils.errors import UserError

log = logging.getLogger(__name__)

IMAGENET_CLASSES: Final = 1000
DEFAULT_MAX_BOXES: Final = 16
"""Box slots per frame in ``expected_metadata``, if neither model nor data set sets them."""


@dataclass(frozen=True)
class NetworkInput:
    """The input that a network needs from its data set.

    ``size``, ``mean``, ``std`` and ``crop_pct`` replace settings of the data set that are None.

    Attributes:
        size: side of the square input in pixels.
        mean: mean of RGB on a 0…1 scale.
        std: standard deviation of RGB on a 0…1 scale.
        crop_pct: side of the validation crop as a fraction of the short side.
        coefficients: DCT coefficients as input; ``None`` for pixels.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    coefficients: CoefficientSpec | None


class Demo(Protocol):
    """Renders the files of a demo data set on first use, in the format that its reader reads."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names in index order; empty if the files have no classes."""
        ...

    def render(self) -> Path:
        """Render the files unless they exist; returns their folder.

        Raises:
            UserError: if the folder contains other files.
        """
        ...


class Common(TypedDict):
    """The arguments of every data set; ``conf/dataset/_common.yaml`` has their defaults.

    Attributes:
        name: name in the tracker.
        max_train_images: train on at most this many samples; ``None`` for all.
        max_val_images: the same for validation.
        cache_dir: folder for small results that are computed once, see ``research.utils.cache``.
        network: the input of the network.
    """

    name: str
    max_train_images: int | None
    max_val_images: int | None
    cache_dir: str
    network: NetworkInput


class DataModule(ABC):
    """Base of all data sets: image folders, prepared stores, pairs of photos.

    The constructor does not access the disk, so that the preprocessing of a trained model is
    available without its data. ``prepare`` reads the data; ``dataset``, ``counts``,
    ``fingerprint`` and ``baseline`` require it. ``read``, ``load_image`` and
    ``transform(measured=False)`` only require the metadata of a checkpoint.

    Attributes:
        name: name in the tracker.
        classes: class names in index order; empty before ``prepare``.
        splits: the samples of each split, of any type that has a length.
        reading: how the files were read, in words; set by ``prepare``.
        left_out: names the files that are found damaged while samples are read.
        remarks: what may be a mistake in the splits, a line each; set by ``prepare``.
        unit: what a sample is, in the plural, for texts: ``images``, ``frames``, ``pairs``.
        labelled: what has a class, for texts: ``image``, ``box``.
        default_classes: their number in ``expected_metadata`` if nothing else sets it.
        max_images: maximum number of samples by split; ``None`` for all.
        cache: folder for small results.
        network: the input of the network.
        model_metadata: of the checkpoint that was loaded, if any.
    """

    splits: Mapping[str, Sized]
    reading: str = ""
    unit: str = "samples"
    labelled: str = "image"
    default_classes: int = IMAGENET_CLASSES

    def __init__(self, **common: Unpack[Common]) -> None:
        self.name = common["name"]
        self.max_images = {"train": common["max_train_images"], "val": common["max_val_images"]}
        self.cache = Path(common["cache_dir"])
        self.network = common["network"]
        self.classes: list[str] = []
        self.splits = {}
        self.remarks: list[str] = []
        self.left_out = LeftOutFiles()
        self.model_metadata: Mapping[str, Any] | None = None

    @abstractmethod
    def prepare(self, seed: int) -> None:
        """Find (or create) the data and determine classes and splits.

        Args:
            seed: seed of the run, for random splits and subsets.

        Raises:
            UserError: if there is nothing to train on, or the data do not match the settings.
        """

    @abstractmethod
    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        """One split as batches, with training or validation crops.

        Args:
            split: ``train``, ``val`` or ``test``.
            seed: seed of the run, for random crops.
            train: use training crops.
            device: device of the model; small data sets may be kept there.

        Raises:
            UserError: if the data set has no such split.
        """

    @abstractmethod
    def transform(self, *, measured: bool = True) -> DeviceTransform:
        """The part of preprocessing that runs on the device.

        Args:
            measured: set its statistics to those of the training split, which are measured or read
                from a cache. False if they will be loaded from a state dict.
        """

    @abstractmethod
    def read(self, paths: Sequence[Path]) -> Batch:
        """Read files with validation preprocessing as one batch without targets.

        Raises:
            DamagedImage: for a file that cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Short hash of the data."""

    def loading(
        self, device: torch.device, workers: int | None, pin_memory: bool | None
    ) -> tuple[int, bool]:
        """Number of loader processes, and whether batches are page-locked.

        Args:
            device: of the model.
            workers: setting of the run; ``None`` chooses by device.
            pin_memory: the same.
        """
        on_gpu = device.type == "cuda"
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if on_gpu else 0
        return workers, on_gpu if pin_memory is None else pin_memory

    def load_image(self, path: Path) -> list[Image]:
        """Read a file as RGB images of its original size, for display.

        One image for an RGB file, one per modality for a file with more channels, RGB first.

        Raises:
            DamagedImage: if it cannot be read.
        """
        return [to_rgb(decode(path))]

    def remark(self, text: str) -> None:
        """Log what may be a mistake in the splits, and keep it for the record of the run."""
        log.warning("%s", text)
        self.remarks.append(text)

    def remark_missing_classes(self, labels: Mapping[str, NDArray[np.int64]]) -> None:
        """Remark the classes that a split has no sample of.

        Args:
            labels: of each split, class indices of its samples or of the objects in them.
        """
        for split, found in labels.items():
            counts = np.bincount(found, minlength=len(self.classes))
            missing = [self.classes[label] for label in np.flatnonzero(counts == 0)]
            if missing:
                what = f"{len(missing)} of {len(self.classes)} classes ({format_names(missing)})"
                effect = "are not learned" if split == "train" else "it does not evaluate"
                self.remark(f"{split} has no {self.labelled} of {what}, which {effect}")

    def known_classes(self) -> Sequence[str] | None:
        """Class names as far as they are known before ``prepare``, for ``expected_metadata``."""
        return None

    def expected_metadata(self, model: Mapping[str, Any], *, own_classes: bool) -> dict[str, Any]:
        """Estimate ``metadata`` before ``prepare``, to build a model without its data.

        Args:
            model: settings of the model; its ``num_classes``, ``max_boxes`` and ``x_channels``
                are used for values that only the data could give.
            own_classes: use the classes of this data set, read from its files if they exist.

        Raises:
            UserError: if a required setting is missing.
        """
        known = self.known_classes() if own_classes else None
        count = model.get("num_classes") or len(known or ()) or self.default_classes
        return {"name": self.name, "classes": [str(label) for label in range(count)]}

    def skipped_samples(self, split: str) -> Mapping[str, int]:
        """Counts of the samples of a split that were left out, by kind."""
        return {}

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        """By split: number of samples, and counts of skipped samples by kind."""
        return {
            split: (len(samples), dict(self.skipped_samples(split)))
            for split, samples in self.splits.items()
        }

    def metadata(self) -> dict[str, Any]:
        """Metadata for checkpoints: ``name``, ``classes``, how a store was prepared."""
        return {"name": self.name, "classes": self.classes}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Load the metadata of a checkpoint, so that ``read`` and ``transform`` need no data."""
        self.classes = list(metadata["classes"])
        self.model_metadata = metadata

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        """Why a model trained on data with this metadata cannot use this data set, or ``None``."""
        return None

    def check_loaded(self, key: str) -> None:
        """Check the prepared data against the metadata that were loaded.

        Args:
            key: the configuration key that names the data.

        Raises:
            UserError: if the model of these metadata cannot use them.
        """
        reason = self.model_metadata and self.check_compatible(self.model_metadata)
        if reason:
            raise UserError(key, reason)

    def refuse_coefficients(self) -> None:
        """Refuse a network on DCT coefficients, for data sets that have none.

        Raises:
            UserError: for such a network.
        """
        if self.network.coefficients is not None:
            raise UserError(
                "compression",
                f"dataset={self.name} has no DCT coefficients",
                "set compression=none",
            )

    def baseline(self) -> str | None:
        """Validation metrics of a trivial predictor as text; ``None`` if not configured."""
        return None
