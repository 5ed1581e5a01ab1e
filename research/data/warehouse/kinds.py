"""What a warehouse can hold, as batches: coefficients with labels, frames with boxes.

A kind is told the store's ``transform`` (how files became samples), either by the manifest or by
a checkpoint of a model that was trained on one, and needs nothing else to prepare a user's files
in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.batch import Batch, ClassificationBatch, DetectionBatch
from research.compression.blocks import Blocks
from research.compression.selection import Selection, covering
from research.data.block_samples import MCU, BlockCrop, BlockSamples
from research.data.coefficients import Coefficients
from research.data.frames.constant_box import best_constant_box, constant_iou
from research.data.frames.letterbox import Letterbox
from research.data.frames.transform import FrameAugmentation, FrameTransform
from research.data.index import ProgressCallback
from research.data.loader import BatchSource, SampleKey
from research.data.readers import decode, to_rgb
from research.data.transforms import CoefficientTransform, DeviceTransform
from research.data.warehouse.plan import Item
from research.data.warehouse.recipes import CoefficientRecipe
from research.data.warehouse.store import Store
from research.utils.errors import UserError

Positions = NDArray[np.int64]


class Tensors(Protocol):
    """The store's tensors in one device's memory."""

    def __call__(self, name: str) -> Tensor: ...


class Kind(Protocol):
    """How samples of one kind are read.

    Attributes:
        name: as in the manifest.
        form: entries of the store's transform on which a trained model depends.
    """

    name: str
    form: tuple[str, ...]

    def fit(self, transform: Mapping[str, Any]) -> None:
        """Take over how the store was prepared.

        Raises:
            UserError: when the settings ask for what it does not hold.
        """
        ...

    def dataset(
        self,
        store: Store,
        positions: Positions,
        seed: int,
        *,
        train: bool,
        resident: Tensors | None,
    ) -> BatchSource: ...

    def transform(
        self,
        store: Store | None,
        positions: Positions,
        cache: Path,
        progress: ProgressCallback | None,
    ) -> DeviceTransform:
        """With statistics of the samples at ``positions``; without a store, without them."""
        ...

    def read(self, paths: Sequence[Path]) -> Batch: ...

    def baseline(self, store: Store, train: Positions, val: Positions) -> str | None: ...


class CoefficientKind:
    """Images as DCT coefficients with one class each.

    Args:
        image_size: side of the network's input in pixels: square cuts of whole blocks, random in
            training, centred in validation; null takes the stored images whole.
        random_crop: centred cuts in training too, when false.
        random_flip: mirror half of the training images (on the device).
        kept: what the compressed network asks for.
    """

    name = "coefficients"
    form: tuple[str, ...] = ("image_size",)

    def __init__(
        self, image_size: int | None, random_crop: bool, random_flip: bool, kept: Coefficients
    ) -> None:
        self.image_size = image_size
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.kept = replace(kept, source="store")
        self.shipped = covering(kept.selection)

    def fit(self, transform: Mapping[str, Any]) -> None:
        stored, window = transform["image_size"], transform["window"]
        size = self.image_size or stored
        if size > stored or size % MCU:
            raise UserError(
                "dataset.image_size",
                f"dataset.image_size={size}: the store holds {stored}, cuts are multiples of {MCU}",
                "give a smaller one, or null for whole images",
            )
        asked = max(len(self.shipped.luma), len(self.shipped.chroma))
        if asked > window * window:
            raise UserError(
                "compression.window",
                f"compression.window: the store holds a window of {window}",
                f"keep no more, or prepare it with compression.window={round(asked**0.5)}",
            )
        self.crop = BlockCrop(stored, size)
        self.recipe = CoefficientRecipe(stored, window, transform["source"])

    def dataset(
        self,
        store: Store,
        positions: Positions,
        seed: int,
        *,
        train: bool,
        resident: Tensors | None,
    ) -> BatchSource:
        shipped, random = self.shipped, train and self.random_crop
        if resident is None:
            labels = store.gather("labels", positions.tolist())
            rows = StoredRows(store, positions, shipped)
            return BlockSamples(rows, labels, self.crop, seed, random=random)
        labels = resident("labels").cpu()[positions]
        kept = ResidentRows(resident("y"), resident("cbcr"), positions, shipped)
        return BlockSamples(kept, labels, self.crop, seed, random=random)

    def transform(
        self,
        store: Store | None,
        positions: Positions,
        cache: Path,
        progress: ProgressCallback | None,
    ) -> DeviceTransform:
        numbers = None
        if store is not None:
            labels = store.gather("labels", positions.tolist())
            rows = StoredRows(store, positions, self.recipe.selection)
            samples = BlockSamples(rows, labels, self.crop, seed=0, random=False)
            key = {"data": store.manifest.version, "image_size": self.crop.size}
            numbers = self.kept.statistics(samples, self.recipe.selection, key, cache, progress)
        return CoefficientTransform(
            self.kept.selection, self.kept.range_, numbers, self.random_flip, self.shipped
        )

    def read(self, paths: Sequence[Path]) -> ClassificationBatch:
        """Images as ``research.prepare coefficients`` stores them, cut in the centre."""
        made = [self.recipe.make(Item(path.name, "", path, -1)).arrays for path in paths]
        y, cbcr = (
            torch.from_numpy(np.stack([arrays[name][..., : len(kept)] for arrays in made]))
            for name, kept in (("y", self.shipped.luma), ("cbcr", self.shipped.chroma))
        )
        index = torch.arange(len(paths))
        inputs = self.crop.centre(Blocks(y, cbcr))
        return ClassificationBatch(index, inputs, torch.full_like(index, -1))

    def baseline(self, store: Store, train: Positions, val: Positions) -> str | None:
        return None


class StoredRows:
    """Cuts copied straight out of the mapped files.

    Args:
        store: opened in whichever process reads.
        positions: of the rows in the store.
        shipped: frequencies to copy, a prefix of the stored ones.
    """

    def __init__(self, store: Store, positions: Positions, shipped: Selection) -> None:
        self.store = store
        self.positions = positions
        self.luma, self.chroma = len(shipped.luma), len(shipped.chroma)

    def cut(
        self, indices: Sequence[int], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> tuple[Blocks, list[int], dict[str, int]]:
        count, side = len(indices), crop.size // MCU
        y = np.empty((count, 2 * side, 2 * side, self.luma), np.int16)
        cbcr = np.empty((count, 2, side, side, self.chroma), np.int16)
        rows, luma, chroma = self.store.rows, self.luma, self.chroma
        places = zip(self.positions[indices].tolist(), corners.tolist(), strict=True)
        for place, (position, (top, left)) in enumerate(places):
            bottom, right = top + side, left + side
            y[place] = rows("y", position)[2 * top : 2 * bottom, 2 * left : 2 * right, :luma]
            cbcr[place] = rows("cbcr", position)[:, top:bottom, left:right, :chroma]
        return Blocks(torch.from_numpy(y), torch.from_numpy(cbcr)), list(range(count)), {}


class ResidentRows:
    """The same cuts out of whole tensors on a device, as one gather each.

    Args:
        y: [N, H/8, W/8, 64] or fewer frequencies.
        cbcr: [N, 2, H/16, W/16, 64] or fewer.
        positions: of the rows in them.
        shipped: frequencies to copy, a prefix of the stored ones.
    """

    def __init__(self, y: Tensor, cbcr: Tensor, positions: Positions, shipped: Selection) -> None:
        self.y = y[..., : len(shipped.luma)]
        self.cbcr = cbcr[..., : len(shipped.chroma)]
        self.positions = positions

    def cut(
        self, indices: Sequence[int], crop: BlockCrop, corners: NDArray[np.int64]
    ) -> tuple[Blocks, list[int], dict[str, int]]:
        device, side = self.y.device, crop.size // MCU
        which = torch.from_numpy(self.positions[indices]).to(device)[:, None, None]
        starts = torch.from_numpy(corners).to(device)
        luma, chroma = torch.arange(2 * side, device=device), torch.arange(side, device=device)
        y = self.y[
            which,
            (2 * starts[:, :1] + luma)[:, :, None],
            (2 * starts[:, 1:] + luma)[:, None, :],
        ]
        rows = (starts[:, :1] + chroma)[:, None, :, None]
        columns = (starts[:, 1:] + chroma)[:, None, None, :]
        plane = torch.arange(2, device=device)[:, None, None]
        cbcr = self.cbcr[which[..., None], plane, rows, columns]
        return Blocks(y, cbcr), list(range(len(indices))), {}


class FrameKind:
    """Letterboxed frames with the boxes in them.

    Args:
        image_size: side of the frames in pixels, as prepared; null takes what the store holds.
        max_boxes: slots a frame, as prepared; null takes what the store holds.
        augmentation: of training frames (on the device); nothing when null.
    """

    name = "frames"
    form: tuple[str, ...] = ("image_size", "max_boxes")

    def __init__(
        self,
        image_size: int | None,
        max_boxes: int | None,
        augmentation: FrameAugmentation | None,
    ) -> None:
        self.image_size = image_size
        self.max_boxes = max_boxes
        self.augmentation = augmentation

    def fit(self, transform: Mapping[str, Any]) -> None:
        for key, asked in (("image_size", self.image_size), ("max_boxes", self.max_boxes)):
            if asked is not None and asked != transform[key]:
                raise UserError(
                    f"dataset.{key}",
                    f"dataset.{key}={asked}: the store was prepared with {key}={transform[key]}",
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
        resident: Tensors | None,
    ) -> BatchSource:
        return FrameSamples(store, positions, resident)

    def transform(
        self,
        store: Store | None,
        positions: Positions,
        cache: Path,
        progress: ProgressCallback | None,
    ) -> DeviceTransform:
        return FrameTransform(self.augmentation)

    def read(self, paths: Sequence[Path]) -> DetectionBatch:
        """Images of any size, letterboxed as the store's frames were; without boxes."""
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
        """Mean IoU, over the validation frames, of the best constant box of the training frames."""
        known, judged = (
            (store.gather("boxes", part.tolist()), store.gather("mask", part.tolist()).bool())
            for part in (train, val)
        )
        seen = judged[1].any(1)
        if not seen.any():
            return None
        reached = constant_iou(best_constant_box(*known), judged[0][seen], judged[1][seen])
        return f"mean_iou {reached.mean().item():.4f}, the best constant box of the training frames"


