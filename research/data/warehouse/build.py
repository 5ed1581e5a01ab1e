"""Builds a version of a store: in parallel, resumable, and published atomically.

A build works in ``OUT/.building-v<version>-<samples per shard>/``: shards go into its folder
``store``, with one JSON record beside it for each finished shard. Every file is written atomically,
and ``store`` is renamed to ``OUT/v<version>`` at the end. No file contains a time or an absolute
path, so an interrupted and resumed build gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from research.data.listing import log_skipped
from research.data.warehouse.manifest import SAMPLES, SCHEMA, Manifest, SampleGroup
from research.data.warehouse.plan import BuildPlan, FileStamp, stamp_files, version_of
from research.data.warehouse.shards import ShardJob, ShardResult, write_shards
from research.data.warehouse.store import Store
from research.utils.errors import UserError
from research.utils.files import write_atomic

log = logging.getLogger(__name__)

SHARD_BYTES = 2**27
"""Of a shard by default: each process holds one in memory."""


def build(
    plan: BuildPlan,
    out: Path,
    *,
    shard_samples: int | None = None,
    workers: int | None = None,
    cache: Path | None = None,
) -> Manifest:
    """Write a version, or load it if it exists and is intact.

    Args:
        plan: what to write.
        out: folder of the versions; locked, other builds in it wait.
        shard_samples: samples in a shard; ``None`` for 128 MiB, at most 256.
        workers: number of processes; ``None`` for one per core.
        cache: folder of what is known of unchanged files: hashes of the source, intact shards;
            ``None`` to read all of them again.

    Raises:
        UserError: for source files that change or disappear during the build, a split without a
            readable sample, or a full disk. Finished shards are kept for the next build.
    """
    workers = workers or os.cpu_count() or 1
    if shard_samples is None:
        row = sum(tensor.bytes for tensor in plan.encoder.tensors().values())
        shard_samples = max(1, min(256, SHARD_BYTES // row))
    stamps = stamp_files(plan.samples, workers, cache)
    version = version_of(plan, stamps)
    final = out / f"v{version}"
    building = out / f".building-v{version}-{shard_samples}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _remove_leftovers(out, building)
            manifest = _load_intact(final, cache)
            if manifest is None:
                store = building / "store"
                store.mkdir(parents=True, exist_ok=True)
                jobs = _shard_jobs(plan, stamps, store, shard_samples)
                results = write_shards(jobs, workers)
                _write_manifest(plan, stamps, version, store, results)
                _publish(store, final)
                manifest = Manifest.load(final)
            shutil.rmtree(building, ignore_errors=True)
            return manifest
    except OSError as error:
        raise UserError(
            "OUT",
            f"{out}: {error.strerror or error}",
            "fix this and run the same command again; finished shards are kept",
        ) from None
    except BrokenProcessPool:
        raise UserError(
            "OUT",
            f"{out}: a process was killed while it wrote (out of memory?)",
            "run the same command again with fewer workers= or a smaller shard_samples=",
        ) from None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for another process that builds there", out)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(out: Path, building: Path) -> None:
    """Remove interrupted builds of other versions, and temporary files of this one."""
    for leftover in sorted(out.glob(".building-*")):
        if leftover != building:
            log.info("removing %s, an interrupted build", leftover)
            shutil.rmtree(leftover)
    for temporary in [*building.glob(".*"), *building.glob("store/.*")]:
        temporary.unlink()


def _load_intact(final: Path, cache: Path | None) -> Manifest | None:
    """The manifest of a finished version whose files have the right checksums."""
    if not final.exists():
        return None
    try:
        manifest = Manifest.load(final)
        if f"v{manifest.version}" != final.name:
            raise UserError("OUT", f"{manifest.path}: of version {manifest.version}")
        manifest.records()
        Store(manifest, "once", cache).open() if cache else Store(manifest, "always").open()
    except UserError as error:
        log.warning("%s; preparing it again", error.message)
        return None
    log.info("%s is already prepared and intact", final)
    with suppress(OSError):  # of another user, or on a read-only file system
        manifest.path.touch()  # the version that was prepared last is the newest
    return manifest


def _shard_jobs(
    plan: BuildPlan, stamps: Sequence[FileStamp], store: Path, shard_samples: int
) -> list[ShardJob]:
    jobs = []
    for number, start in enumerate(range(0, len(plan.samples), shard_samples)):
        chosen = slice(start, start + shard_samples)
        name = f"shard_{number:05d}"
        jobs.append(
            ShardJob(
                plan.encoder,
                plan.samples[chosen],
                stamps[chosen],
                store / f"{name}.safetensors",
                store.parent / f"{name}.json",
            )
        )
    return jobs


def _write_manifest(
    plan: BuildPlan,
    stamps: Sequence[FileStamp],
    version: str,
    store: Path,
    results: Sequence[ShardResult],
) -> None:
    """Write ``samples.jsonl`` and then the manifest."""
    skipped = {name: kind for result in results for name, kind in result.skipped.items()}
    log_skipped([problem for result in results for problem in result.problems])
    _check_limits(plan, skipped)
    reports = {group: Counter(plan.reports.get(group, {})) for group in plan.splits}
    stored: Counter[str] = Counter()
    digest = sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for sample, stamp in zip(plan.samples, stamps, strict=True):
                if sample.name in skipped:
                    reports[sample.group][f"left_out/{skipped[sample.name]}"] += 1
                    continue
                stored[sample.group] += 1
                record = {"name": sample.name, "group": sample.group, "sha256": stamp.sha256}
                if stamp.reading:
                    record["reading"] = stamp.reading
                line = json.dumps(record | plan.encoder.index_entry(sample)).encode() + b"\n"
                digest.update(line)
                file.write(line)

    write_atomic(store / SAMPLES, write)
    for result in results:
        for group, kinds in result.fallbacks.items():
            reports[group].update({f"fallback/{kind}": count for kind, count in kinds.items()})
    groups: list[SampleGroup] = []
    for name, split in plan.splits.items():
        start = groups[-1].stop if groups else 0
        report = dict(sorted(reports[name].items()))
        groups.append(SampleGroup(name, start, start + stored[name], split, report))
    for split in dict.fromkeys(() if plan.may_be_empty else plan.splits.values()):
        if not any(group.split == split and group.stop > group.start for group in groups):
            raise UserError("SOURCE", f"split {split}: none of its images could be read")
    shards = [result.shard for result in results if result.shard is not None]
    Manifest(
        folder=store,
        schema=SCHEMA,
        kind=plan.encoder.kind,
        version=version,
        transform=plan.encoder.transform(),
        classes=plan.classes,
        samples=sum(stored.values()),
        tensors=plan.encoder.tensors(),
        shards=shards,
        groups=groups,
        runs=plan.runs,
        damage=dict(sorted((Counter(plan.skipped) + Counter(skipped.values())).items())),
        left_out=skipped,
        thresholds=plan.thresholds,
        index_sha256=digest.hexdigest(),
        reading="" if plan.reading is None else str(plan.reading.leave_out(skipped)),
    ).save()


def _check_limits(plan: BuildPlan, skipped: Mapping[str, str]) -> None:
    """Check the limits of a plan again with the samples that could not be read."""
    counts = Counter[str]()
    for run in plan.runs.values():
        counts.update(run)
    invalid = counts["invalid"] + len(skipped)
    seen = invalid + counts["total"] - len(skipped)
    seen += counts["missing_image"] + counts["missing_file"]
    for key, value in (("max_invalid", invalid), ("max_invalid_ratio", invalid / max(seen, 1))):
        if value > plan.thresholds.get(key, value):
            raise UserError(
                key,
                f"{key}={plan.thresholds[key]:g}: {invalid} of {seen} frames are invalid "
                f"({value:.3g}), {len(skipped)} of them found when they were decoded",
                f"fix them, or raise {key}",
            )


def _publish(store: Path, final: Path) -> None:
    _sync(store)
    if final.exists():  # damaged, or it would have been loaded
        replaced = store.parent / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(store, final)
    _sync(final.parent)


def _sync(folder: Path) -> None:
    """Flush a folder, so that renames in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
