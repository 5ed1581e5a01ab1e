"""Writing shards: one task a shard, in parallel processes, each file whole or not there."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from research.data.index import ProgressCallback
from research.data.warehouse.checksums import sha256_of
from research.data.warehouse.manifest import Shard
from research.data.warehouse.plan import Item, Recipe, Stamp
from research.utils.errors import DamagedImage, UserError
from research.utils.files import write_atomic, write_text

log = logging.getLogger(__name__)

SECONDS_WORTH_PROCESSES = 10.0
"""Work for which to start processes; each has to import torch first."""


class Part(NamedTuple):
    """What came of one shard.

    Attributes:
        shard: the file; null when none of its samples could be read.
        left_out: samples that could not be read, name to kind of damage.
        detours: how many were read by a detour, by group and kind.
    """

    shard: Shard | None
    left_out: dict[str, str]
    detours: dict[str, dict[str, int]]


class Task(NamedTuple):
    """One shard to write.

    Attributes:
        recipe: how samples are made.
        items: the samples.
        stamps: what their files must still be.
        file: the shard.
        record: where it is written down that the shard is finished, and what came of it.
    """

    recipe: Recipe
    items: Sequence[Item]
    stamps: Sequence[Stamp]
    file: Path
    record: Path


def write_shards(tasks: list[Task], workers: int, progress: ProgressCallback | None) -> list[Part]:
    """Every shard, written now or found finished.

    Args:
        tasks: one a shard.
        workers: processes; with one, this process writes.
        progress: told of the samples written.

    Raises:
        UserError: for a file that changed since it was stamped.
        OSError: when a shard cannot be written.
    """
    found = {number: part for number, task in enumerate(tasks) if (part := _finished(task))}
    done, total = 0, sum(len(task.items) for task in tasks)

    def tell(number: int) -> None:
        nonlocal done
        done += len(tasks[number].items)
        if progress is not None:
            progress("writing shards", done, total)

    if found:
        log.info("going on: %d of %d shards are there", len(found), len(tasks))
    for number in found:
        tell(number)
    missing = {number: task for number, task in enumerate(tasks) if number not in found}
    for number, part in _write_all(missing, workers):
        found[number] = part
        tell(number)
    return [found[number] for number in range(len(tasks))]


def _finished(task: Task) -> Part | None:
    """What an earlier, killed build recorded of a shard that is still there."""
    try:
        shard, left_out, detours = json.loads(task.record.read_text(encoding="utf-8"))
        part = Part(shard and Shard(**shard), left_out, detours)
        whole = part.shard is None or task.file.stat().st_size == part.shard.bytes
    except (OSError, ValueError, TypeError):
        return None
    return part if whole else None


def _write_all(tasks: Mapping[int, Task], workers: int) -> Iterator[tuple[int, Part]]:
    left = dict(tasks)
    while left:
        number = next(iter(left))
        began = time.monotonic()
        yield number, _write_shard(left.pop(number))
        expected = (time.monotonic() - began) * len(left)
        if workers > 1 and len(left) > 1 and expected > SECONDS_WORTH_PROCESSES:
            yield from _write_in_processes(left, min(workers, len(left)))
            return


def _write_in_processes(tasks: Mapping[int, Task], workers: int) -> Iterator[tuple[int, Part]]:
    # Spawned, since this process has threads, which a fork would cut off in mid-air.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
        futures = {pool.submit(_write_shard, task): number for number, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import torch

    # Workers are the parallelism, as in a loader; and Ctrl-C is for the process that has them.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed builder must not leave processes behind that write into its next build."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_shard(task: Task) -> Part:
    tensors = task.recipe.tensors()
    rows = {
        name: np.zeros((len(task.items), *tensor.shape), tensor.dtype)
        for name, tensor in tensors.items()
    }
    left_out: dict[str, str] = {}
    detours: dict[str, Counter[str]] = {}
    kept = 0
    for item, stamp in zip(task.items, task.stamps, strict=True):
        _unchanged(item.file, stamp)
        try:
            made = task.recipe.make(item)
        except DamagedImage as error:
            left_out[item.name] = error.kind
            continue
        for name, array in made.arrays.items():
            rows[name][kept] = array
        if made.detour:
            detours.setdefault(item.group, Counter())[made.detour] += 1
        kept += 1
    shard = None
    if kept:
        shard = _save(task.file, {name: array[:kept] for name, array in rows.items()}, kept)
    part = Part(shard, left_out, {group: dict(counts) for group, counts in detours.items()})
    write_text(task.record, json.dumps([shard and asdict(shard), part.left_out, part.detours]))
    return part


def _unchanged(file: Path, stamp: Stamp) -> None:
    with suppress(OSError):
        stat = file.stat()
        if (stat.st_size, stat.st_mtime_ns) == stamp[1:]:
            return
    raise UserError(
        "source", f"{file}: changed while it was prepared", "run the same command again"
    )


def _save(path: Path, tensors: dict[str, NDArray[np.generic]], samples: int) -> Shard:
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from None
        digest = sha256_of(temporary)

    write_atomic(path, write)
    return Shard(path.name, samples, path.stat().st_size, digest)
