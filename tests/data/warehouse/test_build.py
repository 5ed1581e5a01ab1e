from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from research.data.warehouse import build as building
from research.data.warehouse import shards
from research.data.warehouse.build import build
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.plan import BuildPlan, stamp_files, version_of
from research.data.warehouse.store import Store
from tests.conftest import ROOT, Update, user_error
from tests.data.warehouse.conftest import (
    content,
    flip_bit,
    make_frames,
    make_images,
    plan_images,
    plan_of,
)


@pytest.fixture
def plan(tmp_path: Path) -> BuildPlan:
    """Twelve frames in three groups."""
    return plan_of(make_frames(tmp_path / "source"))


def write(plan: BuildPlan, out: Path, **changes: Any) -> Manifest:
    return build(plan, out, **{"shard_samples": 5, "workers": 1, **changes})


def test_every_sample_is_at_its_position(plan: BuildPlan, tmp_path: Path) -> None:
    manifest = write(plan, tmp_path / "out")
    assert [shard.samples for shard in manifest.shards] == [5, 5, 2]
    assert [(g.name, g.start, g.stop, g.split) for g in manifest.groups] == [
        ("run_1", 0, 4, "train"),
        ("run_2", 4, 8, "val"),
        ("run_3", 8, 12, "train"),
    ]
    store, records = Store(manifest, cache=tmp_path / "cache"), manifest.records()
    for position, sample in enumerate(plan.samples):
        for name, expected in plan.encoder.encode(sample).arrays.items():
            np.testing.assert_array_equal(store.rows(name, position), expected)
        assert records[position]["name"] == sample.name
        assert records[position]["group"] == sample.group
        assert records[position]["boxes"] == len(sample.target["boxes"])
    assert manifest.runs["run_1"] == {
        "total": 4,
        "non_empty": 3,
        "empty": 1,
        "missing_image": 0,
        "missing_file": 0,
        "invalid": 0,
    }


