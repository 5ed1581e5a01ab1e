"""The interface of data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from PIL.Image import Image

from research.batch import Batch
from research.data.coefficients import CoefficientSpec
from research.data.index import ProgressCallback
from research.data.loader import BatchSource
from research.data.transforms import DeviceTransform

IMAGENET_CLASSES: Final = 1000
USUAL_BOXES: Final = 16
"""Slots for boxes in a frame, where no store says otherwise."""


@dataclass(frozen=True)
class NetworkInput:
    """The input that a network needs from its data set.

    All but ``coefficients`` are defaults for values that the data set's configuration leaves open.

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
        """Class names of the files, in index order; empty where they have no classes."""
        ...

    def render(self, progress: ProgressCallback | None = None) -> Path:
        """Make sure that the files are there; returns their folder.

        Raises:
            UserError: when the folder holds something else.
        """
        ...


class DataModule(Protocol):
    """A data set of any kind: folders, a prepared store, pairs.

    The constructor does not access the disk, so that the preprocessing of a trained model is
    available without its data. ``prepare`` reads the data; ``dataset``, ``counts``,
    ``fingerprint`` and ``baseline`` require it. ``read``, ``load_image`` and
    ``transform(measured=False)`` only require the metadata of a checkpoint.

    Attributes:
        name: name in the tracker.
        batch_size: samples per batch.
        workers: number of loader processes; ``None`` chooses by device.
        pin_memory: page-locked batches; ``None`` chooses by device.
        classes: class names in index order; empty before ``prepare``.
    """

    name: str
    batch_size: int
    workers: int | None
    pin_memory: bool | None
    classes: list[str]

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        """Find (or create) the data and determine classes and splits.

        Args:
            seed: seed of the run, for random splits and subsets.
            progress: called during long operations.

        Raises:
            UserError: if there is nothing to train on, or the data do not match the settings.
        """
        ...

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
        ...

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        """The part of preprocessing that runs on the device.

        Args:
            measured: with statistics of the training split, measured or cached. If False, they
                are to be loaded from a state dict.
            progress: called while statistics are measured.
        """
        ...

    def read(self, paths: Sequence[Path]) -> Batch:
        """Read files with validation preprocessing as one batch without targets.

        Raises:
            DamagedImage: for a file that cannot be read.
        """
        ...

    def load_image(self, path: Path) -> list[Image]:
        """Read a file as RGB images of its own size, to look at.

        RGB files give one; files with further channels give several, the first in colour.

        Raises:
            DamagedImage: if it cannot be read.
        """
        ...

    def expected_metadata(self, model: Mapping[str, Any], *, look: bool) -> dict[str, Any]:
        """What ``metadata`` will be as far as it is known before ``prepare``.

        Args:
            model: settings of the model, whose ``num_classes``, ``max_boxes`` and ``x_channels``
                stand for what is not known.
            look: read the names of classes from files, where there are any.

        Raises:
            UserError: for a setting without which nothing is known.
        """
        ...

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Number of samples of each split, and its counts of skipped samples by kind."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Metadata for checkpoints: ``name``, ``classes``, how a store was prepared."""
        ...

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Load the metadata of a checkpoint, so that ``read`` and ``transform`` need no data."""
        ...

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        """Why a model trained on data with this metadata cannot use this data set, or ``None``."""
        ...

    def fingerprint(self) -> str:
        """Short hash of the data."""
        ...

    def baseline(self) -> str | None:
        """Validation metrics of a trivial predictor as text; ``None`` if not configured."""
        ...


def expected_classes(
    model: Mapping[str, Any], known: Sequence[str] | None, usual: int
) -> list[str]:
    """Class names for ``expected_metadata``: as many as model or data have, or ``usual``."""
    count = model.get("num_classes") or len(known or ()) or usual
    return [str(label) for label in range(count)]
