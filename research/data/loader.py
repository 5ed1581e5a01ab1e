"""Data loaders whose order and augmentation depend only on (seed, epoch, index).

Workers have no generator state, so a resumed run gets the same batches as an uninterrupted one,
with any number of workers. A data set implements ``BatchSource``, which reads the batches.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from research.batch import Batch
from research.data.listing import LeftOutFiles
from research.data.workers import (
    check_temporary_folder,
    report_dead_workers_here,
    signals_blocked,
    start_worker,
)
from research.utils.conditions import explain
from research.utils.errors import UserError, one_line

EXAMPLES = 64
"""Samples to look at, at most; more than fit on a sheet, since a task may show a part of them."""


@dataclass(frozen=True)
class SampleKey:
    """A sample in an epoch, with its own augmentation."""

    epoch: int
    index: int


class BatchSource(Protocol):
    """A map-style dataset that reads a whole batch in one call.

    ``skipped`` counts, by kind, the samples that were found damaged when files were listed and
    are not part of the dataset. A source may have a method ``sample_name(index)``, which gives the
    file of a sample for messages, and ``groups``, [N] integers: samples of one group belong
    together, as pairs of one series do. The loader asks for at least one sample: where a process
    has no part of a batch, it makes an empty one itself.
    """

    @property
    def skipped(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[SampleKey]) -> Batch: ...


@dataclass(frozen=True)
class ProcessShard:
    """The part of every epoch that a process reads.

    Attributes:
        rank: of the process, 0 <= rank < processes.
        processes: number of processes of the run.
    """

    rank: int = 0
    processes: int = 1

    def position(self, batch: int) -> int:
        """The number of this process's part among the parts of all batches of an epoch."""
        return batch * self.processes + self.rank

    def size(self, samples: int) -> int:
        """The length of this process's part of so many samples."""
        return samples // self.processes + (self.rank < samples % self.processes)

    def part(self, samples: NDArray[Any]) -> NDArray[Any]:
        """This process's part of ``samples``; parts are consecutive and differ by at most one."""
        return np.array_split(samples, self.processes)[self.rank]


@dataclass(frozen=True)
class ReadFailure:
    """An exception while a batch was read, sent by a worker in place of the batch.

    Attributes:
        error: raised in the main process.
        trace: the worker's traceback.
    """

    error: Exception
    trace: str


class WorkerTraceback(Exception):
    """The text of a traceback in a worker, as the cause of the exception in the main process."""


class NamingSource:
    """A ``BatchSource`` whose unexpected exceptions name the sample; damaged files have none.

    PyTorch would raise a worker's exception as another one of the same type, made from a text of
    many lines. Here it is sent as it is.
    """

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[SampleKey]) -> Batch | ReadFailure:
        if not keys:
            return Batch(torch.empty(0, dtype=torch.int64), None)
        in_worker = get_worker_info() is not None
        try:
            batch = self.source.__getitems__(keys)
            # Copied here, not by the thread that sends the batch: an error in it would be printed,
            # and the main process would wait for the batch for ever.
            return batch.map(Tensor.share_memory_) if in_worker else batch
        except Exception as error:
            known = self._known(error, keys)
            if not in_worker:
                raise known from (error.__cause__ if known is error else error)
            trace = "".join(traceback.format_exception(error))
            return ReadFailure(known, trace)

    def _known(self, error: Exception, keys: list[SampleKey]) -> Exception:
        """The error itself, if it needs no name; it can be pickled."""
        condition = None if isinstance(error, UserError) else explain(error)
        if isinstance(error, UserError) or (condition and type(error).__module__ == "builtins"):
            return error
        if condition is not None:
            return condition
        # The sample that causes it is found by reading one after the other.
        failed = next((key for key in keys if not self._is_readable(key)), None)
        where = f"a batch of {len(keys)} samples" if failed is None else (
            sample_name(self.source, failed.index)
        )  # fmt: skip
        reason = f"{type(error).__name__}: {one_line(error)}"
        return UserError("dataset", f"{where}: cannot be read ({reason})", "remove or replace it")

    def _is_readable(self, key: SampleKey) -> bool:
        try:
            self.source.__getitems__([key])
        except Exception:
            return False
        return True


def sample_name(source: BatchSource, index: int) -> str:
    """The file of a sample, or its number."""
    name = getattr(source, "sample_name", None)
    return f"sample {index}" if name is None else str(name(index))


def drawn_order(source: BatchSource, seed: int) -> NDArray[np.int64]:
    """All samples in an order drawn from the seed, group by group: its first ones are a sample of
    the whole, of which a smaller one is a part.
    """
    rng = np.random.default_rng((seed, 0))
    groups = getattr(source, "groups", None)
    if groups is None:
        return rng.permutation(len(source))
    names, group = np.unique(groups, return_inverse=True)
    return np.argsort(rng.permutation(len(names))[group], kind="stable")


