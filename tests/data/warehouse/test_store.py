from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from torch.utils.data import DataLoader

from research.data.warehouse.manifest import Manifest
from research.data.warehouse.store import Store
from tests.conftest import ROOT, settle, user_error
from tests.data.warehouse.conftest import flip_bit, rewrite, rows_of

Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def written(manifest: Manifest) -> Tensors:
    """All rows in order, read with safetensors."""
    parts = [load_file(manifest.folder / shard.file) for shard in manifest.shards]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("kind", ["frame_store", "image_store"])
def test_any_access_gives_what_was_written(
    kind: str, request: pytest.FixtureRequest, cache: Path
) -> None:
    manifest = request.getfixturevalue(kind)
    store, expected = Store(manifest, cache=cache), written(manifest)
    assert len(store) == manifest.samples
    assert set(expected) == set(manifest.tensors)
    order = np.random.default_rng(0).integers(0, len(store), 60).tolist()
    for name, rows in expected.items():
        for index in order:
            np.testing.assert_array_equal(store.rows(name, index), rows[index])
        gathered = store.gather(name, order)
        assert gathered.dtype == torch.from_numpy(rows).dtype
        np.testing.assert_array_equal(gathered.numpy(), rows[order])
        np.testing.assert_array_equal(store.whole(name).numpy(), rows)
        assert store.gather(name, []).shape == (0, *rows.shape[1:])


def test_positions_outside_are_refused(frame_store: Manifest, cache: Path) -> None:
    store = Store(frame_store, cache=cache)
    for index in (-1, -12, 12, 100):
        with pytest.raises(IndexError):
            store.rows("images", index)
        with pytest.raises(IndexError):
            store.gather("images", [0, index])


def test_rows_are_views_of_the_mapped_file(frame_store: Manifest, cache: Path) -> None:
    store = Store(frame_store, cache=cache)
    first, again = store.rows("images", 3), store.rows("images", 3)
    assert np.shares_memory(first, again)
    assert not first.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0
    address = first.__array_interface__["data"][0]
    mapped = [
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if frame_store.shards[0].file in line
    ]
    ranges = [[int(edge, 16) for edge in line.split()[0].split("-")] for line in mapped]
    assert any(start <= address < stop for start, stop in ranges)


def test_batches_are_copies(frame_store: Manifest, cache: Path) -> None:
    store = Store(frame_store, cache=cache)
    before = store.rows("images", 0).copy()
    store.gather("images", [0]).zero_()
    store.whole("images").zero_()
    np.testing.assert_array_equal(store.rows("images", 0), before)


def test_a_shard_is_mapped_when_it_is_first_read(frame_store: Manifest, cache: Path) -> None:
    store = Store(frame_store, cache=cache)
    store.open()
    assert store._tensors == [None, None, None]
    store.rows("labels", 6)
    assert [tensors is None for tensors in store._tensors] == [True, False, True]


def test_mappings_are_not_pickled(frame_store: Manifest, cache: Path) -> None:
    store = Store(frame_store, cache=cache)
    store.rows("images", 0)
    sent = pickle.dumps(store)
    assert len(sent) < 10_000
    arrived = pickle.loads(sent)
    assert arrived._tensors == [None, None, None]
    assert arrived.verified  # or every worker would read the whole store
    np.testing.assert_array_equal(arrived.rows("images", 7), store.rows("images", 7))


@dataclass
class Rows:
    """What a loader reads."""

    store: Store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return os.getpid(), self.store.gather("images", [index])[0]


@pytest.mark.parametrize(("method", "opened"), [("fork", True), ("fork", False), ("spawn", True)])
def test_loader_processes_read_it(
    frame_store: Manifest, cache: Path, method: str, opened: bool
) -> None:
    store = Store(frame_store, cache=cache)
    if opened:
        store.rows("images", 0)
    loader = DataLoader(Rows(store), batch_size=None, num_workers=1, multiprocessing_context=method)
    read = list(loader)
    assert {process for process, _ in read}.isdisjoint({os.getpid()})
    expected = written(frame_store)["images"]
    np.testing.assert_array_equal(torch.stack([rows for _, rows in read]).numpy(), expected)


