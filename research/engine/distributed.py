"""One run on several processes: the only module that uses ``torch.distributed``.

``torchrun`` or ``srun`` starts the processes and ``processes`` connects them. Each trains on its
part of every batch; ``parallel`` averages the gradients with ``DistributedDataParallel``. The other
functions exchange numbers and objects between the processes; with one process they return their
argument. Objects are pickled, between processes of the same run only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from research.batch import Batch
from research.data.loader import ProcessShard
from research.tasks.task import LossTerms, Metrics, Task
from research.utils import whole_batch
from research.utils.errors import UserError, one_line
from research.utils.launch import Launch, launch

T = TypeVar("T")
K = TypeVar("K")

PATIENCE = timedelta(days=7)
"""How long a process waits for another, such as one that prepares data. One that has ended is
noticed at once, because its connections close."""


class _Group:
    """Groups of processes: ``control`` of all, for numbers and objects in main memory; ``active``
    of those that have samples of the current batch; None: all.
    """

    control: Any = None
    active: Any = None


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Connect the processes of a run; with a single process nothing happens.

    Args:
        device: the setting ``device``; with GPUs, each process uses that of its local rank.

    Raises:
        UserError: if a launcher is not supported, the processes do not reach each other, or there
            are fewer GPUs than processes.
    """
    own = launch()
    if own is None:
        yield
        return
    _select_gpu(own, device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=_store(own),
            rank=own.rank,
            world_size=own.processes,
        )
    except dist.DistError as error:
        raise UserError(
            "launcher",
            f"the processes cannot connect to {own.address}:{own.port} ({one_line(error)})",
            "set MASTER_ADDR and MASTER_PORT to a host and a free port that all of them reach",
        ) from error
    _Group.control = dist.new_group(backend="gloo", timeout=PATIENCE)
    whole_batch.sum_with(_sum)
    try:
        yield
        barrier()
    finally:
        whole_batch.sum_with(None)
        # What is kept would outlive the groups, and a second run of the process would use it.
        _Group.control = _Group.active = None
        _group.cache_clear()
    # Not after an error: the connections close when the process ends, after its error was printed.
    dist.destroy_process_group()


def _store(own: Launch) -> dist.Store:
    """The store in which the processes of this attempt find each other's addresses.

    ``torchrun --max-restarts`` starts the processes again with the store of those that have ended.
    So the main process chooses a new name, and answers each of the others, which until then may
    have read an old one.
    """
    url = "env://" if "RANK" in os.environ else f"tcp://{own.address}:{own.port}"
    store, _, _ = next(rendezvous(url, own.rank, own.processes))
    if own.rank == 0:
        name = uuid4().hex
        store.set("name", name)
        for each in range(1, own.processes):
            store.set(f"{name}/answer/{each}", store.get(f"{name}/question/{each}"))
        return dist.PrefixStore(name, store)
    question = uuid4().hex
    while True:
        name = store.get("name").decode()
        store.set(f"{name}/question/{own.rank}", question)
        answer = f"{name}/answer/{own.rank}"
        with suppress(dist.DistStoreError):  # a timeout
            store.wait([answer], timedelta(seconds=1))
            if store.get(answer).decode() == question:
                return dist.PrefixStore(name, store)


def _select_gpu(own: Launch, device: str) -> None:
    """Select the GPU of the local rank, if the run uses GPUs."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return
    if device not in ("auto", "cuda"):
        raise UserError(
            "device",
            f"device={device} with {own.processes} processes: each has its own GPU",
            "set device=cuda, or device=cpu",
        )
    gpus = torch.cuda.device_count()
    index = 0 if own.has_own_gpu and gpus == 1 else own.local_rank
    if index >= gpus:
        raise UserError(
            "device",
            f"process {own.local_rank} of this machine has no GPU: there are {gpus}",
            f"set --nproc_per_node={gpus}" if gpus else "set device=cpu",
        )
    torch.cuda.set_device(index)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files, trackers and pictures."""
    return rank() == 0


def shard() -> ProcessShard:
    """The part of the data that this process reads."""
    return ProcessShard(rank(), count())


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank, in the main process; elsewhere an empty list."""
    if _Group.control is None:
        return [value]
    values: list[Any] | None = [None] * count() if is_main() else None
    dist.gather_object(value, values, dst=0, group=_Group.control)
    return values or []


def broadcast(value: T) -> T:
    """The value of the main process."""
    if _Group.control is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_Group.control)
    return values[0]


def summed(values: Mapping[K, float]) -> dict[K, float]:
    """Sums by key over all processes; keys may differ between processes."""
    totals: dict[K, float] = {}
    for each in gathered(values):
        for name, value in each.items():
            totals[name] = totals.get(name, 0) + value
    return broadcast(totals)


def joined(values: list[T]) -> list[T]:
    """The lists of all processes, one after the other."""
    return broadcast([value for own in gathered(values) for value in own])


def means(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Means by name over all processes of rows, of which every process has the same number.

    ``Losses`` without a batch has no row of its own, but counts as a process.
    """
    if _Group.control is None:
        return rows
    sums = summed({(i, name): value for i, row in enumerate(rows) for name, value in row.items()})
    averaged: list[dict[str, float]] = [{} for _ in rows]
    for (i, name), value in sums.items():
        if name:
            averaged[i][name] = value / count()
    return averaged


