from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.warehouse.manifest import MANIFEST, SCHEMA, SPLITS, Manifest, SampleGroup
from tests.conftest import user_error
from tests.data.warehouse.conftest import rewrite_records

Content = dict[str, Any]


def test_what_was_saved_is_loaded(frame_store: Manifest, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    replace(frame_store, folder=moved).save()
    loaded = Manifest.load(moved / MANIFEST)
    assert replace(loaded, folder=frame_store.folder) == frame_store
    assert Manifest.load(frame_store.folder) == frame_store


def test_the_file_has_no_absolute_path_and_no_time(frame_store: Manifest, tmp_path: Path) -> None:
    for file in frame_store.folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
    assert not any(
        "time" in key or "date" in key for key in json.loads(frame_store.path.read_text())
    )


def test_splits_are_ranges_of_positions(frame_store: Manifest) -> None:
    assert frame_store.splits == {"train": [(0, 4), (8, 12)], "val": [(4, 8)]}
    assert frame_store.split("val").tolist() == [4, 5, 6, 7]
    with user_error("split", "split=test", "train, val"):
        frame_store.split("test")


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(SPLITS)), min_size=1))
def test_the_splits_partition_all_positions(sizes: list[tuple[int, str]]) -> None:
    groups, start = [], 0
    for number, (size, split) in enumerate(sizes):
        groups.append(SampleGroup(f"g{number}", start, start + size, split))
        start += size
    manifest = Manifest(
        Path(), SCHEMA, "frames", "", {}, [], start, {}, [], groups, {}, {}, {}, {}, ""
    )
    for name in manifest.splits:
        owners = [group.split for group in groups for _ in range(group.start, group.stop)]
        assert manifest.split(name).tolist() == [i for i, o in enumerate(owners) if o == name]
        ranges = manifest.splits[name]
        assert all(stop < after for (_, stop), (after, _) in itertools.pairwise(ranges))
    assert sum(len(manifest.split(name)) for name in manifest.splits) == start


def _shard(key: str, value: Any) -> Callable[[Content], None]:
    return lambda content: content["shards"][0].update({key: value})


def _group(key: str, value: Any) -> Callable[[Content], None]:
    return lambda content: content["groups"][1].update({key: value})


