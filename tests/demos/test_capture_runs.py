from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.data.frames.annotations import read_frames
from research.data.frames.frame import Frame, FrameSet
from research.demos.capture_runs import RECORD, SIZES, CaptureDemo, _Bump, _Wall
from tests.conftest import Update, at_update, user_error


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> FrameSet:
    """Twelve runs of 20 frames, shared by the tests that only read."""
    root = tmp_path_factory.mktemp("demo") / "captures"
    return read_frames(CaptureDemo(str(root), 12, 20, seed=3).render())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return CaptureDemo(str(tmp_path / "small"), 2, 5, seed=0).render()


def pixels(frame: Frame) -> np.ndarray:
    return np.asarray(Image.open(frame.image)).astype(np.float64)


def covered(frame: Frame) -> np.ndarray:
    """[H, W] bool: the pixels in a box."""
    with Image.open(frame.image) as image:
        width, height = image.size
    mask = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in np.array(frame.boxes).reshape(-1, 4) * [width, height, width, height]:
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return mask


def test_the_runs_are_valid_and_of_mixed_sizes(captures: FrameSet) -> None:
    assert captures.problems == []
    assert len(captures.frames) == 240
    assert [run.total for run in captures.runs] == [20] * 12
    sizes = {}
    for frame in captures.frames:
        with Image.open(frame.image) as image:
            assert image.format == "JPEG"
            sizes.setdefault(frame.group, set()).add(image.size)
    assert all(len(group) == 1 for group in sizes.values())
    assert set.union(*sizes.values()) == set(SIZES)


def test_a_fifth_is_empty_and_some_frames_have_several_objects(captures: FrameSet) -> None:
    counts = Counter(len(frame.boxes) for frame in captures.frames)
    assert 0.1 * 240 < counts[0] < 0.3 * 240
    assert counts[1] > 0.3 * 240
    assert counts[2] + counts[3] + counts[4] > 0.15 * 240
    assert max(counts) <= 4


def test_objects_have_the_documented_sizes_and_one_is_the_largest(captures: FrameSet) -> None:
    sides, seconds = [], []
    for frame in captures.frames:
        with Image.open(frame.image) as image:
            width, height = image.size
        boxes = np.array(frame.boxes).reshape(-1, 4) * [width, height, width, height]
        extents = boxes[:, 2:] - boxes[:, :2]
        sides += (extents.max(1) / min(width, height)).tolist()
        areas = np.sort(extents.prod(1))
        seconds += (areas[-2:-1] / areas[-1:]).tolist()
    assert min(sides) > 0.12
    assert max(sides) < 0.46
    assert np.percentile(seconds, 75) < 0.7


def test_boxes_move_smoothly(captures: FrameSet) -> None:
    """The largest box moves little between frames, unless another polyp becomes the largest."""
    steps = []
    for before, after in zip(captures.frames, captures.frames[1:], strict=False):
        if before.group == after.group and before.boxes and after.boxes:
            steps.append(np.abs(np.subtract(before.boxes[0], after.boxes[0])).max())
    assert np.median(steps) < 0.06
    assert np.mean(np.array(steps) < 0.2) > 0.9


def test_boxes_enclose_the_pixels_that_a_polyp_changes() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        wall = _Wall(rng, 160, 120)
        wall.colour[:] = 1e4  # brighter than the scene
        polyp = _Bump(rng, 160, 120, rng.uniform(0.2, 0.4))
        scene = np.zeros((120, 160, 3), dtype=np.float32)
        box = polyp.paint(scene, wall, 0.3, flat=False)
        rows, columns = np.nonzero(scene[..., 0] > 0.5 * 1e4 * 0.2)
        bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # The antialiased edge may be half a pixel brighter or darker.
        assert np.abs(np.array(box) * [160, 120, 160, 120] - bright).max() <= 2


def test_files_depend_on_the_seed_alone(tmp_path: Path, small: Path) -> None:
    again = CaptureDemo(str(tmp_path / "again"), 2, 5, seed=0).render()
    other = CaptureDemo(str(tmp_path / "other"), 2, 5, seed=1).render()
    assert contents(again) == contents(small)
    first, second = (
        {name: data for name, data in contents(root).items() if name.endswith(".jpg")}
        for root in (small, other)
    )
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


