"""The readable samples of a store, for ``prepare lint`` and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from research.compression.decoder import Decoder
from research.compression.selection import Selection, stored_order
from research.data.warehouse.manifest import SPLITS, Manifest
from research.data.warehouse.store import Store


class Samples:
    """The samples of a store, except those in damaged shards.

    Attributes:
        manifest: manifest of the store.
        records: records of all samples.
        positions: positions of the readable samples, in order.
        splits: [samples] split of every sample, an index into ``SPLITS``.
    """

    def __init__(
        self, manifest: Manifest, records: Sequence[dict[str, Any]], damaged: set[str]
    ) -> None:
        self.manifest = manifest
        self.records = records
        self.store = Store(manifest, verify="never")
        # The other shards stay readable if one is missing.
        self.store.verified = True
        self._stops = list(accumulate(shard.samples for shard in manifest.shards))
        intact = [shard.file not in damaged for shard in manifest.shards]
        readable = np.repeat(intact, [shard.samples for shard in manifest.shards])
        self.positions = np.flatnonzero(readable)
        self.splits = np.zeros(manifest.samples, dtype=np.int64)
        for group in manifest.groups:
            self.splits[group.start : group.stop] = SPLITS.index(group.split)

    def where(self, position: int) -> str:
        """Shard, row and name of a sample."""
        shard = int(np.searchsorted(self._stops, position, side="right"))
        row = int(position) - (self._stops[shard - 1] if shard else 0)
        record = self.records[position]
        name = record.get("file", record["name"])
        return f"{self.manifest.shards[shard].file} row {row} ({name})"

    def class_name(self, label: int) -> str:
        """Name of a class, also if a label is not one."""
        classes = self.manifest.classes
        return classes[label] if 0 <= label < len(classes) else f"label {label}"

    def all(self, name: str) -> NDArray[Any]:
        """One tensor of all readable samples, in the order of ``positions``."""
        return self.store.column(name, self.positions).numpy()

    def in_split(self, split: str) -> NDArray[np.bool_]:
        """[positions] True for samples of a split."""
        return np.asarray(self.splits[self.positions] == SPLITS.index(split))

    @cached_property
    def ignored(self) -> NDArray[np.bool_]:
        """[positions, M] True for the ignore regions of frames."""
        if "ignored" in self.manifest.tensors:
            return np.asarray(self.all("ignored") > 0)
        return np.zeros(self.all("mask").shape, bool)

    @cached_property
    def objects(self) -> NDArray[np.bool_]:
        """[positions, M] True for the boxes of objects in frames."""
        return np.asarray((self.all("mask") > 0) & ~self.ignored)

    def boxes(self) -> NDArray[np.float64]:
        """[N, 4] all finite boxes of objects: xyxy, fractions of the frame."""
        boxes = self.all("boxes")[self.objects].astype(np.float64)
        return boxes[np.isfinite(boxes).all(1)]

    @cached_property
    def valid_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labels of all objects (of frames) or samples, and their indices into ``positions``.

        Labels outside the range of classes are left out.
        """
        labels = self.all("labels")
        if self.manifest.kind == "frames":
            indices, slots = np.nonzero(self.objects)
            labels = labels[indices, slots]
        else:
            indices = np.arange(len(labels))
        valid = (labels >= 0) & (labels < len(self.manifest.classes))
        return labels[valid], indices[valid]


def decoded(samples: Samples, position: int) -> NDArray[np.uint8]:
    """[3, H, W] RGB of one sample of a store of coefficients."""
    y, cbcr = (
        torch.from_numpy(samples.store.rows(name, position).astype(np.float32))
        for name in ("y", "cbcr")
    )
    rgb = _decoder(samples.manifest.transform["window"])(
        y.permute(2, 0, 1)[None], cbcr.permute(0, 3, 1, 2)[None]
    )[0]
    pixels: NDArray[np.uint8] = rgb.round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


@cache
def _decoder(window: int) -> Decoder:
    order = stored_order(window)
    return Decoder(Selection(order, order), "full")


def class_counts(samples: Samples) -> dict[str, NDArray[np.int64]]:
    """Number of objects (of frames) or samples of each class [classes], by split."""
    labels, indices = samples.valid_labels
    return {
        split: np.bincount(
            labels[samples.in_split(split)[indices]], minlength=len(samples.manifest.classes)
        )
        for split in samples.manifest.splits
    }
