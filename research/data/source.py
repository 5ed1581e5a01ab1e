"""What a data set is, to everything above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from PIL.Image import Image

from research.batch import Batch
from research.data.coefficients import Coefficients
from research.data.index import ProgressCallback
from research.data.loader import BatchSource
from research.data.transforms import DeviceTransform

IMAGENET_CLASSES: Final = 1000
USUAL_BOXES: Final = 16
"""Slots for boxes in a frame, where no store says otherwise."""


@dataclass(frozen=True)
class NetworkInput:
    """What a network asks of the data set that feeds it.

    Attributes:
        size: side of the square input in pixels, where the data set leaves it to the network.
        mean: RGB means on a 0…1 scale, where the data set leaves them to the network.
        std: RGB standard deviations, likewise.
        crop_pct: side of the validation crop as a share of the short side, likewise.
        coefficients: what a compressed network asks for; null for pixels.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    coefficients: Coefficients | None


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
    """A data set of any kind: folders, a warehouse, pairs.

    Made without touching the disk, so that a trained model's preprocessing can be had without
    its data. ``prepare`` finds the data; ``samples``, ``counts``, ``fingerprint`` and ``floor``
    need it; ``read``, ``look`` and a bare ``transform`` do with the facts out of a checkpoint.

    Attributes:
        name: what the tracker calls it.
        batch_size: samples a batch.
        workers: loader processes; null chooses by device.
        pin_memory: page-locked batches; null chooses by device.
        classes: class names in index order; empty before ``prepare``.
    """

    name: str
    batch_size: int
    workers: int | None
    pin_memory: bool | None
    classes: list[str]

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        """Find (or make) the data, settle classes and splits.

        Args:
            seed: of the run; draws what the data set leaves to chance.
            progress: told during long work.

        Raises:
            UserError: when there is nothing to train on, or it does not fit the settings.
        """
        ...

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        """One split as batches, with training or validation crops.

        Args:
            split: ``train``, ``val`` or ``test``.
            seed: of the run; draws the crops.
            train: with training crops.
            device: where the batches will go; small data may be kept there whole.

        Raises:
            UserError: when the data set has no such split.
        """
        ...

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        """The device's half of preprocessing.

        Args:
            measured: with statistics taken from (or recalled for) the training split; without,
                a state dict is to fill them in.
            progress: told while statistics are taken.
        """
        ...

    def read(self, paths: Sequence[Path]) -> Batch:
        """Files of a user as validation would see them, all in one batch, without targets.

        Raises:
            DamagedImage: for a file that cannot be read.
        """
        ...

    def load_image(self, path: Path) -> list[Image]:
        """A file of a user for people: RGB pictures of the file's own size, the first in colour.

        Plain images give one picture; what has more sensors than eyes have colours, several.

        Raises:
            DamagedImage: when it cannot be read.
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
        """Samples of each split, and what it leaves out by kind of damage."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What only the data know, for checkpoints: ``name``, ``classes``, how they were made."""
        ...

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take over a checkpoint's facts, so that ``read`` and ``transform`` need no data."""
        ...

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        """Why a model trained on data of such facts cannot read these, in words; null if it can."""
        ...

    def fingerprint(self) -> str:
        """Short hash that differs when the data do."""
        ...

    def baseline(self) -> str | None:
        """What a trivial predictor reaches on validation, in words; null when not asked for."""
        ...


def expected_classes(
    model: Mapping[str, Any], known: Sequence[str] | None, usual: int
) -> list[str]:
    """Class names for ``expected_metadata``: as many as model or data have, or ``usual``."""
    count = model.get("num_classes") or len(known or ()) or usual
    return [str(label) for label in range(count)]
