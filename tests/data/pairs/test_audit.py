from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import laplace

from research.data.pairs import sharpness as measured
from research.data.pairs.audit import (
    Audit,
    Lost,
    audit_photos,
    audit_rows,
    audit_sharpness,
    audit_votes,
    leaks,
)
from research.data.pairs.lists import Pair, PairSet, Row
from research.data.pairs.sharpness import sharper_wins, sharpness, trivial

RNG = np.random.default_rng(0)
QUALITY = RNG.permutation(3 * 80).reshape(80, 3) / 240
"""Of three photos each in 80 series."""


def row(
    series: int,
    first: int,
    second: int,
    preference: float,
    ranks: tuple[float, float] | None = None,
    line: int = 1,
) -> Row:
    return Row(f"list.txt row {line}", series, first, second, preference, 0, ranks)


def true_rows(quality: np.ndarray = QUALITY) -> list[Row]:
    """Every pair, with the preference and the ranks that the qualities make."""
    found: list[Row] = []
    for series, values in enumerate(quality):
        ranks = 1 + np.argsort(np.argsort(-values))
        for one, two in ((0, 1), (0, 2), (1, 2)):
            preference = float(1 / (1 + np.exp(8 * (values[two] - values[one]))))
            pair = float(ranks[one]), float(ranks[two])
            found.append(row(series, one + 1, two + 1, preference, pair, len(found) + 1))
    return found


def lines(rows: list[Row], **others: list[Row]) -> list[str]:
    audit = Audit()
    audit_rows({"train": rows, **others}, audit)
    return audit.lines()


def test_nothing_is_said_of_labels_that_are_right() -> None:
    audit = Audit()
    rows = [*true_rows(), row(7, 1, 2, true_rows()[21].preference), row(90, 1, 2, 0.5)]
    audit_rows({"train": rows[3:], "val": rows[:3]}, audit)
    assert audit.lines() == []
    assert audit.numbers["rows"] == 242
    assert audit.numbers["pairs"] == 241
    assert audit.numbers["repeated_pairs"] == 1
    assert audit.numbers["ties"] == 1
    assert audit.summary().startswith("rows 242, ties 1, pairs 241, repeated pairs 1, first wins")


def test_ranks_in_place_of_the_preference() -> None:
    """The label of who reads the rank of photo1 as the number of the winner."""
    wrong = [
        r._replace(preference=1.0 if r.ranks and r.ranks[0] == 1 else 0.0) for r in true_rows()
    ]
    (about_ranks, about_places) = lines(wrong)
    assert "column 4 may not be the preference, but made of the ranks" in about_ranks
    assert about_ranks.startswith("list.txt row ")
    assert about_places.startswith("the second photo is preferred in 70.0% of the rows")


def test_a_preference_of_the_second_photo_is_against_its_ranks() -> None:
    turned = [r._replace(preference=1 - r.preference) for r in true_rows()]
    (line,) = lines(turned)
    assert "as in 240 of 240 rows" in line


def test_rows_that_contradict_each_other() -> None:
    rows = [row(1, 1, 2, 0.8, line=4), row(1, 2, 1, 0.3, line=9), row(2, 1, 2, 0.9)]
    assert lines(rows) == []  # 0.3 of the second over the first is the same opinion
    rows.append(row(1, 2, 1, 0.6, line=12))
    (line,) = lines(rows)
    assert line.startswith("1 of 1 pairs that are listed more than once contradict themselves")
    assert "(list.txt row 4, 12 first)" in line


def test_series_in_both_lists() -> None:
    val = [row(3, 1, 2, 0.9), row(400, 1, 2, 0.2)]
    train = [r for r in true_rows() if (r.series, r.second) != (3, 2)]
    assert leaks({"train": train, "val": val}) == {3}
    (line,) = lines(train, val=val)
    assert line.startswith("1 series are in both lists, 000003 first")


def test_photos_that_are_not_there() -> None:
    audit = Audit()
    absent = [(row(9, 1, 2, 0.5, line=n), n) for n in (1, 2)]
    absent += [(row(1, 1, 4, 0.5, line=7), 4), (row(1, 2, 4, 0.5, line=8), 4)]
    audit_photos(Lost(absent, {Path("a.jpg"): "empty"}), {1}, audit)
    one, two, three = audit.lines()
    assert one.startswith("list.txt row 1: series 000009 has no photo; its pairs are left out")
    assert two.startswith("list.txt row 7: no file 000001-04; its pairs are left out")
    assert three.startswith("a.jpg: empty, cannot be read; its pairs are left out")
    assert (audit.numbers["unknown_series"], audit.numbers["missing_images"]) == (1, 1)


def test_votes_whose_photos_are_numbered_otherwise() -> None:
    """What the published table of votes is like: as decided, and about other photos."""
    listed = true_rows()
    audit = Audit()
    audit_votes(
        [r._replace(first=r.second, second=r.first, preference=1 - r.preference) for r in listed],
        listed,
        audit,
    )
    assert audit.lines() == []
    assert audit.numbers["votes_like_lists"] == 1
    shuffled = true_rows(np.random.default_rng(1).permuted(QUALITY, axis=1))
    audit_votes(shuffled, listed, audit)
    (line,) = audit.lines()
    assert line.startswith("of 240 pairs that the table of votes shares with the pair lists, only")
    assert 0.4 < audit.numbers["votes_like_lists"] < 0.6
    few = Audit()
    audit_votes(shuffled[:49], listed, few)
    assert few.lines() == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Speckled photos, the more the better; 3 a series."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(2)
    files = []
    for number, quality in enumerate(QUALITY.ravel()):
        grey = 128 + (10 + 90 * quality) * rng.uniform(-1, 1, (24, 32))
        files.append(folder / f"{number // 3:06d}-{number % 3 + 1:02d}.png")
        Image.fromarray(grey.astype(np.uint8)).convert("RGB").save(files[-1])
    return files


