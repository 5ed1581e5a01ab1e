"""``CoefficientSpec``: the DCT coefficients that a network needs from its data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from research.compression import statistics
from research.compression.blocks import Blocks
from research.compression.selection import ALL_FREQUENCIES, Selection
from research.compression.statistics import Statistics
from research.data.loader import BatchSource, EpochLoader
from research.data.transforms import CoefficientTransform
from research.utils.progress import track_batches

STATISTICS_VERSION = 1
"""Increase it when statistics are measured differently, so that cached ones are not used."""


@dataclass(frozen=True)
class CoefficientSpec:
    """The coefficients that a network on DCT coefficients needs from a data set.

    Attributes:
        selection: the frequencies.
        range_: ``studio`` or ``full``.
        source: ``pixels`` or ``bitstream``.
        normalised: normalised by measured statistics, or on JPEG's own scale.
        statistics_images: number of images to measure statistics on.
    """

    selection: Selection
    range_: str
    source: str
    normalised: bool
    statistics_images: int

    def measured(self, samples: BatchSource) -> list[int]:
        """Indices of the samples on which ``statistics`` measures, in order."""
        loader, batches = self._measured_batches(samples)
        return [key.index for batch in islice(loader.sampler, batches) for key in batch]

    def statistics(
        self,
        samples: BatchSource,
        shipped: Selection,
        key: Mapping[str, object],
        cache: Path,
    ) -> Statistics | None:
        """Measure statistics, or read them from the cache; ``None`` if not normalised.

        Args:
            samples: the training split with validation crops; only read if there are no cached
                statistics.
            shipped: the frequencies in ``samples``: all 64, or those in a prepared store.
            key: what the statistics depend on besides this record: content of the measured samples,
                image size, resize rule.
            cache: folder of cached statistics.
        """
        if not self.normalised:
            return None
        full_key = {
            "recipe": STATISTICS_VERSION,
            "source": self.source,
            "range": self.range_,
            "images": self.statistics_images,
            **key,
        }
        if shipped != ALL_FREQUENCIES:
            full_key["frequencies"] = [shipped.luma, shipped.chroma]

        def blocks() -> Iterator[Blocks]:
            loader, total = self._measured_batches(samples)
            transform = CoefficientTransform(shipped, self.range_, None, flip=False).eval()
            batches = islice(loader.epoch(0), total)
            for batch in track_batches(batches, "measuring statistics", total):
                if len(batch):
                    yield transform(batch.to(torch.device("cpu")), None).inputs

        return statistics.cached(cache, full_key, lambda: statistics.measure(blocks(), shipped))

    def _measured_batches(self, samples: BatchSource) -> tuple[EpochLoader, int]:
        """A loader, and the number of its first batches that are measured."""
        # Shuffled, because folders are sorted by class.
        loader = EpochLoader(samples, min(64, len(samples)), seed=0, train=True)
        return loader, min(len(loader), math.ceil(self.statistics_images / loader.batch_size))