def test_the_number_of_processes_changes_no_byte(
    plan: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = write(plan, tmp_path / "a")
    monkeypatch.setattr(shards, "MIN_PARALLEL_SECONDS", 0.0)
    together = write(plan, tmp_path / "b", workers=2)
    assert content(alone.folder) == content(together.folder)
    assert alone.version == together.version


def test_the_size_of_shards_changes_no_row(plan: BuildPlan, tmp_path: Path) -> None:
    stores = [
        Store(write(plan, tmp_path / f"{size}", shard_samples=size), cache=tmp_path / "cache")
        for size in (1, 5, 12, 100)
    ]
    assert [len(store.manifest.shards) for store in stores] == [12, 3, 1, 1]
    assert len({store.manifest.version for store in stores}) == 1
    for name in stores[0].manifest.tensors:
        for store in stores[1:]:
            np.testing.assert_array_equal(store.whole(name), stores[0].whole(name))


def test_progress_is_reported(plan: BuildPlan, tmp_path: Path, updates: list[Update]) -> None:
    write(plan, tmp_path / "out")
    storing = "storing frames"
    shards = [
        [
            *((f"shard_0000{number}", done, size) for done in range(1, size + 1)),
            (storing, total, 12),
        ]
        for number, (size, total) in enumerate(((5, 5), (5, 10), (2, 12)))
    ]
    hashed = [("hashing files", done, 12) for done in range(1, 13)]
    assert updates == [*hashed, *shards[0], *shards[1], *shards[2]]


def test_unreadable_samples_are_skipped_and_listed(plan: BuildPlan, tmp_path: Path) -> None:
    cut, junk = plan.samples[1], plan.samples[6]
    cut.file.write_bytes(cut.file.read_bytes()[:400])
    junk.file.write_bytes(b"no image")
    manifest = write(plan, tmp_path / "out")
    assert manifest.damage == {"not_an_image": 1, "truncated": 1}
    assert manifest.left_out == {cut.name: "truncated", junk.name: "not_an_image"}
    assert manifest.samples == 10
    assert [shard.samples for shard in manifest.shards] == [4, 4, 2]
    assert [(g.start, g.stop) for g in manifest.groups] == [(0, 3), (3, 6), (6, 10)]
    assert manifest.groups[0].report == {"left_out/truncated": 1}
    readable = [sample for sample in plan.samples if sample not in (cut, junk)]
    assert [record["name"] for record in manifest.records()] == [sample.name for sample in readable]
    store = Store(manifest, cache=tmp_path / "cache")
    for position, sample in enumerate(readable):
        expected = plan.encoder.encode(sample).arrays["images"]
        np.testing.assert_array_equal(store.rows("images", position), expected)


def test_a_shard_without_a_readable_sample_is_not_written(plan: BuildPlan, tmp_path: Path) -> None:
    for sample in plan.samples[5:8]:
        sample.file.write_bytes(b"")
    manifest = write(plan, tmp_path / "out", shard_samples=3)
    assert [shard.samples for shard in manifest.shards] == [3, 2, 1, 3]
    for sample in plan.samples[4:8]:
        sample.file.write_bytes(b"")
    with user_error("SOURCE", "split val"):
        write(plan, tmp_path / "other", shard_samples=4)


def test_fallbacks_are_counted_by_group(tmp_path: Path) -> None:
    root, folders = make_images(tmp_path / "images")
    for file in folders.splits["val"].files[:2]:
        Image.open(file).convert("CMYK").save(file)
    manifest = write(plan_images(root, folders), tmp_path / "out")
    assert {group.name: group.report for group in manifest.groups} == {
        "train": {},
        "val": {"fallback/cmyk": 2},
    }


def test_a_file_that_changes_meanwhile_is_reported(
    plan: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_change(*args: Any) -> Any:
        stamps = stamp_files(*args)
        plan.samples[8].file.write_bytes(b"another")
        return stamps

    monkeypatch.setattr(building, "stamp_files", then_change)
    with user_error("SOURCE", "run_3/frame_00000.jpg", "changed"):
        write(plan, tmp_path / "out")
    monkeypatch.undo()
    assert write(plan, tmp_path / "out").damage == {"not_an_image": 1}


def test_a_file_that_is_gone_is_reported(plan: BuildPlan, tmp_path: Path) -> None:
    plan.samples[2].file.unlink()
    with user_error("SOURCE", "frame_00002.jpg: No such file"):
        write(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["save_file", "fsync", "manifest"])
def test_a_full_disk_is_one_line_and_costs_nothing_finished(
    plan: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    out = tmp_path / "out"
    previous = write(replace(plan, classes=["other", "names"]), out)
    calls = []

    def fails_the_second_time(original: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise error
            return original(*args)

        return call

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if broken == "save_file":
        text = "Error while serializing: I/O error: No space left on device (os error 28)"
        call = fails_the_second_time(shards.save_file, SafetensorError(text))
        monkeypatch.setattr(shards, "save_file", call)
    elif broken == "fsync":
        monkeypatch.setattr(os, "fsync", fails_the_second_time(os.fsync, full))
    else:
        monkeypatch.setattr(Manifest, "save", lambda manifest: (_ for _ in ()).throw(full))
    with user_error("OUT", f"{out}: No space left on device"):
        write(plan, out)
    assert Manifest.load(out) == previous
    Store(previous, "always", tmp_path / "cache").open()
    half_written = [path for path in out.rglob(".*") if path.is_file() and path.name != ".lock"]
    assert not half_written
    monkeypatch.undo()
    expected = content(write(plan, tmp_path / "undisturbed").folder)
    assert content(write(plan, out).folder) == expected


def test_what_is_finished_is_not_written_again(
    plan: BuildPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original, written = shards.save_file, []

    def stops_at_the_third(tensors: Any, path: Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        original(tensors, path)

    monkeypatch.setattr(shards, "save_file", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(plan, tmp_path / "out")
    monkeypatch.setattr(shards, "save_file", lambda *args: (written.append(0), original(*args)))
    with caplog.at_level(logging.INFO):
        write(plan, tmp_path / "out")
    assert "resuming: 2 of 3 shards are finished" in caplog.text
    assert len(written) == 3


def test_an_intact_version_is_not_written_again(
    plan: BuildPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = write(plan, tmp_path / "out")
    monkeypatch.setattr(shards, "save_file", None)
    with caplog.at_level(logging.INFO):
        assert write(plan, tmp_path / "out", shard_samples=3) == first
    assert "is already prepared and intact" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EPERM])
def test_an_intact_version_whose_time_cannot_be_set_is_used(
    plan: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    first = write(plan, tmp_path / "out")

    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", refuse)
        assert write(plan, tmp_path / "out").version == first.version


@pytest.mark.parametrize("file", ["shard_00001.safetensors", "samples.jsonl", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "missing", "cut"])
def test_a_damaged_version_is_written_again(
    plan: BuildPlan, tmp_path: Path, file: str, how: str
) -> None:
    out = tmp_path / "out"
    expected = content(write(plan, out).folder)
    path = write(plan, out).folder / file
    if how == "flipped":
        flip_bit(path, 0.3)
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    assert content(write(plan, out).folder) == expected
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        f"v{Manifest.load(out).version}",
    ]


def test_leftovers_of_killed_builds_go(plan: BuildPlan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = content(write(plan, tmp_path / "undisturbed").folder)
    version = version_of(plan, stamp_files(plan.samples, 1, None))
    for folder in ("v0123-5", f"v{version}-7", f"v{version}-5"):
        store = out / f".building-{folder}" / "store"
        store.mkdir(parents=True)
        (store / ".shard_00000.safetensors.abcd").write_bytes(b"half a sh")
        (store.parent / ".shard_00000.json.abcd").write_bytes(b"{")
        (store.parent / "shard_00001.json").write_bytes(b"{")
        (store / "shard_00001.safetensors").write_bytes(b"of something else")
    manifest = write(plan, out)
    assert content(manifest.folder) == expected
    assert sorted(path.name for path in out.iterdir()) == [".lock", manifest.folder.name]


def test_versions_stand_side_by_side(plan: BuildPlan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write(plan, out)
    before = content(first.folder)
    second = write(replace(plan, splits={**plan.splits, "run_3": "test"}), out)
    assert content(first.folder) == before
    assert second.folder.parent == first.folder.parent != second.folder
    assert Manifest.load(out) == second
    # Prepared again, the first is what a folder of versions stands for: nothing is written to it.
    assert write(plan, out) == Manifest.load(out) == first
    assert content(first.folder) == before


@pytest.mark.parametrize("obstacle", ["file", "unwritable"])
def test_a_place_where_nothing_can_be_written_is_reported(
    plan: BuildPlan, tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if obstacle == "file":
        out.write_text("")
        reason = "File exists"
    else:
        denied = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(shards, "write_atomic", lambda *_: (_ for _ in ()).throw(denied))
        reason = "Permission denied"
    with user_error("OUT", f"{out}: {reason}"):
        write(plan, out)


BUILDER = """
import logging, sys
from pathlib import Path
from research.data.warehouse import shards
from tests.data.warehouse.conftest import plan_of
from tests.data.warehouse.test_build import frames_again, write

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
root, me = Path(sys.argv[1]), sys.argv[2]
plan = plan_of(frames_again(root / "source"))
(root / me).touch()
while len(list(root.glob("builder_*"))) < 2:
    pass
print(write(plan, root / "out").version)
"""


def frames_again(root: Path) -> Any:
    """The frames of ``make_frames``, created by another process."""
    with tempfile.TemporaryDirectory() as scratch:
        twin = make_frames(Path(scratch) / "twin")
    frames = [replace(frame, image=root / frame.name) for frame in twin.frames]
    return replace(twin, root=root, frames=frames)


def test_two_builders_at_once_share_the_work(plan: BuildPlan, tmp_path: Path) -> None:
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path), f"builder_{number}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    outcomes = [builder.communicate(timeout=300) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outcomes
    output = "".join(out for out, _ in outcomes)
    assert output.count("is already prepared and intact") == 1
    manifest = Manifest.load(tmp_path / "out")
    assert output.count(f"{manifest.version}\n") == 2
    Store(manifest, "always", tmp_path / "cache").open()
    assert content(manifest.folder) == content(write(plan, tmp_path / "undisturbed").folder)


def test_records_hold_no_place_and_no_time(plan: BuildPlan, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    os.rename(tmp_path / "source", moved)
    samples = [replace(sample, file=moved / sample.name) for sample in plan.samples]
    for sample in samples:
        os.utime(sample.file, (1, 1))
    first = write(replace(plan, samples=samples), tmp_path / "a")
    records = first.records()
    assert set(records[0]) == {"name", "group", "sha256", "boxes"}
    assert json.dumps(records).count(str(tmp_path)) == 0
