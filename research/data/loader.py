"""Data loaders whose order and augmentation depend only on (seed, epoch, index).

Workers have no generator state, so a resumed run gets the same batches as an uninterrupted one,
with any number of workers. A data set implements ``BatchSource``, which reads the batches.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from research.batch import Batch
from research.utils.conditions import explain
from research.utils.errors import UserError, one_line

LONGEST_SOCKET = 107
"""Characters in the path of a Unix socket, through which workers send batches."""

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
    are not part of the dataset. A source may have a method ``sample_name(index)``, which gives the
    file of a sample for messages. The loader asks for at least one sample: where a process has no
    part of a batch, it makes an empty one itself.
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


class EpochSampler(Sampler[list[SampleKey]]):
    """Yield the batches of epoch ``epoch``, from batch ``start``, as lists of keys.

    In training every process reads its part of each batch of all processes. In evaluation it reads
    its part of the split, so that the parts, one after the other, are the whole split.

    Args:
        samples: size of the dataset.
        batch_size: samples per batch of one process.
        seed: seed of the run; the order of an epoch is drawn from (seed, epoch).
        train: draw an order, and drop the last batch if it is not full but not the only one;
            otherwise samples are in the order of the dataset.
        shard: part of this process.
    """

    def __init__(
        self, samples: int, batch_size: int, *, seed: int, train: bool, shard: ProcessShard
    ) -> None:
        self.samples = samples
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
            order = self.shard.part(order)
        for batch in range(self.start, len(self)):
            chosen = order[batch * size : (batch + 1) * size]
            if self.train:
                chosen = self.shard.part(chosen)
            yield [SampleKey(self.epoch, index) for index in chosen.tolist()]


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
        shard: ProcessShard = ProcessShard(),
    ) -> None:
        if workers:
            _check_temporary_folder()
        self.source = source
        self.batch_size = batch_size
        self.shard = shard
        self.sampler = EpochSampler(len(source), batch_size, seed=seed, train=train, shard=shard)
        self.loader: DataLoader[Any] = DataLoader(
            NamingSource(source),  # type: ignore[arg-type]
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
    def global_batch(self) -> int:
        """Samples of a batch of all processes."""
        return self.batch_size * self.shard.processes

    @property
    def skipped(self) -> dict[str, int]:
        """Counts of samples that are in no epoch, as ``left_out/KIND``; of the first process."""
        found = self.source.skipped if self.shard.rank == 0 else {}
        return {f"left_out/{kind}": count for kind, count in found.items()}

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
            with _signals_blocked():  # the workers are started with this mask
                iterator = iter(self.loader)
            _report_dead_workers_here()
            for batch in iterator:
                if isinstance(batch, ReadFailure):
                    raise batch.error from WorkerTraceback(batch.trace)
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
        wait([worker.sentinel for worker in workers], timeout=seconds)  # it may still be ending
        killed = [(worker.pid, -(worker.exitcode or 0)) for worker in workers]
        return next(((pid, signal.strsignal(number)) for pid, number in killed if number > 0), None)


def _identity(batch: Batch) -> Batch:
    return batch


def _check_temporary_folder() -> None:
    """Refuse a path with which a worker would fail in a thread, and the run wait for ever."""
    folder = tempfile.gettempdir()
    most = LONGEST_SOCKET - len("/pymp-12345678/listener-12345678")
    if (length := len(os.fsencode(folder))) > most:
        raise UserError(
            "TMPDIR",
            f"{folder}: {length} bytes, workers of the loader can use at most {most}",
            "set TMPDIR=/tmp, or workers=0",
        )


def _start_worker(worker: int) -> None:
    # The workers run in parallel: threads within each would compete for the cores.
    torch.set_num_threads(1)
    main = multiprocessing.parent_process()
    assert main is not None
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # Before any thread: a signal goes to a thread that does not block it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        Thread(target=_obey, args=(main,), daemon=True).start()
    Thread(target=_end_with, args=(main,), daemon=True).start()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Keep ``SIGNALS`` pending: a child that is started here cannot be ended by them."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _report_dead_workers_here() -> None:
    """Let the loader find out, within 5 s, that a worker was killed.

    PyTorch also has a handler that raises an exception wherever the main process is when it
    happens, and again whenever another process ends: also while the end of the run is recorded.
    """
    if hasattr(signal, "SIGCHLD") and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


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
