"""The two kinds of store as batches: coefficients with labels, frames with boxes.

``configure`` gets the ``transform`` of a store from its manifest, or from a checkpoint of a model
trained on it. With it, ``read`` preprocesses other files in the same way, without the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.batch import Batch, ClassificationBatch, DetectionBatch
from research.compression.blocks import Blocks
from research.compression.selection import covering
from research.data.block_samples import MCU, BlockCrop, BlockSamples
from research.data.coefficients import CoefficientSpec
from research.data.datamodule import DEFAULT_MAX_BOXES, IMAGENET_CLASSES
from research.data.frames.constant_box import best_constant_box, constant_iou
from research.data.frames.letterbox import Letterbox
from research.data.frames.transform import FrameAugmentation, FrameTransform
from research.data.image_files import decode
from research.data.image_modes import to_rgb
from research.data.loader import BatchSource, SampleKey
from research.data.transforms import CoefficientTransform, DeviceTransform
from research.data.warehouse.encoders import CoefficientEncoder, SampleSpec
from research.data.warehouse.rows import Positions, ResidentRows, StoredRows
from research.data.warehouse.store import Store
from research.utils.counts import with_n
from research.utils.errors import UserError

BATCH_TENSORS = ("images", "boxes", "mask", "labels", "sizes", "ignored", "areas")
"""Tensors of a store of frames that are part of a batch; the last two are not in every store."""

ResidentTensors = Callable[[str], Tensor]
"""Returns a whole tensor of the store, by name, in the memory of one device."""


class StoreKind(Protocol):
    """Makes batches of one kind of store.

    Attributes:
        name: the ``kind`` of the manifest.
        model_keys: entries of the store's ``transform`` that a trained model depends on.
        unit: what a sample is, see ``DataModule``.
        labelled: what has a class, see ``DataModule``.
        default_classes: number of classes where nothing else is known.
    """

    name: str
    model_keys: tuple[str, ...]
    unit: str
    labelled: str
    default_classes: int

    def expected_transform(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """``transform`` of a store that fits the settings, see ``expected_metadata``."""
        ...

    def configure(self, transform: Mapping[str, Any]) -> None:
        """Set the ``transform`` of the store.

        Raises:
            UserError: if the settings do not fit it.
        """
        ...

    def dataset(
        self,
        store: Store,
        positions: Positions,
        seed: int,
        *,
        train: bool,
        resident: ResidentTensors | None,
    ) -> BatchSource: ...

    def labels(self, store: Store, positions: Positions) -> NDArray[np.int64]:
        """Class indices of the samples at ``positions``, or of all objects in them."""
        ...

    def transform(
        self,
        store: Store | None,
        positions: Positions,
        cache: Path,
    ) -> DeviceTransform:
        """The device transform; with a store, with statistics of the samples at ``positions``."""
        ...

    def read(self, paths: Sequence[Path]) -> Batch: ...

    def baseline(self, store: Store, train: Positions, val: Positions) -> str | None: ...


class CoefficientKind:
    """Images as DCT coefficients with one class each.

    Args:
        image_size: side of the network's input in pixels: square crops of whole blocks, random in
            training, centred in validation; ``None`` for the whole stored images.
        random_crop: crop at random in training; otherwise in the centre.
        random_flip: which training images are flipped (on the device), see ``transforms.flipped``.
        coefficients: selection and range of coefficients that the network expects.
    """

    name = "coefficients"
    unit = "images"
    labelled = "image"
    model_keys: tuple[str, ...] = ("image_size",)
    default_classes = IMAGENET_CLASSES

    def __init__(
        self,
        image_size: int | None,
        random_crop: bool,
        random_flip: bool | str,
        coefficients: CoefficientSpec,
    ) -> None:
        self.image_size = image_size
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.coefficients = replace(coefficients, source="store")
        self.shipped = covering(coefficients.selection)

    def expected_transform(self, model: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def configure(self, transform: Mapping[str, Any]) -> None:
        stored, window = transform["image_size"], transform["window"]
        size = self.image_size or stored
        if size > stored or size % MCU:
            raise UserError(
                "dataset.image_size",
                f"dataset.image_size={size}: the store has {stored}, crops are multiples of {MCU}",
                "set a smaller one, or null for whole images",
            )
        needed = max(len(self.shipped.luma), len(self.shipped.chroma))
        if needed > window * window:
            raise UserError(
                "compression.window",
                f"compression.window: the store holds a window of {window}",
                f"set no larger one, or prepare it with compression.window={round(needed**0.5)}",
            )
        self.crop = BlockCrop(stored, size)
        self.encoder = CoefficientEncoder(stored, window, transform["source"])

    def dataset(
        self,
        store: Store,
        positions: Positions,
        seed: int,
        *,
        train: bool,
        resident: ResidentTensors | None,
    ) -> BatchSource:
        shipped, random = self.shipped, train and self.random_crop
        if resident is None:
            labels = store.table("labels")[positions]
            rows = StoredRows(store, positions, shipped)
            return BlockSamples(rows, labels, self.crop, seed, random=random)
        labels = resident("labels").cpu()[positions]
        on_device = ResidentRows(resident("y"), resident("cbcr"), positions, shipped)
        return BlockSamples(on_device, labels, self.crop, seed, random=random)

    def labels(self, store: Store, positions: Positions) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = store.table("labels")[positions].numpy().astype(np.int64)
        return labels

    def transform(
        self,
        store: Store | None,
        positions: Positions,
        cache: Path,
    ) -> DeviceTransform:
        statistics = None
        if store is not None:
            labels = store.table("labels")[positions]
            rows = StoredRows(store, positions, self.encoder.selection)
            samples = BlockSamples(rows, labels, self.crop, seed=0, random=False)
            key = {"data": store.manifest.version, "image_size": self.crop.size}
            statistics = self.coefficients.statistics(samples, self.encoder.selection, key, cache)
        return CoefficientTransform(
            self.coefficients.selection,
            self.coefficients.range_,
            statistics,
            self.random_flip,
            self.shipped,
        )

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        """Images as ``research.prepare coefficients`` stores them, cropped in the centre."""
        encoded = [
            self.encoder.encode(SampleSpec(path.name, "", path, -1)).arrays for path in paths
        ]
        y, cbcr = (
            torch.from_numpy(np.stack([arrays[name][..., : len(order)] for arrays in encoded]))
            for name, order in (("y", self.shipped.luma), ("cbcr", self.shipped.chroma))
        )
        index = torch.arange(len(paths))
        inputs = self.crop.centre(Blocks(y, cbcr))
        return ClassificationBatch(index, inputs, torch.full_like(index, -1))

    def baseline(self, store: Store, train: Positions, val: Positions) -> str | None:
        return None


class FrameKind:
    """Letterboxed frames with their boxes.

    Args:
        image_size: side of the frames in pixels, as prepared; ``None`` for that of the store.
        max_boxes: slots for boxes in a frame, as prepared; ``None`` for that of the store.
        augmentation: augmentation of training frames (on the device), if any.
    """

    name = "frames"
    unit = "frames"
    labelled = "box"
    model_keys: tuple[str, ...] = ("image_size", "max_boxes")
    default_classes = 1

    def __init__(
        self,
        image_size: int | None,
        max_boxes: int | None,
        augmentation: FrameAugmentation | None,
    ) -> None:
        self.image_size = image_size
        self.max_boxes = max_boxes
        self.augmentation = augmentation

    def expected_transform(self, model: Mapping[str, Any]) -> dict[str, Any]:
        if self.image_size is None:
            raise UserError(
                "dataset.image_size", "dataset.image_size is that of the store", "set it"
            )
        return {
            "image_size": self.image_size,
            "max_boxes": model.get("max_boxes") or self.max_boxes or DEFAULT_MAX_BOXES,
        }

    def configure(self, transform: Mapping[str, Any]) -> None:
        if "channels" in transform:
            raise UserError(
                "dataset.manifest",
                f"dataset.manifest: the store holds {', '.join(transform['channels'])}",
                "read it with dataset=rgbx dataset.root=STORE and an RGB + X model",
            )
        for key, value in (("image_size", self.image_size), ("max_boxes", self.max_boxes)):
            if value is not None and value != transform[key]:
                raise UserError(
                    f"dataset.{key}",
                    f"dataset.{key}={value}: the store was prepared with {key}={transform[key]}",
                    "leave it out, or prepare the frames again",
                )
        self.size, self.slots = transform["image_size"], transform["max_boxes"]

    def dataset(
        self,
        store: Store,
        positions: Positions,
        seed: int,
        *,
        train: bool,
        resident: ResidentTensors | None,
    ) -> BatchSource:
        return FrameSamples(store, positions, resident)

    def labels(self, store: Store, positions: Positions) -> NDArray[np.int64]:
        return true_labels(store, positions)

    def transform(
        self,
        store: Store | None,
        positions: Positions,
        cache: Path,
    ) -> DeviceTransform:
        return FrameTransform(self.augmentation)

    def read(self, paths: Sequence[Path]) -> DetectionBatch:
        """Images of any size, letterboxed like the frames of the store; without boxes."""
        images = [to_rgb(decode(path)) for path in paths]
        canvases = [
            Letterbox.of(image.height, image.width, self.size).image(image) for image in images
        ]
        count = len(images)
        return DetectionBatch(
            torch.arange(count),
            torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2),
            torch.zeros(count, self.slots, 4),
            torch.zeros(count, self.slots, dtype=torch.bool),
            torch.zeros(count, self.slots, dtype=torch.int64),
            torch.tensor([(image.height, image.width) for image in images], dtype=torch.int32),
        )

    def baseline(self, store: Store, train: Positions, val: Positions) -> str | None:
        """Mean IoU on the validation frames of the best constant box of the training frames."""
        boxes, mask = true_boxes(store, val)
        non_empty = mask.any(1)
        if not non_empty.any():
            return None
        best = best_constant_box(*true_boxes(store, train))
        ious = constant_iou(best, boxes[non_empty], mask[non_empty])
        value = with_n(f"mean_iou {ious.mean().item():.4f}", len(ious), unit="frames with objects")
        return f"{value}, the best constant box of the training frames"


def true_boxes(store: Store, positions: Positions) -> tuple[Tensor, Tensor]:
    """Boxes [N, M, 4] and mask of the objects [N, M] bool of the frames at ``positions``."""
    return store.column("boxes", positions), _objects(store, positions)


def true_labels(store: Store, positions: Positions) -> NDArray[np.int64]:
    """Class indices of all objects in the frames at ``positions``."""
    found = store.column("labels", positions)[_objects(store, positions)]
    labels: NDArray[np.int64] = found.numpy().astype(np.int64)
    return labels


def _objects(store: Store, positions: Positions) -> Tensor:
    """[N, M] bool, True for the boxes of objects."""
    mask = store.column("mask", positions).bool()
    if "ignored" in store.manifest.tensors:
        mask &= ~store.column("ignored", positions).bool()
    return mask


class FrameSamples:
    """Frames as batches.

    Args:
        store: the store; mapped in the process that reads.
        positions: positions of the frames in the store.
        resident: tensors of the store in device memory; ``None`` reads the mapped files.
        skipped: number of frames that were left out when the store was prepared, by kind.
    """

    def __init__(
        self,
        store: Store,
        positions: Positions,
        resident: ResidentTensors | None = None,
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        self.store = store
        self.positions = positions
        self.resident = resident
        self.skipped = dict(skipped or {})

    def __len__(self) -> int:
        return len(self.positions)

    def sample_name(self, index: int) -> str:
        return f"row {self.positions[index]} of {self.store.manifest.folder}"

    def __getitems__(self, keys: list[SampleKey]) -> DetectionBatch:
        index = np.array([key.index for key in keys], dtype=np.int64)
        known = self.store.manifest.tensors
        names = [name for name in BATCH_TENSORS if name in known]
        rows = self._rows(names, self.positions[index])
        mask, ignored = rows["mask"].bool(), None
        if "ignored" in known:
            ignored = rows["ignored"].bool()
            mask &= ~ignored
        # Stored as [H, W, 3]: the permuted view is channels_last.
        return DetectionBatch(
            torch.from_numpy(index),
            rows["images"].permute(0, 3, 1, 2),
            rows["boxes"],
            mask,
            rows["labels"],
            rows["sizes"],
            ignored=ignored,
            areas=rows.get("areas"),
        )

    def _rows(self, names: Sequence[str], positions: Positions) -> dict[str, Tensor]:
        if self.resident is None:
            return self.store.gather_all(names, positions.tolist())
        whole = {name: self.resident(name) for name in names}
        at = torch.from_numpy(positions)
        return {
            name: tensor[at.to(tensor.device, non_blocking=True)] for name, tensor in whole.items()
        }
