"""Stores, orders and comparisons of two sizes: memory and work per unit do not grow.

And that the benchmark of them measures what it says, at sizes of a test.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.benchmarks import scale
from research.benchmarks.options import BenchmarkOptions
from research.data.loader import EpochSampler, ProcessShard
from research.data.warehouse.store import Store
from research.utils import documents

COUNTS = 10_000, 40_000


def most_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python and NumPy hold during some work."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def per_unit(work: Callable[[int], object]) -> float:
    """Bytes for each unit more."""
    small, large = COUNTS
    work(small)  # imports
    more = most_bytes(lambda: work(large)) - most_bytes(lambda: work(small))
    return more / (large - small)


def test_an_open_store_holds_no_object_for_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    for count in COUNTS:
        store, _, labels = scale.opened(scale.sparse_store(tmp_path / str(count), count), cache)
        assert len(store) == count
        assert len(labels) == count - count // 20
    # A position and a label are 8 bytes each, and twice for a moment; a dict would be 200.
    assert per_unit(lambda count: scale.opened(tmp_path / str(count), cache)) < 60

    def never(self: Store, number: int) -> Any:
        raise AssertionError("opened again, a store reads from no shard")

    monkeypatch.setattr(Store, "_map_shard", never)
    scale.opened(tmp_path / str(COUNTS[0]), cache)


def test_tables_are_the_rows(tmp_path: Path) -> None:
    store, _, _ = scale.opened(scale.sparse_store(tmp_path / "store", 600), tmp_path / "cache")
    values = np.random.default_rng(0).integers(0, 1000, 600)
    for shard, part in zip(store.manifest.shards, np.split(values, [256, 512]), strict=True):
        path = store.manifest.folder / shard.file
        content = path.read_bytes()
        path.write_bytes(content[: -8 * len(part)] + part.tobytes())
    anew = Store(store.manifest, "never", tmp_path / "other")
    assert torch.equal(anew.table("labels"), torch.from_numpy(values))
    assert torch.equal(anew.table("labels"), anew.whole("labels"))
    positions = np.random.default_rng(1).permutation(600)[:100]
    chosen = anew.column("labels", positions)
    assert torch.equal(chosen, anew.gather("labels", positions.tolist()))
    assert torch.equal(chosen, torch.from_numpy(values[positions]))
    assert anew.column("labels", positions[:0]).shape == (0,)


@given(samples=st.integers(0, 1000), processes=st.integers(1, 9), data=st.data())
def test_the_size_of_a_part_is_known_without_it(
    samples: int, processes: int, data: st.DataObject
) -> None:
    shard = ProcessShard(data.draw(st.integers(0, processes - 1)), processes)
    assert shard.size(samples) == len(shard.part(np.arange(samples)))


def test_an_order_is_one_shuffle_of_few_bytes() -> None:
    samples, batch, start = 1000, 8, 17
    order = np.arange(samples)
    np.random.default_rng((3, 5)).shuffle(order)
    sampler = EpochSampler(samples, batch, seed=3, train=True, shard=ProcessShard())
    sampler.epoch, sampler.start = 5, start
    drawn = [key.index for keys in sampler for key in keys]
    assert drawn == order[start * batch : samples // batch * batch].tolist()
    assert per_unit(scale.order) < 5


def test_a_comparison_reads_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()
    load = documents.load

    def counted(path: Path, *more: Any) -> Any:
        read[path] += 1
        return load(path, *more)

    monkeypatch.setattr(documents, "load", counted)
    for count in (8, 24):
        read.clear()
        scale.recorded_runs(tmp_path / str(count), count)
        tables, page = scale.comparison(tmp_path / str(count))
        assert set(read.values()) == {1}
        assert len(read) == 3 * count  # a summary, overrides and an environment each
        assert tables.count("\n| ") >= 4
        assert "<html" in page


def test_the_benchmark_has_a_control_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "ENTRIES", (300, 600))
    monkeypatch.setattr(scale, "READ", 256)
    monkeypatch.setattr(scale, "SAMPLES", (1024, 2048))
    monkeypatch.setattr(scale, "RUNS", (8, 12))
    results = scale.run(BenchmarkOptions(rounds=1), [], [])
    assert [result.name for result in results] == ["open", "read", "order", "compare"]
    for result in results:
        first, control, larger = result.rows
        assert control.name == f"{first.name} (control)"
        assert larger.median > 0