def total(*numbers: int) -> list[int]:
    """Each number summed over all processes."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def _reduced(numbers: Sequence[int], operation: Any) -> list[int]:
    if _Group.control is None:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(values, operation, group=_Group.control)
    whole: list[int] = values.tolist()
    return whole


def largest(*numbers: int) -> list[int]:
    """The largest of each number over all processes."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def announce(samples: int) -> int:
    """The number of samples of the current batch in all processes.

    Counts of the batch are then summed over the processes that have samples of it.

    Args:
        samples: number of samples that this process has of it.
    """
    counts = total(*(samples if each == rank() else 0 for each in range(count())))
    active = tuple(each for each, own in enumerate(counts) if own)
    _Group.active = _group(active) if 0 < len(active) < len(counts) else None
    return sum(counts)


def is_awaited(is_step: bool, samples: int) -> bool:
    """Whether a batch without samples is needed, to average the gradients of earlier batches.

    Args:
        is_step: whether it is the last batch of an optimizer step.
        samples: whose gradients are in the step so far.
    """
    return is_step and samples > 0 and count() > 1


@cache
def _group(ranks: tuple[int, ...]) -> Any:
    """Created by all processes in the same order, since all know the counts."""
    return dist.new_group(list(ranks))


def barrier() -> None:
    """Wait for all processes."""
    total(0)


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block first; then the others, which find its files."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def computed(metrics: Metrics) -> dict[str, float]:
    """The metrics over the samples of all processes; merged into those of the main process."""
    if _Group.control is None:
        return metrics.compute()
    for state in gathered(metrics.state())[1:]:
        metrics.merge(state)
    return broadcast(metrics.compute() if is_main() else {})


def share_buffers(*modules: nn.Module | None) -> None:
    """Copy the buffers of the main process, such as batch norm's statistics, to the others."""
    if _Group.control is None:
        return
    for module in modules:
        for buffer in module.buffers() if module is not None else ():
            dist.broadcast(buffer, src=0)


class Losses(nn.Module):
    """The losses of a task and a model; ``DistributedDataParallel`` needs them as one module.

    Args:
        task: computes the losses.
        model: the network that is called.
    """

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.synced = [each for each in model.modules() if isinstance(each, nn.SyncBatchNorm)]

    def forward(self, batch: Batch | None) -> LossTerms:
        """The losses by name, and metrics.

        Without a batch, a loss that gives every parameter a zero gradient: a process without
        samples takes part in the average of the gradients, too.
        """
        if batch is not None:
            for norm in self.synced:
                # It would wait for the processes that have no samples of this batch.
                norm.process_group = _Group.active
            terms = self.task.losses(self.model, batch)
            return terms if isinstance(terms, LossTerms) else LossTerms(terms)
        used = [p for p in self.model.parameters() if p.requires_grad]
        return LossTerms({"": torch.stack([p.flatten()[0] for p in used]).sum() * 0})


def parallel(losses: Losses) -> nn.Module:
    """``losses`` with gradients averaged over the processes."""
    if not dist.is_initialized():
        return losses
    # Of depthwise convolutions, in every run; to copy their small gradients costs little.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    averaged = DistributedDataParallel(losses)
    # After its first backward pass it collects gradients in another order, on which the rounding of
    # sums depends: a resumed run would differ. So the first pass is one of zeros.
    _add_zeros(averaged)
    averaged.zero_grad(set_to_none=True)
    return averaged


def no_sync(losses: nn.Module, skip: bool) -> AbstractContextManager[Any]:
    """Within ``accumulate``: gradients are averaged in the last batch of a step only."""
    if skip and isinstance(losses, DistributedDataParallel):
        return losses.no_sync()
    return nullcontext()


def average_others(losses: nn.Module, is_step: bool, samples: int) -> None:
    """Average the gradients of a step whose last batch is skipped; arguments as ``is_awaited``.

    Without a backward pass of that batch, each process would step with its own.
    """
    if is_awaited(is_step, samples):
        _add_zeros(losses)


def _add_zeros(losses: nn.Module) -> None:
    losses(None)[""].backward()


def _sum(counts: Tensor) -> tuple[Tensor, int]:
    """For ``research.utils.whole_batch``."""
    counts = counts.clone()
    dist.all_reduce(counts, group=_Group.active)
    return counts, count()
