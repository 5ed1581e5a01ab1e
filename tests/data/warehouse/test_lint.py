from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research.data.rgbx.sources import plan_channels, read_arrays
from research.data.warehouse import lint as linting
from research.data.warehouse import pictures
from research.data.warehouse.build import build
from research.data.warehouse.lint import LintReport, lint
from research.data.warehouse.manifest import Manifest, SampleGroup
from tests.data.warehouse.conftest import (
    flip_bit,
    make_frames,
    make_images,
    plan_images,
    plan_of,
    rewrite,
    rewrite_records,
    rows_of,
)


def findings(manifest: Manifest) -> LintReport:
    report, _ = lint(Manifest.load(manifest.path))
    assert not any("\n" in line for line in [*report.errors, *report.warnings, *report.notes])
    return report


@pytest.mark.parametrize("kind", ["frame_store", "image_store"])
def test_an_intact_store_has_no_findings(kind: str, request: pytest.FixtureRequest) -> None:
    report = findings(request.getfixturevalue(kind))
    assert report.errors == []
    assert report.warnings == []


def test_the_content_is_summarized(frame_store: Manifest) -> None:
    first, train, val, boxes, sides = findings(frame_store).notes
    assert "12 samples of 3 groups, 2 classes, 3 shards" in first
    assert train == (
        "train: 8 samples of 2 groups; boxes per class: fewest 4 (ulcer), most 8 (polyp), total 12"
    )
    assert val.startswith("val: 4 samples of 1 group")
    assert boxes.startswith(
        "boxes per frame: at most 3 of 3 slots; 3 with 0, 3 with 1, 3 with 2, 3 with 3"
    )
    assert "median" in sides


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_flipped_bit_is_an_error_and_the_rest_is_still_checked(
    frame_store: Manifest, shard: int
) -> None:
    other = (shard + 1) % 3
    boxes = rows_of(frame_store, other, "boxes")
    boxes[1, 0, 0] = np.nan
    mask = rows_of(frame_store, other, "mask")
    mask[1, 0] = 1
    damaged = rewrite(frame_store, other, boxes=boxes, mask=mask)
    flip_bit(damaged.folder / damaged.shards[shard].file)
    errors = findings(damaged).errors
    assert f"shard_0000{shard}.safetensors: SHA-256 is" in errors[0]
    assert any(f"shard_0000{other}.safetensors row 1" in line for line in errors[1:])


def test_missing_shards_and_orphans_are_reported(frame_store: Manifest) -> None:
    (frame_store.folder / "shard_00001.safetensors").unlink()
    (frame_store.folder / "shard_00009.safetensors").write_bytes(b"left behind")
    report = findings(frame_store)
    assert len(report.errors) == 1
    assert "shard_00001.safetensors: No such file" in report.errors[0]
    assert len(report.warnings) == 1
    assert "shard_00009.safetensors: orphan" in report.warnings[0]


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damaged_records_are_an_error(frame_store: Manifest, how: str) -> None:
    path = frame_store.folder / "samples.jsonl"
    if how == "flipped":
        flip_bit(path)
    else:
        path.unlink()
    errors = findings(frame_store).errors
    assert len(errors) == 1
    assert str(path) in errors[0]


def _set(row: int, slot: int, box: list[float]) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        boxes, mask = (rows_of(manifest, 1, name) for name in ("boxes", "mask"))
        boxes[row, slot], mask[row, slot] = box, 1
        return rewrite(manifest, 1, boxes=boxes, mask=mask)

    return change


def _put(name: str, row: int, slot: int, value: int) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        rows = rows_of(manifest, 1, name)
        rows[row, slot] = value
        return rewrite(manifest, 1, **{name: rows})

    return change


# Row 2 of the second shard is the fourth frame of run_2: 40×40 in 32², three boxes. Row 1 is the
# third: 56×40, bars of 5 rows, two boxes. Row 4 is the second of run_3, one box.
@pytest.mark.parametrize(
    ("change", "is_error", "words"),
    [
        (_set(2, 1, [np.nan, 0.1, 0.5, 0.5]), True, "row 2 (run_2/frame_00003.jpg) box 1: a coord"),
        (_set(2, 1, [0.5, np.inf, 0.5, 0.5]), True, "a coordinate is not a number"),
        (_set(2, 1, [0.5, 0.1, 0.4, 0.5]), True, "inverted or empty"),
        (_set(2, 1, [0.5, 0.1, 0.5, 0.5]), True, "inverted or empty"),
        (_set(2, 1, [0.5, 0.1, 1.1, 0.5]), True, "exceeds the frame"),
        (_set(2, 1, [-0.1, 0.1, 0.5, 0.5]), True, "exceeds the frame"),
        (_set(1, 1, [0.2, 0.0, 0.5, 0.5]), True, "padding of the letterbox"),
        (_set(2, 1, [0.5, 0.2, 0.6, 0.8]), False, "a side under 4 px"),
        (_put("labels", 2, 0, 2), True, "its label is not a class"),
        (_put("labels", 2, 0, -1), True, "its label is not a class"),
        (_put("mask", 2, 0, 0), True, "slots are not filled from the first on"),
        (_put("mask", 2, 0, 2), True, "slots are not filled from the first on"),
        (_put("labels", 4, 2, 1), True, "an empty slot is not zero"),
    ],
)
def test_invalid_boxes_are_reported(
    frame_store: Manifest, change: Callable[[Manifest], Manifest], is_error: bool, words: str
) -> None:
    report = findings(change(frame_store))
    lines = report.errors if is_error else report.warnings
    assert any(words in line and "shard_00001.safetensors row " in line for line in lines), lines
    assert bool(report.errors) == is_error


