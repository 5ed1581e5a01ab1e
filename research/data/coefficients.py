"""A network on DCT coefficients, as seen by the data sets that feed it."""

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
from research.data.index import ProgressCallback
from research.data.loader import BatchSource, EpochLoader
from research.data.transforms import CoefficientTransform

STATISTICS_RECIPE = 1
"""Raised when the way in which statistics are measured changes, so that old ones are not used."""


@dataclass(frozen=True)
class Coefficients:
    """What a compressed network asks of a data set.

    Attributes:
        selection: the kept frequencies.
        range_: ``studio`` or ``full``.
        source: ``pixels`` or ``bitstream``.
        normalised: by measured statistics; on JPEG's own scale when false.
        statistics_images: how many images are measured.
    """

    selection: Selection
    range_: str
    source: str
    normalised: bool
    statistics_images: int

    def statistics(
        self,
        samples: BatchSource,
        shipped: Selection,
        key: Mapping[str, object],
        cache: Path,
        progress: ProgressCallback | None,
    ) -> Statistics | None:
        """Measured on samples as validation would see them, or recalled; null when not needed.

        Args:
            samples: of the training split, uncropped and in their own order; nothing is read
                when the numbers are known.
            shipped: the frequencies that ``samples`` carry: all 64, unless a store holds fewer.
            key: what the numbers depend on beside this record: data, image size, resize rule.
            cache: where they are kept.
            progress: told while they are measured.
        """
        if not self.normalised:
            return None
        whole_key = {
            "recipe": STATISTICS_RECIPE,
            "source": self.source,
            "range": self.range_,
            "images": self.statistics_images,
            **(
                {}
                if shipped == ALL_FREQUENCIES
                else {"frequencies": [shipped.luma, shipped.chroma]}
            ),
            **key,
        }

        def blocks() -> Iterator[Blocks]:
            # In an order of chance: folders are sorted by class.
            batches = EpochLoader(samples, min(64, len(samples)), seed=0, train=True)
            transform = CoefficientTransform(shipped, self.range_, None, flip=False).eval()
            wanted = min(len(batches), math.ceil(self.statistics_images / batches.batch_size))
            for done, batch in enumerate(islice(batches.epoch(0), wanted), start=1):
                if progress is not None:
                    progress("measuring DCT statistics", done, wanted)
                if len(batch):
                    yield transform(batch.to(torch.device("cpu")), None).inputs

        return statistics.cached(cache, whole_key, lambda: statistics.measure(blocks(), shipped))
