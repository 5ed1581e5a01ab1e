"""Building a version: parallel over processes, restartable where it stopped, never half there.

A version grows in ``OUT/.building-v<version>-<samples a shard>/``: shards in its folder ``store``,
and beside that one record a finished shard. Every file is put in place whole, and ``store`` becomes
``OUT/v<version>`` in one rename at the very end. None of the files holds a time or a path of this
machine, so a build that was killed and run again ends with the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from research.data.index import ProgressCallback
from research.data.warehouse.checksums import damaged_shards
from research.data.warehouse.manifest import SAMPLES, SCHEMA, Group, Manifest
from research.data.warehouse.plan import Plan, Stamp, stamp_files, version_of
from research.data.warehouse.shards import Part, Task, write_shards
from research.utils.errors import UserError
from research.utils.files import write_atomic

log = logging.getLogger(__name__)


def build(
    plan: Plan,
    out: Path,
    *,
    shard_samples: int = 256,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Write a version, or recall it when it is there and whole.

    Args:
        plan: what to write.
        out: the folder of versions. Other processes that build in it meanwhile wait.
        shard_samples: samples a shard.
        workers: processes; null for one a core.
        progress: told of files read and samples written.

    Raises:
        UserError: for a source that changes or vanishes meanwhile, a split without a readable
            sample, a disk that is full. What was finished stays, and the next build goes on there.
    """
    workers = workers or os.cpu_count() or 1
    stamps = stamp_files(plan.items, workers, progress)
    version = version_of(plan, stamps)
    final = out / f"v{version}"
    building = out / f".building-v{version}-{shard_samples}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            _clean(out, building)
            ready = _ready(final)
            if ready is None:
                store = building / "store"
                store.mkdir(parents=True, exist_ok=True)
                tasks = _tasks(plan, stamps, store, shard_samples)
                parts = write_shards(tasks, workers, progress)
                _describe(plan, stamps, version, store, parts)
                _publish(store, final)
                ready = Manifest.load(final)
            shutil.rmtree(building, ignore_errors=True)
            return ready
    except OSError as error:
        raise UserError(
            "out",
            f"{out}: {error.strerror or error}",
            "see to it and run the same command again, what is finished stays",
        ) from None
    except BrokenProcessPool:
        raise UserError(
            "out",
            f"{out}: a process was killed while it wrote (out of memory?)",
            "run the same command again with fewer workers= or a smaller shard_samples=",
        ) from None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for another process that prepares there", out)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _clean(out: Path, building: Path) -> None:
    """Remove what killed builds of other versions left, and half-written files of this one."""
    for leftover in sorted(out.glob(".building-*")):
        if leftover != building:
            log.info("removing %s, left by a build that was stopped", leftover)
            shutil.rmtree(leftover)
    for temporary in [*building.glob(".*"), *building.glob("store/.*")]:
        temporary.unlink()


def _ready(final: Path) -> Manifest | None:
    if not final.exists():
        return None
    try:
        manifest = Manifest.load(final)
        manifest.lines()
    except UserError as error:
        log.warning("%s", error)
    else:
        damaged = list(damaged_shards(manifest, manifest.shards))
        if not damaged:
            log.info("%s is prepared already, and whole", final)
            return manifest
        log.warning("%s; preparing it again", damaged[0][1])
    return None


def _tasks(plan: Plan, stamps: Sequence[Stamp], store: Path, shard_samples: int) -> list[Task]:
    tasks = []
    for number, start in enumerate(range(0, len(plan.items), shard_samples)):
        chosen = slice(start, start + shard_samples)
        name = f"shard_{number:05d}"
        tasks.append(
            Task(
                plan.recipe,
                plan.items[chosen],
                stamps[chosen],
                store / f"{name}.safetensors",
                store.parent / f"{name}.json",
            )
        )
    return tasks


def _describe(
    plan: Plan, stamps: Sequence[Stamp], version: str, store: Path, parts: list[Part]
) -> None:
    """Write ``samples.jsonl`` and then the manifest."""
    left_out = {name: kind for part in parts for name, kind in part.left_out.items()}
    reports = {group: Counter(plan.reports.get(group, {})) for group in plan.splits}
    stored: Counter[str] = Counter()
    digest = sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for item, stamp in zip(plan.items, stamps, strict=True):
                if item.name in left_out:
                    reports[item.group][f"left_out/{left_out[item.name]}"] += 1
                    continue
                stored[item.group] += 1
                record = {"name": item.name, "group": item.group, "sha256": stamp.sha256}
                line = json.dumps(record | plan.recipe.line(item)).encode() + b"\n"
                digest.update(line)
                file.write(line)

    write_atomic(store / SAMPLES, write)
    for part in parts:
        for group, kinds in part.detours.items():
            reports[group].update({f"fallback/{kind}": count for kind, count in kinds.items()})
    groups: list[Group] = []
    for name, split in plan.splits.items():
        start = groups[-1].stop if groups else 0
        report = dict(sorted(reports[name].items()))
        groups.append(Group(name, start, start + stored[name], split, report))
    for split in dict.fromkeys(plan.splits.values()):
        if not any(group.split == split and group.stop > group.start for group in groups):
            raise UserError(split, f"split {split}: not one of its images could be read")
    shards = [part.shard for part in parts if part.shard is not None]
    Manifest(
        folder=store,
        schema=SCHEMA,
        kind=plan.recipe.kind,
        version=version,
        transform=plan.recipe.transform(),
        classes=plan.classes,
        samples=sum(stored.values()),
        tensors=plan.recipe.tensors(),
        shards=shards,
        groups=groups,
        runs=plan.runs,
        damage=dict(sorted((Counter(plan.damage) + Counter(left_out.values())).items())),
        left_out=left_out,
        thresholds=plan.thresholds,
        index_sha256=digest.hexdigest(),
    ).save()


def _publish(store: Path, final: Path) -> None:
    _sync(store)
    if final.exists():  # damaged, or it would have been recalled
        replaced = store.parent / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(store, final)
    _sync(final.parent)


def _sync(folder: Path) -> None:
    """Make renames in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
