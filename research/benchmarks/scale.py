"""Cost per unit of stores, orders of an epoch and comparisons of three sizes, a hundredfold apart.

Stores are sparse files: they have the sizes of real ones, but no blocks on the disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from research.benchmarks.measure import Candidate, Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.data.loader import EpochLoader, EpochSampler, ProcessShard
from research.data.warehouse.manifest import SCHEMA, Manifest, SampleGroup, Shard, TensorSpec
from research.data.warehouse.store import Store

ENTRIES: Final = (10_000, 100_000, 1_000_000)
SAMPLES: Final = (140_000, 1_400_000, 14_000_000)
RUNS: Final = (10, 100, 1000)
READ: Final = 1024
"""Samples that are read from every store, evenly spaced: the same number of pages of each.

Few, so that they stay in memory with the pages that are read ahead.
"""
PER_SHARD: Final = 256
IMAGE, CROP, WINDOW, BATCH = 256, 224, 8, 256
"""As in the benchmark ``store``."""
MIB: Final = 2**20


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        stores = {count: sparse_store(top / f"store_{count}", count) for count in ENTRIES}
        again = sparse_store(top / "store_control", ENTRIES[0])
        results = [
            *of_stores(stores, again, top / "cache", options.rounds),
            of_orders(options.rounds),
        ]
        shutil.rmtree(top / "cache", ignore_errors=True)
        return [*results, of_comparisons(top / "runs", min(options.rounds, 3))]


def _with_control(sizes: dict[int, Any], control: Any, unit: str) -> dict[str, Any]:
    """Candidates by name; the second is the smallest size again, as the control."""
    first, *others = sizes
    named = {f"{first:,} {unit}": sizes[first], f"{first:,} {unit} (control)": control}
    return named | {f"{count:,} {unit}": sizes[count] for count in others}


# -- stores ------------------------------------------------------------------------------------


def sparse_store(folder: Path, samples: int) -> Path:
    """A store of coefficients without content: all are zero, and checksums do not fit."""
    grid, kept = IMAGE // 8, WINDOW**2
    tensors = {
        "y": TensorSpec("int16", (grid, grid, kept)),
        "cbcr": TensorSpec("int16", (2, grid // 2, grid // 2, kept)),
        "labels": TensorSpec("int64", ()),
    }
    folder.mkdir(parents=True)
    shards = []
    for number, start in enumerate(range(0, samples, PER_SHARD)):
        count = min(PER_SHARD, samples - start)
        file = folder / f"shard_{number:05d}.safetensors"
        shards.append(Shard(file.name, count, _sparse_shard(file, tensors, count), "0" * 64))
    held_out = samples // 20
    train = SampleGroup("train", 0, samples - held_out, "train")
    Manifest(
        folder=folder,
        schema=SCHEMA,
        kind="coefficients",
        version=f"{samples:016x}",
        transform={"image_size": IMAGE, "window": WINDOW, "source": "bitstream"},
        classes=[f"class {number}" for number in range(1000)],
        samples=samples,
        tensors=tensors,
        shards=shards,
        groups=[train, SampleGroup("val", train.stop, samples, "val")],
        runs={},
        damage={},
        left_out={},
        thresholds={},
        index_sha256="0" * 64,
    ).save()
    return folder


def _sparse_shard(file: Path, tensors: dict[str, TensorSpec], samples: int) -> int:
    """Write the header of a safetensors file of zeros; returns the size of the file."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + samples * tensor.bytes
        kind = {"int16": "I16", "int64": "I64"}[tensor.dtype]
        shape = [samples, *tensor.shape]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + offset)
    return 8 + len(text) + offset


def opened(folder: Path, cache: Path) -> tuple[Store, Any, Any]:
    """A store as training opens it: checked sizes, positions of the split, and labels."""
    manifest = Manifest.load(folder)
    store = Store(manifest, "never", cache)
    store.open()
    positions = manifest.split("train")
    return store, positions, store.table("labels")[positions]


def of_stores(stores: dict[int, Path], again: Path, cache: Path, rounds: int) -> list[Result]:
    """Seconds to open a store with a warm cache, and to read samples from it."""

    def opening(folder: Path) -> Candidate:
        return lambda: _seconds(lambda: opened(folder, cache))

    folders = _with_control(stores, again, "entries")
    openings = {name: opening(folder) for name, folder in folders.items()}
    result = measure(openings, rounds, unit="open", name="open")
    for name, folder in folders.items():
        result.row(name).columns["MiB"] = _python_mib(partial(opened, folder, cache))
    readings = {name: _reading(folder, cache) for name, folder in folders.items()}
    reading = measure(readings, rounds, unit="sample", name="read")
    for row in reading.rows:
        row.columns["samples / s"] = round(1 / row.median)
    reading.notes.append(f"memory of the process, without files: {_anonymous_mib():.0f} MiB")
    return [result, reading]