class EpochSampler(Sampler[list[SampleKey]]):
    """Yield the batches of epoch ``epoch``, from batch ``start``, as lists of keys.

    In training every process reads its part of each batch of all processes. In evaluation it reads
    its part of the samples, so that the parts, one after the other, are all of them.

    Args:
        samples: size of the dataset.
        batch_size: samples per batch of one process.
        seed: seed of the run; the order of an epoch is drawn from (seed, epoch).
        train: draw an order, and drop the last batch if it is not full but not the only one;
            otherwise samples are in the order of the dataset.
        shard: part of this process.
        chosen: the samples of an evaluation, in order; None: the whole dataset.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int,
        train: bool,
        shard: ProcessShard,
        chosen: NDArray[np.int64] | None = None,
    ) -> None:
        self.chosen = chosen
        self.samples = samples if chosen is None else len(chosen)
        self.batch_size = batch_size
        self.seed = seed
        self.train = train
        self.shard = shard
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        if self.train:
            return max(self.samples > 0, self.samples // (self.batch_size * self.shard.processes))
        return -(-self.shard.size(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # A shuffle draws the same order for every type; half the bytes are half the time.
        order = np.arange(self.samples, dtype=np.int32 if self.samples < 2**31 else np.int64)
        size = self.batch_size
        if self.train:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
            size *= self.shard.processes
        else:
            order = self.shard.part(order if self.chosen is None else self.chosen)
        for batch in range(self.start, len(self)):
            chosen = order[batch * size : (batch + 1) * size]
            if self.train:
                chosen = self.shard.part(chosen)
            yield [SampleKey(self.epoch, index) for index in chosen.tolist()]


class EpochLoader:
    """A ``DataLoader`` that iterates over a given epoch: ``for batch in loader.epoch(3)``.

    Args:
        source: reads the batches.
        batch_size: samples per batch of one process.
        seed: seed of the run.
        train: see ``EpochSampler``.
        workers: number of processes that read; 0: this process reads.
        pin_memory: whether batches are page-locked.
        shard: part of this process.
        limit: evaluate only so many batches of all processes: a sample over the whole dataset,
            drawn from the seed, the same in every epoch. None: no limit.
        split: name of the split, for texts.
        unit: what a sample is, in the plural, for texts.
        left_out: names damaged files; None: they are only counted.
    """

    def __init__(
        self,
        source: BatchSource,
        batch_size: int,
        *,
        seed: int,
        train: bool,
        workers: int = 0,
        pin_memory: bool = False,
        shard: ProcessShard = ProcessShard(),
        limit: int | None = None,
        split: str = "",
        unit: str = "samples",
        left_out: LeftOutFiles | None = None,
    ) -> None:
        if workers:
            check_temporary_folder()
        self.source = source
        self.batch_size = batch_size
        self.shard = shard
        self.seed = seed
        self.split = split
        self.unit = unit
        chosen = None
        if limit is not None and limit * self.global_batch < len(source):
            chosen = np.sort(drawn_order(source, seed)[: limit * self.global_batch])
        self.sampler = EpochSampler(
            len(source), batch_size, seed=seed, train=train, shard=shard, chosen=chosen
        )
        self.left_out = left_out
        self.loader: DataLoader[Any] = DataLoader(
            NamingSource(source),  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=_identity,  # type: ignore[arg-type]
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            # Otherwise every epoch would advance the global generator, which dropout uses.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.sampler)

    @property
    def global_batch(self) -> int:
        """Samples of a batch of all processes."""
        return self.batch_size * self.shard.processes

    @property
    def skipped(self) -> dict[str, int]:
        """Counts of samples that are in no epoch, as ``left_out/KIND``; of the first process."""
        found = self.source.skipped if self.shard.rank == 0 else {}
        return {f"left_out/{kind}": count for kind, count in found.items()}

    def basis(self, n: int) -> str:
        """What a figure of ``n`` samples is of: ``val, 96 of 480 images``."""
        total = len(self.source)
        of = f"{n}" if n == total else f"{n} of {total}"
        return ", ".join(filter(None, [self.split, f"{of} {self.unit}"]))

    def examples(self) -> Batch:
        """A batch to look at: samples drawn from those of an evaluation, the same in every epoch.

        Its first ones are drawn in the same way. This process reads them, whatever its part is.
        Those that cannot be read are left out; if none can, others are drawn.
        """
        order = drawn_order(self.source, self.seed)[: self.sampler.samples]
        size, source = min(self.batch_size, EXAMPLES), NamingSource(self.source)
        parts = (order[i : i + size].tolist() for i in range(0, len(order), size))
        batches = (source.__getitems__([SampleKey(0, index) for index in part]) for part in parts)
        return next(batch for batch in batches if isinstance(batch, Batch) and len(batch))

    def names(self, index: Tensor) -> list[str]:
        """The files of samples, or their numbers."""
        return [sample_name(self.source, i) for i in index.tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch ``start``.

        Raises:
            UserError: if a sample can be neither read nor skipped as damaged.
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        try:
            with signals_blocked():  # the workers are started with this mask
                iterator = iter(self.loader)
            report_dead_workers_here()
            for batch in iterator:
                if isinstance(batch, ReadFailure):
                    raise batch.error from WorkerTraceback(batch.trace)
                batch.epoch = epoch
                if self.left_out is not None:
                    self.left_out.log(batch.left_out)
                yield batch
        except (RuntimeError, OSError, EOFError) as error:  # the last two: a batch cut short
            is_cut_short = isinstance(error, ConnectionError | EOFError)
            killed = self._killed_worker(10 if is_cut_short else 1)
            if killed is None:
                raise
            raise RuntimeError(f"DataLoader worker (pid {killed[0]}) is killed by signal: "
                               f"{killed[1]}.") from error  # fmt: skip

    def _killed_worker(self, seconds: float) -> tuple[int | None, str | None] | None:
        """Process and signal of a worker that was killed, if one was or ends within ``seconds``."""
        workers = getattr(self.loader._iterator, "_workers", [])
        ended = wait([worker.sentinel for worker in workers], timeout=seconds)  # it may be ending
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(seconds)  # its files are closed before it has an exit code
        killed = [(worker.pid, -(worker.exitcode or 0)) for worker in workers]
        return next(((pid, signal.strsignal(number)) for pid, number in killed if number > 0), None)


def _identity(batch: Batch) -> Batch:
    return batch
