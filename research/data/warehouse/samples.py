"""A store's samples as a person asks about them: where one is, what classes there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.data.warehouse.manifest import SPLITS, Manifest
from research.data.warehouse.store import Store


class Samples:
    """A store's samples, without those in damaged shards.

    Attributes:
        manifest: of the store.
        lines: their records.
        positions: of those that can be read, in order.
        splits: [samples] the split of every one, an index into ``SPLITS``.
    """

    def __init__(
        self, manifest: Manifest, lines: Sequence[dict[str, Any]], damaged: set[str]
    ) -> None:
        self.manifest = manifest
        self.lines = lines
        self.store = Store(manifest, verify="never")
        # A shard that is gone must not keep the others from being looked at.
        self.store.verified = True
        self._stops = list(accumulate(shard.samples for shard in manifest.shards))
        whole = [shard.file not in damaged for shard in manifest.shards]
        readable = np.repeat(whole, [shard.samples for shard in manifest.shards])
        self.positions = np.flatnonzero(readable)
        self.splits = np.zeros(manifest.samples, dtype=np.int64)
        for group in manifest.groups:
            self.splits[group.start : group.stop] = SPLITS.index(group.split)

    def where(self, position: int) -> str:
        """Shard, row and name of a sample."""
        shard = int(np.searchsorted(self._stops, position, side="right"))
        row = int(position) - (self._stops[shard - 1] if shard else 0)
        name = self.lines[position]["name"]
        return f"{self.manifest.shards[shard].file} row {row} ({name})"

    def all(self, name: str) -> NDArray[Any]:
        """One tensor's readable rows, in the order of ``positions``."""
        return self.store.gather(name, self.positions.tolist()).numpy()

    def of(self, split: str) -> NDArray[np.bool_]:
        """Which of ``positions`` are in a split."""
        return np.asarray(self.splits[self.positions] == SPLITS.index(split))

    def boxes(self) -> NDArray[np.float64]:
        """[N, 4] every box that is one: xyxy, shares of the frame."""
        found = self.all("boxes")[self.all("mask") > 0].astype(np.float64)
        return found[np.isfinite(found).all(1)]

    @cached_property
    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What classes are counted by, boxes or samples: their labels, and places in ``positions``.

        Labels that are no class are left out.
        """
        labels = self.all("labels")
        if self.manifest.kind == "frames":
            places, slots = np.nonzero(self.all("mask"))
            labels = labels[places, slots]
        else:
            places = np.arange(len(labels))
        known = (labels >= 0) & (labels < len(self.manifest.classes))
        return labels[known], places[known]


def class_counts(samples: Samples) -> dict[str, NDArray[np.int64]]:
    """[classes] boxes (of frames) or samples of each class, by split."""
    labels, places = samples.counted
    return {
        split: np.bincount(
            labels[samples.of(split)[places]], minlength=len(samples.manifest.classes)
        )
        for split in samples.manifest.splits
    }