def test_a_larger_set_starts_with_the_files_of_a_smaller_one(tmp_path: Path, small: Path) -> None:
    larger = contents(CaptureDemo(str(tmp_path / "larger"), 3, 5, seed=0).render())
    smaller = contents(small)
    del smaller[RECORD]
    assert smaller.items() <= larger.items()


def test_runs_are_rendered_once_for_the_same_settings(small: Path, updates: list[Update]) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    updates.clear()
    CaptureDemo(str(small), 2, 5, seed=0).render()
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    assert updates == []
    CaptureDemo(str(small), 3, 6, seed=0).render()
    assert updates == [("rendering demo captures", done, 3) for done in (1, 2, 3)]
    assert len(read_frames(small).frames) == 18


def test_an_interruption_leaves_the_old_folder_and_no_temporary_files(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(small)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    at_update(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        CaptureDemo(str(small), 2, 6, seed=0).render()
    assert contents(small) == before
    assert {path.name for path in small.parent.iterdir()} == {"small", ".small.lock"}


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "run_007/run_manifest.json", "run_001/mine.txt", "run_001/images/mine.jpg"],
)
def test_a_folder_with_other_files_is_left_alone(small: Path, name: str) -> None:
    (small / name).parent.mkdir(exist_ok=True)
    (small / name).write_text("mine")
    with user_error("dataset.demo.root", small):
        CaptureDemo(str(small), 2, 6, seed=0).render()
    assert (small / name).read_text() == "mine"


def test_real_runs_of_the_same_names_are_left_alone(small: Path) -> None:
    (small / RECORD).unlink()
    before = contents(small)
    with user_error("dataset.demo.root", small):
        CaptureDemo(str(small), 2, 5, seed=0).render()
    assert contents(small) == before


def test_a_folder_with_an_unreadable_record_is_left_alone(small: Path) -> None:
    (small / RECORD).write_text(json.dumps([]))
    with user_error("dataset.demo.root", small):
        CaptureDemo(str(small), 2, 5, seed=0).render()
    shutil.rmtree(small)
    CaptureDemo(str(small), 2, 5, seed=0).render()


@pytest.mark.parametrize(("runs", "frames", "seed"), [(1, 5, 0), (2, 4, 0), (2, 5, -1)])
def test_invalid_settings(tmp_path: Path, runs: int, frames: int, seed: int) -> None:
    with user_error("dataset.demo", f"{runs} runs", f"{frames} frames", f"seed {seed}"):
        CaptureDemo(str(tmp_path / "root"), runs, frames, seed).render()
    assert not (tmp_path / "root").exists()


def test_colour_does_not_reveal_the_objects(captures: FrameSet) -> None:
    """A linear classifier of pixel colours, fitted to other runs, is near chance."""
    rng = np.random.default_rng(0)
    colours: dict[bool, list[np.ndarray]] = {True: [], False: []}
    inside: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for frame in captures.frames[::2]:
        held_out = frame.group >= "run_009"
        image, mask = pixels(frame), covered(frame)
        chosen = rng.integers(0, mask.size, 400)
        colour = image.reshape(-1, 3)[chosen] - image.mean((0, 1))
        colours[held_out].append(np.c_[colour, np.abs(colour), np.ones(400)])
        inside[held_out].append(mask.reshape(-1)[chosen])
    features, truth = np.concatenate(colours[False]), np.concatenate(inside[False])
    weights = np.linalg.lstsq(features, truth - truth.mean(), rcond=None)[0]
    score, truth = np.concatenate(colours[True]) @ weights, np.concatenate(inside[True])
    rank = score.argsort().argsort()
    positives = truth.sum()
    area = (rank[truth].sum() - positives * (positives - 1) / 2) / (
        positives * (len(truth) - positives)
    )
    assert area < 0.7  # 0.5 is chance, 1 a perfect detector
