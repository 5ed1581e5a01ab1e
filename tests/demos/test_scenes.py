from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from research.demos.scenes import CLASSES, MANIFEST, render_scenes
from research.utils.errors import UserError
from tests.conftest import Update, at_update


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 train and 120 val scenes, shared by the tests that only read."""
    return render_scenes(tmp_path_factory.mktemp("demo") / "scenes", 480, 120, seed=0)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return render_scenes(tmp_path / "small", 24, 12, seed=0)


def test_files_depend_on_the_seed_alone(tmp_path: Path, small: Path) -> None:
    again = contents(render_scenes(tmp_path / "again", 24, 12, seed=0))
    other = contents(render_scenes(tmp_path / "other", 24, 12, seed=1))
    assert contents(small) == again
    assert other.keys() == again.keys()
    assert not set(other.values()) & set(again.values())


def test_a_larger_set_starts_with_the_files_of_a_smaller_one(scenes: Path, small: Path) -> None:
    assert contents(small).items() <= contents(scenes).items()


def test_no_scene_occurs_twice(scenes: Path) -> None:
    files = contents(scenes)
    assert len(set(files.values())) == len(files) == 600


@pytest.mark.parametrize(("split", "count"), [("train", 480), ("val", 120)])
def test_every_class_is_present_and_balanced(scenes: Path, split: str, count: int) -> None:
    counts = Counter(path.parent.name for path in (scenes / split).glob("*/*.jpg"))
    assert sorted(counts) == list(CLASSES)
    assert set(counts.values()) == {count // len(CLASSES)}


def test_counts_that_do_not_divide_are_balanced_to_within_one(tmp_path: Path) -> None:
    root = render_scenes(tmp_path / "odd", 29, 12, seed=0)
    counts = Counter(path.parent.name for path in (root / "train").glob("*/*.jpg"))
    assert sum(counts.values()) == 29
    assert set(counts.values()) == {2, 3}


def test_sizes_qualities_samplings_and_scan_orders_are_mixed(scenes: Path) -> None:
    sizes, samplings, tables, modes, scans = set(), Counter(), set(), Counter(), Counter()
    for path in (scenes / "train").glob("*/*.jpg"):
        with Image.open(path) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            sizes.add(image.size)
            modes[image.mode] += 1
            samplings[JpegImagePlugin.get_sampling(image)] += 1
            tables.add(tuple(image.quantization[0]))
            scans[bool(image.info.get("progressive"))] += 1
    sides = [side for size in sizes for side in size]
    assert 72 <= min(sides) < 85
    assert 185 < max(sides) <= 200
    assert any(w > 1.3 * h for w, h in sizes)
    assert any(h > 1.3 * w for w, h in sizes)
    assert len(tables) > 30  # of the 36 qualities from 60 to 95
    assert set(modes) == {"RGB", "L"}
    assert 0.03 * 480 < modes["L"] < 0.15 * 480
    assert min(samplings[kind] for kind in (0, 1, 2)) > 100  # 4:4:4, 4:2:2, 4:2:0
    assert 0.1 * 480 < scans[True] < 0.3 * 480


def test_the_second_call_does_nothing(small: Path, updates: list[Update]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (small, *small.rglob("*"))}
    updates.clear()
    render_scenes(small, 24, 12, seed=0)
    assert {path: path.stat().st_mtime_ns for path in (small, *small.rglob("*"))} == before
    assert updates == []


def test_progress_counts_up_to_the_total(tmp_path: Path, updates: list[Update]) -> None:
    render_scenes(tmp_path / "s", 12, 12, 0)
    assert updates == [("rendering demo scenes", done, 24) for done in range(1, 25)]


@pytest.mark.parametrize("manifest", [None, "", '{"recipe": 0}', "[]"])
def test_an_incomplete_or_outdated_folder_is_rendered_again(
    small: Path, manifest: str | None
) -> None:
    expected = contents(small)
    shutil.rmtree(small / "train" / CLASSES[0])
    (small / "val" / CLASSES[1] / "00000.jpg").write_bytes(b"half")
    (small / MANIFEST).unlink()
    if manifest is not None:
        (small / MANIFEST).write_text(manifest)
    render_scenes(small, 24, 12, seed=0)
    assert contents(small) == expected


def test_other_counts_leave_no_stale_files(small: Path) -> None:
    render_scenes(small, 12, 12, seed=0)
    assert len(contents(small)) == 24


def test_an_interruption_leaves_the_old_folder_and_no_temporary_files(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(small)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    at_update(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(small, 36, 12, seed=0)
    assert contents(small) == before
    assert {path.name for path in small.parent.iterdir()} <= {"small", ".small.lock"}


def test_parallel_first_use_renders_once(tmp_path: Path, updates: list[Update]) -> None:
    root = tmp_path / "shared"
    threads = [
        threading.Thread(target=render_scenes, args=(root, 24, 12), kwargs={"seed": 0})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents(root)) == len(updates) == 36


@pytest.mark.parametrize("name", ["notes.txt", "train/dog/1.jpg", "test/rings/1.jpg"])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UserError, match="other files"):
        render_scenes(tmp_path, 12, 12, seed=0)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["train/dog/00000.jpg", "train/rings/mine.jpg", "val/rings/a/b"])
def test_files_that_were_put_beside_the_scenes_are_left_alone(small: Path, name: str) -> None:
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).write_text("mine")
    with pytest.raises(UserError, match="other files"):
        render_scenes(small, 12, 12, seed=0)
    assert (small / name).read_text() == "mine"


@pytest.mark.parametrize(("train", "val", "seed"), [(11, 12, 0), (12, 0, 0), (12, 12, -1)])
def test_invalid_settings(tmp_path: Path, train: int, val: int, seed: int) -> None:
    with pytest.raises(UserError):
        render_scenes(tmp_path / "s", train, val, seed)
    assert not (tmp_path / "s").exists()


def test_mean_colour_does_not_reveal_the_class(scenes: Path) -> None:
    def means(split: str) -> tuple[np.ndarray, np.ndarray]:
        files = sorted((scenes / split).glob("*/*.jpg"))
        colours = [np.asarray(Image.open(f).convert("RGB")).mean((0, 1)) for f in files]
        return np.stack(colours), np.array([CLASSES.index(f.parent.name) for f in files])

    colours, labels = means("train")
    centres = np.stack([colours[labels == label].mean(0) for label in range(len(CLASSES))])
    colours, labels = means("val")
    nearest = np.linalg.norm(colours[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == labels).mean() < 2.5 / len(CLASSES)
