from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from research.data.pairs.lists import Row, read_list
from research.data.pairs.quality import measures
from research.demos.photos import (
    CLOSEST,
    COSTS,
    PHOTOS,
    RECORD,
    SIZES,
    Errors,
    PhotoDemo,
    Scene,
    draw_errors,
)
from research.utils.errors import UserError
from tests.conftest import user_error


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PhotoDemo(str(tmp_path_factory.mktemp("photos") / "demo"), 15, 3).render()


def rows(root: Path, split: str) -> list[Row]:
    return read_list(root / "train_val" / f"{split}_pairlist.txt")


def test_the_layout_is_the_official_one(root: Path) -> None:
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


def test_preferences_and_ranks_say_the_same(root: Path) -> None:
    for row in rows(root, "train"):
        assert row.ranks is not None
        assert (row.preference > 0.5) == (row.ranks[0] < row.ranks[1])
        assert round(row.preference, 2) == row.preference


def test_preferences_are_the_logistic_of_what_the_errors_cost(root: Path) -> None:
    rng = np.random.default_rng((3, 1))
    errors = draw_errors(rng, int(rng.integers(2, 6)))
    cost = [float(np.abs(one) @ np.array(COSTS)) for one in errors]
    for row in (row for row in rows(root, "train") if row.series == 1):
        odds = np.exp(cost[row.second - 1] - cost[row.first - 1])
        assert row.preference == pytest.approx(odds / (1 + odds), abs=0.0051)


def test_nobody_has_to_tell_photos_of_the_same_quality() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        qualities = np.sort([errors.quality for errors in draw_errors(rng, 5)])
        assert np.diff(qualities).min() >= CLOSEST
        assert qualities.max() <= 0


@pytest.mark.parametrize(
    ("kind", "measure", "sign"),
    [(0, "sharpness_raw", -1), (1, "colourfulness", 1), (2, "exposure", -1), (3, "contrast", -1)],
)
def test_each_error_is_seen_by_a_measure_and_graded(kind: int, measure: str, sign: int) -> None:
    grades = [0.0, 0.3, 0.6, 1.0]
    for number, size in enumerate(SIZES[:2]):
        found = []
        for grade in grades:
            errors = [0.0] * 4
            errors[kind] = grade
            scene = Scene(np.random.default_rng(number), *size)
            found.append(measures(scene.photo(Errors(*errors)))[measure])
        assert kendalltau(grades, found).statistic == pytest.approx(sign)


def test_more_series_begin_with_the_photos_of_fewer(root: Path, tmp_path: Path) -> None:
    few = PhotoDemo(str(tmp_path / "few"), 10, 3).render()
    for path in (few / PHOTOS).iterdir():
        assert path.read_bytes() == (root / PHOTOS / path.name).read_bytes()
    lines = (few / "train_val" / "train_pairlist.txt").read_text()
    assert (root / "train_val" / "train_pairlist.txt").read_text().startswith(lines)
    kept = (few / RECORD).stat().st_mtime_ns
    PhotoDemo(str(few), 10, 3).render()
    assert (few / RECORD).stat().st_mtime_ns == kept
    (few / "mine.txt").touch()
    with user_error("dataset.root"):
        PhotoDemo(str(few), 10, 4).render()


def test_photos_are_of_the_size_that_is_said(root: Path) -> None:
    for number in (1, 2, 3, 4):
        with Image.open(root / PHOTOS / f"{number:06d}-01.JPG") as image:
            assert image.size == SIZES[number % len(SIZES)]


@pytest.mark.parametrize("settings", [(9, 0), (10, -1)])
def test_settings_that_make_no_demo(tmp_path: Path, settings: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="give at least 10 series and a seed of 0 or more"):
        PhotoDemo(str(tmp_path / "demo"), *settings).render()