def pair_set(photos: list[Path], rows: list[Row]) -> PairSet:
    pairs = [
        Pair(r.series, 3 * r.series + r.first - 1, 3 * r.series + r.second - 1, r.preference, 1.0)
        for r in rows
    ]
    return PairSet(Path(), photos, pairs, [f"{number:06d}" for number in range(80)])


def sanity(photos: list[Path], rows: list[Row], cache: Path) -> Audit:
    audit = Audit()
    audit_sharpness(pair_set(photos, rows), cache, 0, None, audit)
    return audit


def test_shuffled_file_names_are_seen_by_the_sharpness(photos: list[Path], tmp_path: Path) -> None:
    right = sanity(photos, true_rows(), tmp_path)
    assert right.lines() == []
    assert right.numbers["sharper_wins"] > 0.95
    shuffled = true_rows(np.random.default_rng(5).permuted(QUALITY, axis=1))
    (line,) = sanity(photos, shuffled, tmp_path).lines()
    assert "which is chance: the labels may not belong to these photos" in line


def test_labels_the_wrong_way_round(photos: list[Path], tmp_path: Path) -> None:
    turned = [r._replace(preference=1 - r.preference) for r in true_rows()]
    (line,) = sanity(photos, turned, tmp_path).lines()
    assert "the preference may be that of the second photo" in line


def test_no_verdict_on_few_pairs(photos: list[Path], tmp_path: Path) -> None:
    clear = [r for r in true_rows() if r.agreement >= 0.7]
    turned = [r._replace(preference=1 - r.preference) for r in clear]
    assert sanity(photos, turned[:49], tmp_path).lines() == []
    assert sanity(photos, turned[:50], tmp_path).lines() != []
    weak = [r._replace(preference=0.31) for r in turned]
    assert sanity(photos, weak, tmp_path).numbers == {"confident_pairs": 0}


def test_sharpness_is_the_variance_of_the_laplacian(photos: list[Path], tmp_path: Path) -> None:
    found = sharpness(photos[:5], tmp_path)
    for file in photos[:5]:
        grey = np.asarray(Image.open(file).convert("L"), dtype=np.float64)
        assert found[file] == pytest.approx(laplace(grey, mode="mirror").var())


def test_sharpness_is_measured_once(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [tmp_path / path.name for path in photos[:3]]
    for path, source in zip(mine, photos, strict=False):
        path.write_bytes(source.read_bytes())
    first = sharpness(mine, tmp_path / "cache")
    asked: list[Path] = []
    whole = measured._sharpness

    def counted(file: Path) -> float:
        asked.append(file)
        return whole(file)

    monkeypatch.setattr(measured, "_sharpness", counted)
    assert sharpness(mine, tmp_path / "cache") == first
    assert asked == []
    mine[1].write_bytes(photos[7].read_bytes() + b"more")
    mine[2].write_bytes(b"nothing")
    second = sharpness(mine, tmp_path / "cache")
    assert asked == mine[1:]
    assert second[mine[0]] == first[mine[0]]
    assert second[mine[1]] == sharpness([photos[7]], tmp_path / "other")[photos[7]]
    assert math.isnan(second[mine[2]])


def test_photos_of_one_name_in_two_folders(photos: list[Path], tmp_path: Path) -> None:
    mine = [tmp_path / folder / "1.jpg" for folder in ("a", "b")]
    for path, source in zip(mine, photos, strict=False):
        path.parent.mkdir()
        path.write_bytes(source.read_bytes())
    for _ in range(2):
        found = sharpness(mine, tmp_path / "cache")
        assert [found[path] for path in mine] == [
            *sharpness(photos[:2], tmp_path / "other").values()
        ]


def test_who_learns_nothing(photos: list[Path], tmp_path: Path) -> None:
    """Ties count for neither; photos of one sharpness share the pair."""
    same = [photos[0], photos[0], *photos[2:]]
    order = [1, 0] if QUALITY[1, 0] > QUALITY[1, 1] else [0, 1]  # the sharper one comes second
    pairs = [
        Pair(0, 0, 1, 0.9, 1),
        Pair(1, 3 + order[0], 3 + order[1], 0.1, 1),
        Pair(1, 3 + order[1], 3 + order[0], 0.2, 1),
        Pair(2, 6, 7, 0.5, 1),
    ]
    part = PairSet(Path(), same, pairs, ["0", "1", "2"])
    assert sharper_wins(same, pairs, tmp_path) == (1.5, 3)
    told = "pair accuracy 0.6667 of always the second photo, 0.5000 of the sharper photo"
    assert trivial(part, tmp_path) == told
    assert trivial(PairSet(Path(), same, pairs[3:], ["2"]), tmp_path) is None