def test_absurd_shapes_are_named(tmp_path: Path) -> None:
    found = make_frames(tmp_path / "source")
    frames = list(found.frames)
    frames[1] = replace(frames[1], boxes=((0.0, 0.5, 1.0, 0.53),), labels=(0,))
    plan = plan_of(replace(found, frames=frames))
    plan = replace(plan, encoder=replace(plan.encoder, image_size=256))
    report = findings(build(plan, tmp_path / "out", workers=1))
    assert not report.errors
    assert any("run_1/frame_00001.jpg" in line and "over 20 ×" in line for line in report.warnings)


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("how", ["file", "stored image"])
def test_duplicates_are_named(tmp_path: Path, across: bool, how: str) -> None:
    found = make_frames(tmp_path / "source")
    first, second = found.frames[1], found.frames[5 if across else 3]
    data = first.image.read_bytes()
    # A comment after the start marker: other bytes, the same picture.
    comment = b"\xff\xfe\x00\x06abcd"
    second.image.write_bytes(data if how == "file" else data[:2] + comment + data[2:])
    report = findings(build(plan_of(found), tmp_path / "out", workers=1))
    lines, others = (report.errors, report.warnings) if across else (report.warnings, report.errors)
    assert others == []
    assert len(lines) == 1
    assert f"({second.name}): same {how} as " in lines[0]
    assert f"({first.name})" in lines[0]
    assert ("which is in train, this one in val" if across else "both in train") in lines[0]


def test_duplicates_of_coefficients_are_named(tmp_path: Path) -> None:
    root, folders = make_images(tmp_path / "images")
    train, val = (folders.splits[split].files for split in ("train", "val"))
    val[0].write_bytes(train[0].read_bytes())
    report = findings(build(plan_images(root, folders), tmp_path / "out", workers=1))
    assert len(report.errors) == 1
    assert "(val/bars/000.jpg): same file as " in report.errors[0]


def test_a_group_in_two_splits_is_an_error(frame_store: Manifest) -> None:
    groups = list(frame_store.groups)
    groups[2] = replace(groups[2], name="run_2")
    lines = [
        line | {"group": "run_2"} if n >= 8 else line
        for n, line in enumerate(frame_store.records())
    ]
    rewrite_records(replace(frame_store, groups=groups), lines)
    errors = findings(frame_store).errors
    assert len(errors) == 1
    assert "group run_2 is in train and val" in errors[0]


def test_records_of_another_group_are_an_error(frame_store: Manifest) -> None:
    lines = frame_store.records()
    lines[5]["group"] = "run_1"
    rewrite_records(frame_store, lines)
    assert any("group run_1 is in train and val" in line for line in findings(frame_store).errors)


def test_classes_never_trained_on_are_reported(frame_store: Manifest) -> None:
    replace(frame_store, classes=["polyp", "ulcer", "scar"]).save()
    report = findings(frame_store)
    assert report.warnings == ["class scar: none in train"]
    groups = [SampleGroup("all", 0, 12, "val")]
    lines = [line | {"group": "all"} for line in frame_store.records()]
    rewrite_records(replace(frame_store, groups=groups), lines)
    assert any("no training samples" in line for line in findings(frame_store).errors)


def test_many_findings_of_a_kind_are_counted(tmp_path: Path) -> None:
    found = make_frames(tmp_path / "source", frames=10)
    data = found.frames[0].image.read_bytes()
    for frame in found.frames:
        frame.image.write_bytes(data)
    report = findings(build(plan_of(found), tmp_path / "out", workers=1))
    assert len(report.errors) == 10
    assert len(report.warnings) == 19
    for frame in found.frames[1:]:
        frame.image.write_bytes(data + b"\0")
    found = make_frames(tmp_path / "more", frames=40)
    for frame in found.frames:
        frame.image.write_bytes(data)
    report = findings(build(plan_of(found), tmp_path / "out", workers=1))
    assert len(report.errors) == linting.MAX_LINES + 1
    assert report.errors[-1] == "… and 20 more like it"


