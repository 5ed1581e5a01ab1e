"""Data loaders whose order and augmentation are functions of (seed, epoch, index) alone.

Workers hold no generator state. A resumed run sees the batches that the uninterrupted run would
have seen, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from research.batch import Batch


@dataclass(frozen=True)
class SampleKey:
    """One visit to one sample: its augmentation differs from epoch to epoch."""

    epoch: int
    index: int


class BatchSource(Protocol):
    """A map-style dataset that reads a whole batch in one call.

    ``left_out`` counts, by kind, the samples that were damaged when files were listed: they have
    no key.
    """

    @property
    def left_out(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[SampleKey]) -> Batch: ...


class EpochSampler(Sampler[list[SampleKey]]):
    """Yields the batches of one epoch as lists of keys; set ``epoch`` and ``start`` before.

    Args:
        samples: size of the data set.
        batch_size: samples a batch.
        seed: seed of the run; the order of an epoch is drawn from (seed, epoch).
        shuffle: whether to draw an order; without it samples come in the order of the dataset.
        drop_last: skip the last batch when it is not full.
    """

    def __init__(
        self, samples: int, batch_size: int, *, seed: int, shuffle: bool, drop_last: bool
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.arange(self.samples)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        for batch in range(self.start, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(self.epoch, int(index)) for index in chosen]


class EpochLoader:
    """A ``DataLoader`` of one epoch at a time: ``for batch in loader.epoch(3)``."""

    def __init__(
        self,
        source: BatchSource,
        batch_size: int,
        *,
        seed: int,
        train: bool,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.sampler = EpochSampler(
            len(source),
            batch_size,
            seed=seed,
            shuffle=train,
            drop_last=train and len(source) > batch_size,
        )
        self.loader: DataLoader[Any] = DataLoader(
            source,  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=_as_read,  # type: ignore[arg-type]
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
            # Its own, or every pass over data would move the generator that dropout draws from.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.sampler)

    @property
    def skipped(self) -> dict[str, int]:
        """Samples that no epoch holds, by kind, as ``left_out/KIND``."""
        return {f"left_out/{kind}": count for kind, count in self.source.left_out.items()}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch ``start`` on."""
        self.sampler.epoch, self.sampler.start = epoch, start
        return iter(self.loader)


def _as_read(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    # Workers are the parallelism: intra-operator threads in each would fight over the cores.
    torch.set_num_threads(1)