@pytest.mark.parametrize("shard", [0, 1, 2])
@pytest.mark.parametrize("at", [0.0, 0.02, 0.5, 0.999])
def test_a_flipped_bit_in_any_shard_is_found_and_named(
    frame_store: Manifest, cache: Path, shard: int, at: float
) -> None:
    entry = frame_store.shards[shard]
    path = frame_store.folder / entry.file
    flip_bit(path, at)
    for verify in ("always", "once"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with user_error("manifest", path, entry.sha256, digest, "prepare it again"):
            Store(frame_store, verify, cache).rows("labels", 0)


def test_once_looks_again_only_when_the_file_changed(frame_store: Manifest, cache: Path) -> None:
    path = frame_store.folder / frame_store.shards[1].file
    Store(frame_store, "once", cache).open()
    stat = path.stat()
    flip_bit(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for verify in ("always", "once"):  # size and date are as they were
        with user_error("manifest", path.name):
            Store(frame_store, verify, cache).open()
    Store(frame_store, "never", cache).open()


def test_once_reads_nothing_the_second_time(
    frame_store: Manifest, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = hashlib.file_digest

    def watched(file: Any, name: str) -> Any:
        read.append(Path(file.name))
        return original(file, name)

    monkeypatch.setattr("hashlib.file_digest", watched)
    settle()
    store = Store(frame_store, "once", cache)
    store.open()
    store.open()
    Store(frame_store, "once", cache).open()
    Store(frame_store, "never", cache).open()
    assert len(read) == 3
    Store(frame_store, "always", cache).open()
    assert len(read) == 6
    next((cache / "verified").glob("*.json")).write_text("{")  # damaged: verified again
    Store(frame_store, "once", cache).open()
    assert len(read) == 9


@pytest.mark.parametrize("verify", ["always", "once", "never"])
def test_a_missing_or_cut_shard_is_named(frame_store: Manifest, cache: Path, verify: str) -> None:
    path = frame_store.folder / frame_store.shards[2].file
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with user_error("manifest", path.name, f"{len(data) - 1} bytes"):
        Store(frame_store, verify, cache).open()
    path.unlink()
    with user_error("manifest", path.name, "No such file"):
        Store(frame_store, verify, cache).open()


def test_a_shard_of_other_tensors_is_named(frame_store: Manifest, cache: Path) -> None:
    boxes = rows_of(frame_store, 0, "boxes")
    changed = rewrite(frame_store, 0, boxes=boxes[:, :2].copy())
    with user_error("manifest", "shard_00000", "boxes is float32 [5, 2, 4]"):
        Store(changed, cache=cache).rows("images", 0)
    path = changed.folder / changed.shards[0].file
    path.write_bytes(b"\xff" * path.stat().st_size)
    with user_error("manifest", "shard_00000.safetensors: cannot be opened"):
        Store(changed, "never", cache).rows("images", 0)


def test_a_type_that_numpy_does_not_have_is_reported(frame_store: Manifest, tmp_path: Path) -> None:
    shard = frame_store.folder / frame_store.shards[0].file
    tensors = load_torch(shard)
    save_torch(tensors | {"mask": tensors["mask"].to(torch.float8_e4m3fn)}, shard)
    with user_error("manifest", f"{shard.name}: cannot be opened", "Float8"):
        Store(frame_store, "never", tmp_path).rows("mask", 0)


MEMORY = """
import sys
from pathlib import Path
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.store import Store

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

store = Store(Manifest.load(Path(sys.argv[1])), "always", Path(sys.argv[2]))
def read(start, stop):  # a sum in torch would widen the bytes eightfold
    for first in range(start, stop, 8):
        store.gather("images", range(first, first + 8))
        store.rows("images", first).max()
    return anonymous()

before = read(0, 32)  # the allocator keeps a batch or two
print(read(32, 128) - before)
"""


def test_memory_does_not_grow_with_the_store(frame_store: Manifest, tmp_path: Path) -> None:
    """Reading 18 MiB of rows leaves less than 2 MiB of memory of its own behind."""
    side, samples = 256, 128
    folder = tmp_path / "large"
    folder.mkdir()
    rng = np.random.default_rng(0)
    known = json.loads(frame_store.path.read_text())
    known["tensors"]["images"]["shape"] = [side, side, 3]
    known["transform"]["image_size"] = side
    zeros = {
        name: np.zeros((16, *tensor["shape"]), tensor["dtype"])
        for name, tensor in known["tensors"].items()
    }
    shards = []
    for number in range(samples // 16):
        path = folder / f"shard_{number}.safetensors"
        images = rng.integers(0, 256, (16, side, side, 3), dtype=np.uint8)
        save_file(zeros | {"images": images}, path)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"file": path.name, "samples": 16, "bytes": len(data), "sha256": digest})
    content = {
        "shards": shards,
        "samples": samples,
        "groups": [{"name": "a", "start": 0, "stop": samples, "split": "train", "report": {}}],
    }
    (folder / "manifest.json").write_text(json.dumps(known | content))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2048
