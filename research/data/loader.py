"""Loaders whose order and augmentation depend on (seed, epoch, index) and on nothing else.

No generator state lives in a worker, so a run resumed at an epoch sees the very batches that the
uninterrupted run saw, with any number of workers.
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
    """Names one visit to one sample: the same sample differs from epoch to epoch."""

    epoch: int
    index: int


class BatchSource(Protocol):
    """A data set that reads a whole batch in one call.

    ``left_out`` counts, by kind, the samples that its index found damaged: they have no key.
    """

    @property
    def left_out(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[SampleKey]) -> Batch: ...


class EpochSampler(Sampler[list[SampleKey]]):
    """Yields the batches of one epoch as lists of keys; set ``epoch`` before iterating.

    Args:
        samples: size of the data set.
        batch_size: samples a batch.
        seed: seed of the run; the order of an epoch is drawn from (seed, epoch).
        shuffle: in data-set order when false.
        drop_last: leave out the last batch when it is not full.
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

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.arange(self.samples)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(self.epoch, int(index)) for index in chosen]


class EpochLoader:
    """A ``DataLoader`` that is told the epoch: ``for batch in loader.epoch(3)``."""

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
    def left_out(self) -> dict[str, int]:
        """Samples that no epoch will see, by kind, as ``left_out/KIND``."""
        return {f"left_out/{kind}": count for kind, count in self.source.left_out.items()}

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self.sampler.epoch = epoch
        return iter(self.loader)


def _as_read(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    # Workers are the parallelism: intra-operator threads in each would fight over the cores.
    torch.set_num_threads(1)