@pytest.mark.parametrize("kind", ["frame_store", "image_store"])
def test_pictures_show_what_is_in_it(kind: str, request: pytest.FixtureRequest) -> None:
    manifest = request.getfixturevalue(kind)
    _, samples = lint(manifest)
    drawn = pictures.draw(samples)
    expected = {"class_balance", "samples"}
    if kind == "frame_store":
        expected |= {"box_centres", "box_sizes"}
    assert set(drawn) == expected
    for picture in drawn.values():
        assert isinstance(picture, Image.Image)
        assert np.asarray(picture).std() > 1


def test_drawn_boxes_lie_where_they_are_stored(tmp_path: Path) -> None:
    found = make_frames(tmp_path / "source")
    frames = [replace(f, boxes=(), labels=()) for f in found.frames]
    frames[0] = replace(frames[0], boxes=((0.25, 0.25, 0.75, 0.75),), labels=(0,))
    Image.new("RGB", (64, 64)).save(frames[0].image)
    manifest = build(plan_of(replace(found, frames=frames)), tmp_path / "out", workers=1)
    _, samples = lint(manifest)
    cell = np.asarray(pictures._frame(samples, 0))
    rows, columns = np.nonzero(cell.sum(-1) > 60)
    side = pictures.CELL
    assert (rows.min(), rows.max()) == (side // 4, side * 3 // 4 - 1)
    assert (columns.min(), columns.max()) == (side // 4, side * 3 // 4 - 1)


def test_pictures_of_a_store_whose_shards_are_all_gone(frame_store: Manifest) -> None:
    for shard in frame_store.shards:
        (frame_store.folder / shard.file).unlink()
    report, samples = lint(frame_store)
    assert len(report.errors) == 3
    assert set(pictures.draw(samples)) == {"class_balance"}


def channel_store(root: Path, dtype: str = "uint8", **planes: Any) -> Manifest:
    """Six frames of noise [24, 32, 5]; ``planes`` names a channel and its content by frame."""
    names = ["red", "green", "blue", "thermal", "event"]
    for number in range(6):
        array = np.random.default_rng(number).integers(1, np.iinfo(dtype).max, (24, 32, 5), dtype)
        for name, plane in planes.items():
            if number in plane:
                array[..., names.index(name)] = plane[number]
        for folder in ("images", "labels"):
            (root / "set" / folder).mkdir(parents=True, exist_ok=True)
        np.save(root / f"set/images/{number}.npy", array)
        (root / f"set/labels/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    plan = plan_channels(read_arrays(root / "set", None, None, require_labels=False), 32, {})
    return build(plan, root / "out", shard_samples=4, workers=1)


FROZEN = np.arange(24 * 32).reshape(24, 32) % 200


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    ("planes", "errors", "warnings"),
    [
        ({}, [], []),
        ({"event": dict.fromkeys(range(6), 0)}, ["channel event: the same value in all"], []),
        ({"thermal": dict.fromkeys(range(6), 7)}, ["channel thermal: the same value in all"], []),
        ({"event": {2: 0}}, [], ["row 2 (images/2.npy): event is 0 in all pixels"]),
        (
            {"thermal": {3: FROZEN, 4: FROZEN, 5: FROZEN}},
            [],
            [f"row {n} (images/{n + 4}.npy): same thermal as shard_00000" for n in (0, 1)],
        ),
        (
            {"thermal": {0: FROZEN, 1: FROZEN}, "event": {0: FROZEN, 1: FROZEN}},
            [],
            ["row 1 (images/1.npy): same thermal and event as"],
        ),
    ],
)
def test_channels(
    tmp_path: Path, dtype: str, planes: Any, errors: list[str], warnings: list[str]
) -> None:
    report, samples = lint(channel_store(tmp_path, dtype, **planes))
    for found, expected in ((report.errors, errors), (report.warnings, warnings)):
        assert len(found) == len(expected)
        for line, words in zip(found, expected, strict=True):
            assert words in line
    assert pictures.draw(samples)["samples"].width > 3 * 192


def test_damage_duplicates_and_leaks_of_frames_with_channels(tmp_path: Path) -> None:
    """By the same checks as of other frames."""
    names = ("red", "green", "blue", "thermal", "event")
    copied = {name: {4: FROZEN + n, 5: FROZEN + n} for n, name in enumerate(names)}
    manifest = channel_store(tmp_path, **copied)
    boxes = rows_of(manifest, 0, "boxes")
    boxes[1, 0] = (0.4, 0.4, 0.5, 2.0)
    groups = [replace(g, split="val" if g.stop == 6 else "train") for g in manifest.groups]
    manifest = replace(rewrite(manifest, 0, boxes=boxes), groups=groups)
    manifest.save()
    report, _ = lint(manifest)
    assert any("5.npy): same file as" in line and "train" in line for line in report.errors)
    assert any("1.npy) box 0: exceeds the frame" in line for line in report.errors)
    flip_bit(manifest.folder / manifest.shards[1].file)
    assert any("SHA-256" in line for line in lint(manifest)[0].errors)
