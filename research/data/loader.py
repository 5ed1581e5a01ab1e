"""Data loaders whose order and augmentation depend only on (seed, epoch, index).

Workers have no generator state, so a resumed run gets the same batches as an uninterrupted one,
with any number of workers. A data set implements ``BatchSource``, which reads the batches.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from research.batch import Batch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Signals that end a run, see ``research.engine.interrupts``."""


@dataclass(frozen=True)
class SampleKey:
    """A sample in an epoch, with its own augmentation."""

    epoch: int
    index: int


class BatchSource(Protocol):
    """A map-style dataset that reads a whole batch in one call.

    ``skipped`` counts, by kind, the samples that were found damaged when files were listed and
    are not part of the dataset.
    """

    @property
    def skipped(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[SampleKey]) -> Batch: ...


class EpochSampler(Sampler[list[SampleKey]]):
    """Yield the batches of epoch ``epoch``, from batch ``start``, as lists of keys.

    Args:
        samples: size of the dataset.
        batch_size: samples per batch.
        seed: seed of the run; the order of an epoch is drawn from (seed, epoch).
        shuffle: draw an order; otherwise samples are in the order of the dataset.
        drop_last: drop the last batch if it is not full.
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
    """A ``DataLoader`` that iterates over a given epoch: ``for batch in loader.epoch(3)``."""

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
            collate_fn=_identity,  # type: ignore[arg-type]
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            # Otherwise every epoch would advance the global generator, which dropout uses.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.sampler)

    @property
    def skipped(self) -> dict[str, int]:
        """Counts of samples that are in no epoch, as ``left_out/KIND``."""
        return {f"left_out/{kind}": count for kind, count in self.source.skipped.items()}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch ``start``."""
        self.sampler.epoch, self.sampler.start = epoch, start
        return iter(self.loader)


def _identity(batch: Batch) -> Batch:
    return batch


def _start_worker(worker: int) -> None:
    # The workers run in parallel: threads within each would compete for the cores.
    torch.set_num_threads(1)
    main = multiprocessing.parent_process()
    assert main is not None
    Thread(target=_end_with, args=(main,), daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        Thread(target=_obey, args=(main,), daemon=True).start()


def _end_with(main: BaseProcess) -> None:
    """End when the main process is killed, and with it release the lock of the run folder."""
    main.join()
    os._exit(0)


def _obey(main: BaseProcess) -> None:
    """Ignore signals, except SIGTERM from the main process.

    A scheduler signals all processes of a job, but the main process needs its workers to finish
    the step. It terminates them when it ends.
    """
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == main.pid:
            os._exit(0)