def _reading(folder: Path, cache: Path) -> Candidate:
    """Epochs over the same number of samples, evenly spaced in the whole store."""
    from research.compression.selection import Selection, covering
    from research.data.block_samples import BlockCrop, BlockSamples
    from research.data.splits import evenly_spaced
    from research.data.warehouse.rows import StoredRows

    store, positions, labels = opened(folder, cache)
    chosen = evenly_spaced(len(positions), READ)
    rows = StoredRows(store, positions[chosen], covering(Selection.from_settings(WINDOW, "corner")))
    samples = BlockSamples(rows, labels[chosen], BlockCrop(IMAGE, CROP), 0, random=True)
    loader = EpochLoader(samples, BATCH, seed=0, train=True)

    def epochs() -> None:
        for epoch in range(3):
            assert sum(len(batch) for batch in loader.epoch(epoch)) == READ

    return lambda: _seconds(epochs) / (3 * READ)


# -- orders ------------------------------------------------------------------------------------


def of_orders(rounds: int) -> Result:
    """Seconds for the order of an epoch, up to the first batch after nine tenths of it."""

    def candidate(samples: int) -> Candidate:
        return lambda: _seconds(lambda: order(samples)) / samples

    sizes = {samples: candidate(samples) for samples in SAMPLES}
    named = _with_control(sizes, candidate(SAMPLES[0]), "samples")
    result = measure(named, rounds, unit="sample", name="order")
    for row, samples in zip(result.rows, (SAMPLES[0], *SAMPLES), strict=True):
        row.columns["ms"] = 1000 * row.median * samples
        row.columns["MiB"] = _python_mib(partial(order, samples))
    return result


def order(samples: int) -> list[Any]:
    """The first batch of an epoch that is resumed after nine tenths of it."""
    sampler = EpochSampler(samples, BATCH, seed=0, train=True, shard=ProcessShard(1, 4))
    sampler.epoch, sampler.start = 7, len(sampler) * 9 // 10
    return next(iter(sampler))


# -- comparisons -------------------------------------------------------------------------------


def of_comparisons(folder: Path, rounds: int) -> Result:
    """Seconds a run of ``research.compare``, from folders to its tables and page."""
    for count in RUNS:
        recorded_runs(folder / str(count), count)

    def candidate(count: int) -> Candidate:
        return lambda: _seconds(lambda: comparison(folder / str(count))) / count

    sizes = {count: candidate(count) for count in RUNS}
    result = measure(
        _with_control(sizes, candidate(RUNS[0]), "runs"), rounds, unit="run", name="compare"
    )
    for row, count in zip(result.rows, (RUNS[0], *RUNS), strict=True):
        row.columns["MiB"] = _python_mib(partial(comparison, folder / str(count)))
    return result


def recorded_runs(folder: Path, count: int) -> None:
    """Folders of finished runs of four groups, as far as a comparison reads them."""
    from research.config import compose_config
    from research.tracking.files import csv_text
    from research.utils.files import to_json

    config = compose_config([]).config
    drawn = np.random.default_rng(0)
    for number in range(count):
        run = folder / f"run_{number:04d}"
        run.mkdir(parents=True)
        lr = (0.01, 0.02, 0.05, 0.1)[number % 4]
        own = {**config, "seed": number // 4, "optimizer": {**config["optimizer"], "lr": lr}}
        values = drawn.normal(0.5, 0.01, 10).tolist()
        best = values.index(max(values))
        summary = {
            "status": "FINISHED",
            "model": "network",
            "parameters": 1000,
            "epochs_done": len(values),
            "best_epoch": best + 1,
            "best_value": values[best],
            "monitor": ["val/top1", "max"],
            "total_time_sec": 10.0,
            "configuration": own,
        }
        rows = [
            {"epoch": epoch, "train/loss": 1 / epoch, "val/top1": value}
            for epoch, value in enumerate(values, 1)
        ]
        (run / "config.yaml").touch()
        (run / "overrides.yaml").write_text(f"- seed={number // 4}\n- optimizer.lr={lr}\n")
        (run / "summary.json").write_text(to_json(summary))
        (run / "epoch_metrics.csv").write_text(csv_text(list(rows[0]), rows))


def comparison(folder: Path) -> tuple[str, str]:
    """The tables and the page of ``python -m research.compare``."""
    from research.comparison import collect
    from research.comparison.page import page
    from research.comparison.tables import markdown
    from research.comparison.verdicts import compare

    runs, skipped = collect.select(collect.find_runs([folder]), "", ["FINISHED"])
    metric, mode = collect.monitored(runs)
    result = compare(runs, metric, mode, (), "", 0.95, skipped)
    return markdown(result), page(result, "Comparison", "now", [], [], folder)


# -- measures ----------------------------------------------------------------------------------


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _python_mib(work: Callable[[], object]) -> float:
    """The most memory that Python and NumPy hold during some work."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / MIB


def _anonymous_mib() -> float:
    """Memory of this process that belongs to no file."""
    about = psutil.Process().memory_info()
    return (about.rss - getattr(about, "shared", 0)) / MIB
