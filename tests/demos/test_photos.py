from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from research.data.pairs.lists import PairRow, read_pair_list
from research.data.pairs.quality import measure_quality
from research.demos.photos import (
    MIN_DIFFERENCE,
    PHOTOS,
    RECORD,
    SIZES,
    WEIGHTS,
    Defects,
    PhotoDemo,
    PhotoScene,
    draw_defects,
)
from tests.conftest import user_error


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PhotoDemo(str(tmp_path_factory.mktemp("photos") / "demo"), 15, 3).render()


def rows(root: Path, split: str) -> list[PairRow]:
    return read_pair_list(root / "train_val" / f"{split}_pairlist.txt")


def test_the_layout_of_phototriage(root: Path) -> None:
    train, val = rows(root, "train"), rows(root, "val")
    assert {row.series for row in val} == {5, 10, 15}
    assert {row.series for row in train} == set(range(1, 16)) - {5, 10, 15}
    named = {(row.series, n) for row in train + val for n in row.photos}
    files = {path.name for path in (root / PHOTOS).iterdir()}
    assert files == {f"{series:06d}-{photo:02d}.JPG" for series, photo in named}
    assert all(row.first < row.second for row in train + val)
    counts = [len({n for s, n in named if s == series}) for series in range(1, 16)]
    assert set(counts) == {2, 3, 4, 5}
    assert len(train) + len(val) == sum(n * (n - 1) // 2 for n in counts)


def test_preferences_agree_with_ranks(root: Path) -> None:
    for row in rows(root, "train"):
        assert row.ranks is not None
        assert (row.preference > 0.5) == (row.ranks[0] < row.ranks[1])
        assert round(row.preference, 2) == row.preference


def test_preferences_are_the_logistic_of_the_weighted_defects(root: Path) -> None:
    rng = np.random.default_rng((3, 1))
    defects = draw_defects(rng, int(rng.integers(2, 6)))
    cost = [float(np.abs(one) @ np.array(WEIGHTS)) for one in defects]
    for row in (row for row in rows(root, "train") if row.series == 1):
        odds = np.exp(cost[row.second - 1] - cost[row.first - 1])
        assert row.preference == pytest.approx(odds / (1 + odds), abs=0.0051)


def test_qualities_in_a_series_differ() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        qualities = np.sort([defects.quality for defects in draw_defects(rng, 5)])
        assert np.diff(qualities).min() >= MIN_DIFFERENCE
        assert qualities.max() <= 0


@pytest.mark.parametrize(
    ("kind", "measure", "sign"),
    [(0, "sharpness_raw", -1), (1, "colourfulness", 1), (2, "exposure", -1), (3, "contrast", -1)],
)
def test_each_defect_changes_a_measure_monotonically(kind: int, measure: str, sign: int) -> None:
    grades = [0.0, 0.3, 0.6, 1.0]
    for number, size in enumerate(SIZES[:2]):
        values = []
        for grade in grades:
            defects = [0.0] * 4
            defects[kind] = grade
            scene = PhotoScene(np.random.default_rng(number), *size)
            values.append(measure_quality(scene.photo(Defects(*defects)))[measure])
        assert kendalltau(grades, values).statistic == pytest.approx(sign)


def test_a_larger_set_starts_with_the_photos_of_a_smaller_one(root: Path, tmp_path: Path) -> None:
    few = PhotoDemo(str(tmp_path / "few"), 10, 3).render()
    for path in (few / PHOTOS).iterdir():
        assert path.read_bytes() == (root / PHOTOS / path.name).read_bytes()
    lines = (few / "train_val" / "train_pairlist.txt").read_text()
    assert (root / "train_val" / "train_pairlist.txt").read_text().startswith(lines)
    written = (few / RECORD).stat().st_mtime_ns
    PhotoDemo(str(few), 10, 3).render()
    assert (few / RECORD).stat().st_mtime_ns == written
    (few / "mine.txt").touch()
    with user_error("dataset.demo.root", few):
        PhotoDemo(str(few), 10, 4).render()


def test_sizes_of_the_photos(root: Path) -> None:
    for number in (1, 2, 3, 4):
        with Image.open(root / PHOTOS / f"{number:06d}-01.JPG") as image:
            assert image.size == SIZES[number % len(SIZES)]


@pytest.mark.parametrize(("settings", "key"), [((9, 0), "series"), ((10, -1), "seed")])
def test_invalid_settings(tmp_path: Path, settings: tuple[int, int], key: str) -> None:
    with user_error(f"dataset.demo.{key}", "at least"):
        PhotoDemo(str(tmp_path / "demo"), *settings).render()
