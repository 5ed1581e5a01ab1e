"""Writes shards in parallel processes; a shard file is complete or does not exist."""

from __future__ import annotations

import json
import logging
import os
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
from safetensors.numpy import save_file

from research.data.warehouse.checksums import sha256_of
from research.data.warehouse.encoders import SampleEncoder, SampleSpec
from research.data.warehouse.manifest import Shard
from research.data.warehouse.plan import FileStamp
from research.utils.errors import DamagedImage, UserError, one_line
from research.utils.files import write_atomic, write_text
from research.utils.progress import Phase, track

log = logging.getLogger(__name__)

MIN_PARALLEL_SECONDS = 10.0
"""Remaining work, in seconds, that justifies starting processes: each has to import torch."""


class ShardResult(NamedTuple):
    """Outcome of one shard.

    Attributes:
        shard: the file; ``None`` if none of its samples could be read.
        skipped: samples that could not be read, name to kind of damage.
        fallbacks: counts of samples that were not read the direct way, by group and kind.
        problems: a line for each skipped sample.
    """

    shard: Shard | None
    skipped: dict[str, str]
    fallbacks: dict[str, dict[str, int]]
    problems: list[str]


class ShardJob(NamedTuple):
    """One shard to write.

    Attributes:
        encoder: encodes the samples.
        samples: the samples.
        stamps: expected state of their files.
        file: path of the shard.
        record: path of the JSON file with the ``ShardResult`` of a finished shard.
    """

    encoder: SampleEncoder
    samples: Sequence[SampleSpec]
    stamps: Sequence[FileStamp]
    file: Path
    record: Path


def write_shards(jobs: Sequence[ShardJob], workers: int) -> list[ShardResult]:
    """Write all shards that an earlier build has not finished.

    Args:
        jobs: one job for each shard.
        workers: number of processes; with one, this process writes.

    Returns:
        the results in the order of ``jobs``.

    Raises:
        UserError: for a file that changed since it was stamped.
        OSError: if a shard cannot be written.
    """
    results = {number: result for number, job in enumerate(jobs) if (result := _finished(job))}
    if results:
        log.info("resuming: %d of %d shards are finished", len(results), len(jobs))
    finished = sum(len(jobs[number].samples) for number in results)
    missing = {number: job for number, job in enumerate(jobs) if number not in results}
    total = sum(len(job.samples) for job in jobs)
    work = f"storing {jobs[0].encoder.kind}" if jobs else ""
    with Phase(work, total, "samples", finished) as phase:
        for number, result in _write_all(missing, workers):
            results[number] = result
            phase.update(phase.done + len(jobs[number].samples))
    return [results[number] for number in range(len(jobs))]


def _finished(job: ShardJob) -> ShardResult | None:
    """The result that an earlier, interrupted build recorded, if the shard is still complete."""
    try:
        shard, *others = json.loads(job.record.read_text(encoding="utf-8"))
        result = ShardResult(shard and Shard(**shard), *others)
        complete = result.shard is None or job.file.stat().st_size == result.shard.bytes
    except (OSError, ValueError, TypeError):
        return None
    return result if complete else None


def _write_all(jobs: Mapping[int, ShardJob], workers: int) -> Iterator[tuple[int, ShardResult]]:
    remaining = dict(jobs)
    while remaining:
        number = next(iter(remaining))
        started = time.monotonic()
        yield number, _write_shard(remaining.pop(number))
        expected = (time.monotonic() - started) * len(remaining)
        if workers > 1 and len(remaining) > 1 and expected > MIN_PARALLEL_SECONDS:
            yield from _write_in_processes(remaining, min(workers, len(remaining)))
            return


def _write_in_processes(
    jobs: Mapping[int, ShardJob], workers: int
) -> Iterator[tuple[int, ShardResult]]:
    # Spawned, not forked: this process has threads, which would not survive a fork.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
        futures = {pool.submit(_write_shard, job): number for number, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import torch

    # Workers are the parallelism, as in a DataLoader; Ctrl-C is handled by the main process.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit with the parent: workers of a killed build must not write into the next one."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_shard(job: ShardJob) -> ShardResult:
    tensors = job.encoder.tensors()
    rows = {
        name: np.zeros((len(job.samples), *tensor.shape), tensor.dtype)
        for name, tensor in tensors.items()
    }
    skipped: dict[str, str] = {}
    fallbacks: dict[str, Counter[str]] = {}
    problems: list[str] = []
    count = 0
    encoded_samples = track(
        job.encoder.encode_all(job.samples), job.file.stem, len(job.samples), "samples"
    )
    for sample, stamp, encoded in zip(job.samples, job.stamps, encoded_samples, strict=True):
        _check_unchanged(sample, stamp)
        if isinstance(encoded, DamagedImage):
            skipped[sample.name] = encoded.kind
            problems.append(f"{sample.name}: {one_line(encoded)}")
            continue
        for name, array in encoded.arrays.items():
            rows[name][count] = array
        if encoded.fallback:
            fallbacks.setdefault(sample.group, Counter())[encoded.fallback] += 1
        count += 1
    shard = None
    if count:
        shard = _save(job.file, {name: array[:count] for name, array in rows.items()}, count)
    counts = {group: dict(kinds) for group, kinds in fallbacks.items()}
    result = ShardResult(shard, skipped, counts, problems)
    write_text(job.record, json.dumps([shard and asdict(shard), *result[1:]]))
    return result


def _check_unchanged(sample: SampleSpec, stamp: FileStamp) -> None:
    for file, expected in zip(sample.files, stamp.stats, strict=True):
        with suppress(OSError):
            stat = file.stat()
            if (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) == expected:
                continue
        raise UserError(
            "SOURCE", f"{file}: changed while it was prepared", "run the same command again"
        )


def _save(path: Path, tensors: dict[str, NDArray[np.generic]], samples: int) -> Shard:
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        save_file(tensors, temporary)
        digest = sha256_of(temporary)

    write_atomic(path, write)
    return Shard(path.name, samples, path.stat().st_size, digest)