@pytest.mark.parametrize(
    ("corrupt", "words"),
    [
        (lambda c: c.update(schema=SCHEMA + 1), "schema 2"),
        (lambda c: c.pop("schema"), "not the manifest of a warehouse"),
        (lambda c: c.pop("classes"), "the file has no 'classes'"),
        (lambda c: c.update(shards=7), "shards is 7"),
        (lambda c: c["shards"][0].pop("sha256"), "shards[0] has no 'sha256'"),
        (_shard("file", "../v0/shard_00000.safetensors"), "is outside the store"),
        (_shard("file", "/etc/passwd"), "is outside the store"),
        (_shard("file", "a/b.safetensors"), "is outside the store"),
        (_shard("file", ".."), "is outside the store"),
        (_shard("file", "C:\\x.safetensors"), "is outside the store"),
        (_shard("file", ""), "is outside the store"),
        (_shard("samples", 6), "samples is 12, the shards hold 13"),
        (_shard("samples", "5"), "shards[0].samples is '5'"),
        (_shard("bytes", -1), "shards[0].bytes is -1: Input should be greater than 0"),
        (lambda c: c.update(samples=13), "samples is 13, the shards hold 12"),
        (_group("start", 5), "group run_2: starts at 5, expected 4"),
        (_group("stop", 3), "group run_2: starts at 4"),
        (_group("split", "hold"), "groups[1].split is 'hold': String should match"),
        (lambda c: c["groups"].pop(), "the groups hold 8 samples, the shards 12"),
        (lambda c: c["tensors"]["boxes"].update(shape=[2**20, 2**20]), "tensor boxes is [1048576"),
        (lambda c: c.update(kind="pictures"), "kind is 'pictures', expected frames"),
        (lambda c: c["tensors"]["mask"].update(shape=[3, 3]), "tensor mask is [3, 3], its"),
        (lambda c: c["tensors"]["sizes"].update(shape=[1]), "[1], its transform gives [2]"),
        (lambda c: c["transform"].update(image_size=40), "its transform gives [40, 40, 3]"),
        (lambda c: c.update(classes="a"), "classes is 'a'"),
        (lambda c: c.update(classes=[1]), "classes[0] is 1"),
        (lambda c: c.update(more=1), "more is not known"),
        (lambda c: c["shards"][0].update(more=1), "shards[0].more is not known"),
        (_shard("samples", True), "shards[0].samples is True"),
        (lambda c: c.update(damage={"empty": "1"}), "damage.empty is '1'"),
        (lambda c: c.update(left_out={"a": 1}), "left_out.a is 1"),
        (lambda c: c["transform"].pop("max_boxes"), "transform has no max_boxes"),
        (lambda c: c.pop("transform"), "transform has no image_size"),
        (lambda c: c["tensors"]["boxes"].update(dtype="object"), "tensors.boxes.dtype is 'object'"),
        (lambda c: c["tensors"]["boxes"].update(shape=[0]), "tensors.boxes.shape[0] is 0"),
    ],
)
def test_what_cannot_be_trusted_is_reported_in_a_line(
    frame_store: Manifest, corrupt: Callable[[Content], Any], words: str
) -> None:
    content = json.loads(frame_store.path.read_text())
    corrupt(content)
    frame_store.path.write_text(json.dumps(content))
    with user_error("manifest", frame_store.path, words):
        Manifest.load(frame_store.path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0", '{"schema": 1'])
def test_a_damaged_file_is_reported_in_a_line(frame_store: Manifest, text: str) -> None:
    frame_store.path.write_text(text)
    with user_error("manifest", "manifest.json", "prepare it again"):
        Manifest.load(frame_store.folder)


@pytest.mark.parametrize("lines", [0, 11, 13])
def test_records_that_do_not_fit_are_reported(frame_store: Manifest, lines: int) -> None:
    path = frame_store.folder / "samples.jsonl"
    text = path.read_text().splitlines(keepends=True)
    records = frame_store.records()
    assert len(records) == 12
    path.write_text("".join((text * 2)[:lines]))
    with user_error("manifest", "samples.jsonl: damaged (SHA-256)"):
        frame_store.records()
    forged = rewrite_records(frame_store, (records * 2)[:lines])
    with user_error("manifest", f"{lines} lines for 12 samples"):
        forged.records()
    path.unlink()
    with user_error("manifest", "samples.jsonl: cannot be read (No such file"):
        frame_store.records()


@pytest.mark.parametrize("name", ["manifest.json", "samples.jsonl"])
def test_files_that_have_no_end_are_not_read(frame_store: Manifest, name: str) -> None:
    """A device would fill the memory, a pipe would block."""

    def read() -> None:
        (Manifest.load(frame_store.folder) if name == "manifest.json" else frame_store).records()

    path = frame_store.folder / name
    path.unlink()
    path.symlink_to("/dev/zero")
    with user_error("manifest", "not a regular" if name == "samples.jsonl" else "no warehouse"):
        read()
    path.unlink()
    os.mkfifo(path)
    with user_error("manifest"):
        read()
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**33)
    with user_error("manifest", name, "8,589,934,592 bytes"):
        read()


def test_of_several_versions_the_newest_is_taken(frame_store: Manifest) -> None:
    out = frame_store.folder.parent
    assert Manifest.load(out).version == frame_store.version
    other = out / "v1"
    other.mkdir()
    replace(frame_store, folder=other, version="1").save()
    later = frame_store.path.stat().st_mtime_ns + 10**9
    os.utime(other / MANIFEST, ns=(later, later))
    assert Manifest.load(out).version == "1"
    os.utime(frame_store.path, ns=(later, later))
    with user_error("manifest", "several versions", other / MANIFEST):
        Manifest.load(out)


def test_what_is_no_warehouse_is_reported(frame_store: Manifest, tmp_path: Path) -> None:
    with user_error("manifest", "nowhere: no warehouse"):
        Manifest.load(tmp_path / "nowhere")
    growing = tmp_path / "growing"
    (growing / ".building-v1-256").mkdir(parents=True)
    os.rename(frame_store.folder, growing / ".building-v1-256" / "store")
    with user_error("manifest", growing, "unfinished"):
        Manifest.load(growing)


def test_positions_are_of_a_type_that_indexes(frame_store: Manifest) -> None:
    assert frame_store.split("train").dtype == np.int64