def true_boxes(store: Store, positions: Positions) -> tuple[Tensor, Tensor]:
    """Boxes [N, M, 4] and mask [N, M] bool of some frames."""
    places = positions.tolist()
    return store.gather("boxes", places), store.gather("mask", places).bool()


class FrameSamples:
    """Frames as batches.

    Args:
        store: opened in whichever process reads.
        positions: of the frames in the store.
        resident: the store's tensors in a device's memory; null reads the mapped files.
    """

    def __init__(self, store: Store, positions: Positions, resident: Tensors | None) -> None:
        self.store = store
        self.positions = positions
        self.resident = resident
        self.left_out: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, keys: list[SampleKey]) -> DetectionBatch:
        index = torch.tensor([key.index for key in keys], dtype=torch.int64)
        positions = self.positions[index.numpy()]

        def rows(name: str) -> Tensor:
            if self.resident is None:
                return self.store.gather(name, positions.tolist())
            whole = self.resident(name)
            return whole[torch.from_numpy(positions).to(whole.device)]

        # Stored as rows of RGB pixels: channels_last, seen from here.
        return DetectionBatch(
            index,
            rows("images").permute(0, 3, 1, 2),
            rows("boxes"),
            rows("mask").bool(),
            rows("labels"),
            rows("sizes"),
        )
