"""Ignore regions and declared areas in a store of frames, and on the way to a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from research.data.frames.frame import Frame, FrameSet
from research.data.frames.transform import FrameAugmentation, FrameTransform
from research.data.loader import SampleKey
from research.data.warehouse.build import build
from research.data.warehouse.encoders import FrameEncoder
from research.data.warehouse.kinds import FrameSamples, true_boxes, true_labels
from research.data.warehouse.lint import lint
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.pictures import CELL, draw
from research.data.warehouse.plan import plan_frames, stamp_files, version_of
from research.data.warehouse.samples import class_counts
from research.data.warehouse.store import Store
from research.viz.colours import IGNORED_BOX, TRUE_BOX
from tests.data.warehouse.conftest import rewrite, rows_of

SPLITS = {"g0": "train", "g1": "train", "g2": "val"}
ONE, TWO = (0.125, 0.25, 0.5, 0.75), (0.5, 0.5, 1.0, 1.0)


def frames(root: Path) -> FrameSet:
    """0, 1 and 2 boxes in pictures of 16×12, whose bytes depend on no encoder."""
    root.mkdir()
    made = []
    for number, boxes in enumerate([(), (ONE,), (ONE, TWO)]):
        path = root / f"{number}.ppm"
        path.write_bytes(b"P6 16 12 255\n" + bytes([number]) * 16 * 12 * 3)
        labels = tuple(range(len(boxes)))
        made.append(Frame(path.name, path, f"g{number}", boxes, labels))
    return FrameSet(root, "coco", ["a", "b"], made, [], [], {})


def with_regions(found: FrameSet) -> FrameSet:
    """The first box of the last frame is an ignore region, and its areas are declared."""
    *rest, last = found.frames
    areas = (0.125, 32 / (16 * 12))
    return replace(found, frames=[*rest, replace(last, ignored=(True, False), areas=areas)])


def version(found: FrameSet) -> str:
    plan = plan_frames(found, FrameEncoder(32, 3), SPLITS, {})
    return version_of(plan, stamp_files(plan.samples, 1, None))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    found = with_regions(frames(tmp_path / "source"))
    return build(plan_frames(found, FrameEncoder(32, 3), SPLITS, {}), tmp_path / "out", workers=1)


def test_versions_without_regions_are_those_of_before(tmp_path: Path) -> None:
    found = frames(tmp_path / "source")
    assert version(found) == "60a9a63ca596e107"  # by the code before there were regions
    none = [replace(frame, ignored=(False,) * len(frame.boxes)) for frame in found.frames]
    assert version(replace(found, frames=none)) == version(found)
    assert FrameEncoder(32, 3).transform() == {
        "image_size": 32, "max_boxes": 3, "resize": "letterbox",
    }  # fmt: skip
    other = with_regions(found)
    assert len({version(found), version(other)}) == 2
    changed = replace(other.frames[-1], ignored=(False, True))
    assert version(replace(other, frames=[*found.frames[:-1], changed])) != version(other)
    manifest = build(plan_frames(found, FrameEncoder(32, 3), SPLITS, {}), tmp_path / "out")
    assert set(manifest.tensors) == {"images", "boxes", "mask", "labels", "sizes"}
    samples = FrameSamples(Store(manifest, cache=tmp_path), manifest.split("val"), None)
    batch = samples.__getitems__([SampleKey(0, 0)])
    assert batch.ignored is batch.areas is batch.targets.ignored is None


def test_a_store_has_them_by_slot(manifest: Manifest, tmp_path: Path) -> None:
    specs = {name: (spec.dtype, spec.shape) for name, spec in manifest.tensors.items()}
    assert specs["ignored"] == ("uint8", (3,))
    assert specs["areas"] == ("float32", (3,))
    assert rows_of(manifest, 0, "mask").tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert rows_of(manifest, 0, "ignored").tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    # Where none are declared, those of the boxes: 6×6 px.
    assert rows_of(manifest, 0, "areas").tolist() == [[0, 0, 0], [36, 0, 0], [24, 32, 0]]
    assert [record["boxes"] for record in manifest.records()] == [0, 1, 1]
    assert [record.get("ignored") for record in manifest.records()] == [None, None, 1]
    store = Store(manifest, cache=tmp_path)
    for resident in (None, store.whole):
        batch = FrameSamples(store, np.arange(3), resident).__getitems__(
            [SampleKey(0, index) for index in (2, 1)]
        )
        assert batch.mask.tolist() == [[False, True, False], [True, False, False]]
        assert batch.targets.ignored is not None
        assert batch.targets.ignored.tolist() == [[True, False, False], [False] * 3]
        assert batch.areas is not None
        assert batch.areas.tolist() == [[24, 32, 0], [36, 0, 0]]
        assert batch.labels.tolist() == [[0, 1, 0], [0, 0, 0]]
    # The baseline, the classes of a split and the statistics are those of objects.
    assert true_boxes(store, np.arange(3))[1].sum().item() == 2
    assert true_labels(store, np.arange(3)).tolist() == [0, 1]
    assert true_labels(store, np.array([2])).tolist() == [1]


def test_lint_counts_and_draws_them(manifest: Manifest) -> None:
    report, samples = lint(manifest)
    assert not report.errors
    assert "ignore regions: 1 in 1 frame" in report.notes
    assert "0 with 1, 2 with 1" not in " ".join(report.notes)
    assert {split: counts.tolist() for split, counts in class_counts(samples).items()} == {
        "train": [1, 0], "val": [0, 1],
    }  # fmt: skip
    drawn = np.asarray(draw(samples)["samples"])
    assert drawn.shape[0] > CELL
    for colour in (TRUE_BOX, IGNORED_BOX):
        assert (drawn == colour).all(-1).any()
    for name, at, value in (
        ("ignored", (0, 1), 1),
        ("areas", (1, 0), np.nan),
        ("areas", (0, 2), 4),
    ):
        rows = rows_of(manifest, 0, name)
        kept = rows[at]
        rows[at] = value
        report, _ = lint(rewrite(manifest, 0, **{name: rows}))
        assert any("slots" in line for line in report.errors), name
        rows[at] = kept
        rewrite(manifest, 0, **{name: rows})


def test_a_store_in_several_shards_resumes_with_them(tmp_path: Path) -> None:
    found = with_regions(frames(tmp_path / "source"))
    plan = plan_frames(found, FrameEncoder(32, 3), SPLITS, {})
    one, many = build(plan, tmp_path / "a"), build(plan, tmp_path / "b", shard_samples=1)
    assert one.version == many.version
    for name in ("ignored", "areas", "mask"):
        assert torch.equal(Store(one).whole(name), Store(many).whole(name))
    content = json.loads(many.path.read_text())
    assert content["tensors"]["ignored"] == {"dtype": "uint8", "shape": [3]}


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5)])
def test_augmentation_moves_regions_as_it_moves_objects(
    manifest: Manifest, tmp_path: Path, zoom: tuple[float, float]
) -> None:
    batch = FrameSamples(Store(manifest, cache=tmp_path), np.arange(3), None).__getitems__(
        [SampleKey(0, 2)] * 16
    )
    assert batch.ignored is not None
    as_objects = replace(batch, mask=batch.mask | batch.ignored, ignored=None)
    settings = {"brightness": 0.0, "contrast": 0.0, "noise": 0.0}
    transform = FrameTransform(FrameAugmentation(True, True, zoom, **settings)).train()
    found, expected = (
        transform(each, torch.Generator().manual_seed(3)) for each in (batch, as_objects)
    )
    kept = expected.mask  # of objects a quarter must remain, of regions any part
    assert torch.equal(found.boxes[kept], expected.boxes[kept])
    assert torch.equal(found.mask, expected.mask & batch.mask)
    assert (found.ignored >= (kept & batch.ignored)).all()
    assert not (found.ignored & ~batch.ignored).any()
    sides = found.boxes[..., 2:] - found.boxes[..., :2]
    assert torch.equal(found.ignored, batch.ignored & (sides.prod(-1) > 0))
    assert not found.boxes[~(found.mask | found.ignored)].any()
    assert zoom[0] < 2 or not found.ignored.all()


def test_pictures_of_regions_alone(tmp_path: Path) -> None:
    from research.viz.boxes import draw_ignored

    cell = np.asarray(draw_ignored(Image.new("RGB", (32, 32)), [[4, 8, 28, 30], [-3, 0, 2, 99]]))
    grey = (cell == IGNORED_BOX).all(-1)
    assert grey[8, 4:28].all()
    assert grey[29, 4:28].all()
    assert grey[8:30, 4].all()
    assert grey[8:30, 27].all()
    assert grey[:, 0:2].all()
    assert 0.05 < grey[9:29, 5:27].mean() < 0.15  # diagonals
    assert not grey[:8, 2:].any()
