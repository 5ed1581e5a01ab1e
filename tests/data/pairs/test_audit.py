from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import laplace

from research.data.pairs import sharpness
from research.data.pairs.audit import (
    Audit,
    MissingFiles,
    audit_photos,
    audit_rows,
    audit_sharpness,
    audit_votes,
    leaking_series,
)
from research.data.pairs.lists import Pair, PairRow, PairSet
from research.data.pairs.sharpness import describe_baselines, measure_sharpness, sharper_wins
from tests.conftest import settle

RNG = np.random.default_rng(0)
QUALITY = RNG.permutation(3 * 80).reshape(80, 3) / 240
"""Quality of the three photos of each of 80 series."""


def row(
    series: int,
    first: int,
    second: int,
    preference: float,
    ranks: tuple[float, float] | None = None,
    line: int = 1,
) -> PairRow:
    return PairRow(f"list.txt row {line}", series, first, second, preference, 0, ranks)


def true_rows(quality: np.ndarray = QUALITY) -> list[PairRow]:
    """Every pair, with preference and ranks computed from the qualities."""
    rows: list[PairRow] = []
    for series, values in enumerate(quality):
        ranks = 1 + np.argsort(np.argsort(-values))
        for one, two in ((0, 1), (0, 2), (1, 2)):
            preference = float(1 / (1 + np.exp(8 * (values[two] - values[one]))))
            pair = float(ranks[one]), float(ranks[two])
            rows.append(row(series, one + 1, two + 1, preference, pair, len(rows) + 1))
    return rows


def warnings(rows: list[PairRow], **others: list[PairRow]) -> list[str]:
    audit = Audit()
    audit_rows({"train": rows, **others}, audit)
    return audit.warnings


def test_correct_labels_have_no_warnings() -> None:
    audit = Audit()
    rows = [*true_rows(), row(7, 1, 2, true_rows()[21].preference), row(90, 1, 2, 0.5)]
    audit_rows({"train": rows[3:], "val": rows[:3]}, audit)
    assert audit.warnings == []
    assert audit.numbers["rows"] == 242
    assert audit.numbers["pairs"] == 241
    assert audit.numbers["repeated_pairs"] == 1
    assert audit.numbers["ties"] == 1
    assert audit.summary().startswith("rows 242, ties 1, pairs 241, repeated pairs 1, first wins")


def test_preference_computed_from_ranks() -> None:
    """The rank of photo1 was read as the number of the winner."""
    wrong = [
        r._replace(preference=1.0 if r.ranks and r.ranks[0] == 1 else 0.0) for r in true_rows()
    ]
    (about_ranks, about_positions) = warnings(wrong)
    assert "column 4 may not be the preference, but computed from the ranks" in about_ranks
    assert about_ranks.startswith("list.txt row ")
    assert about_positions.startswith("the second photo is preferred in 70.0% of the rows")


def test_preference_of_the_second_photo_contradicts_the_ranks() -> None:
    inverted = [r._replace(preference=1 - r.preference) for r in true_rows()]
    (line,) = warnings(inverted)
    assert "as in 240 of 240 rows" in line


def test_contradicting_rows() -> None:
    rows = [row(1, 1, 2, 0.8, line=4), row(1, 2, 1, 0.3, line=9), row(2, 1, 2, 0.9)]
    assert warnings(rows) == []  # 0.3 for the second photo is 0.7 for the first
    rows.append(row(1, 2, 1, 0.6, line=12))
    (line,) = warnings(rows)
    assert line.startswith("1 of 1 pairs that are listed more than once contradict themselves")
    assert "(the first: list.txt row 4 and 12)" in line


def test_series_in_both_lists() -> None:
    val = [row(3, 1, 2, 0.9), row(400, 1, 2, 0.2)]
    train = [r for r in true_rows() if (r.series, r.second) != (3, 2)]
    assert leaking_series({"train": train, "val": val}) == {3}
    (line,) = warnings(train, val=val)
    assert line.startswith("1 series are in both lists, the first is 000003;")


def test_missing_photos() -> None:
    audit = Audit()
    absent = [(row(9, 1, 2, 0.5, line=n), n) for n in (1, 2)]
    absent += [(row(1, 1, 4, 0.5, line=7), 4), (row(1, 2, 4, 0.5, line=8), 4)]
    audit_photos(MissingFiles(absent, {Path("a.jpg"): "empty"}), {1}, audit)
    one, two, three = audit.warnings
    assert one.startswith("list.txt row 1: series 000009 has no photo; its pairs are left out")
    assert two.startswith("list.txt row 7: no file 000001-04; its pairs are left out")
    assert three.startswith("a.jpg: empty, cannot be read; its pairs are left out")
    assert (audit.numbers["unknown_series"], audit.numbers["missing_images"]) == (1, 1)


def test_votes_with_other_photo_numbers() -> None:
    """As in the published table of votes: clear preferences that belong to other photos."""
    listed = true_rows()
    audit = Audit()
    audit_votes(
        [r._replace(first=r.second, second=r.first, preference=1 - r.preference) for r in listed],
        listed,
        audit,
    )
    assert audit.warnings == []
    assert audit.numbers["votes_like_lists"] == 1
    shuffled = true_rows(np.random.default_rng(1).permuted(QUALITY, axis=1))
    audit_votes(shuffled, listed, audit)
    (line,) = audit.warnings
    assert line.startswith(
        "of 240 pairs that are in the table of votes and in the pair lists, only"
    )
    assert 0.4 < audit.numbers["votes_like_lists"] < 0.6
    few = Audit()
    audit_votes(shuffled[:49], listed, few)
    assert few.warnings == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos with noise of an amplitude that grows with their quality; 3 in a series."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(2)
    files = []
    for number, quality in enumerate(QUALITY.ravel()):
        grey = 128 + (10 + 90 * quality) * rng.uniform(-1, 1, (24, 32))
        files.append(folder / f"{number // 3:06d}-{number % 3 + 1:02d}.png")
        Image.fromarray(grey.astype(np.uint8)).convert("RGB").save(files[-1])
    return files


def pair_set(photos: list[Path], rows: list[PairRow]) -> PairSet:
    pairs = [
        Pair(r.series, 3 * r.series + r.first - 1, 3 * r.series + r.second - 1, r.preference, 1.0)
        for r in rows
    ]
    return PairSet(photos, pairs, [f"{number:06d}" for number in range(80)])


def audit_of(photos: list[Path], rows: list[PairRow], cache: Path) -> Audit:
    audit = Audit()
    audit_sharpness(pair_set(photos, rows), cache, 0, audit)
    return audit


def test_shuffled_file_names_are_found_by_sharpness(photos: list[Path], tmp_path: Path) -> None:
    right = audit_of(photos, true_rows(), tmp_path)
    assert right.warnings == []
    assert right.numbers["sharper_wins"] > 0.95
    shuffled = true_rows(np.random.default_rng(5).permuted(QUALITY, axis=1))
    (line,) = audit_of(photos, shuffled, tmp_path).warnings
    assert "which is chance: the labels may not belong to these photos" in line


def test_inverted_labels(photos: list[Path], tmp_path: Path) -> None:
    inverted = [r._replace(preference=1 - r.preference) for r in true_rows()]
    (line,) = audit_of(photos, inverted, tmp_path).warnings
    assert "the preference may be that of the second photo" in line


def test_few_pairs_are_not_tested(photos: list[Path], tmp_path: Path) -> None:
    clear = [r for r in true_rows() if r.agreement >= 0.7]
    inverted = [r._replace(preference=1 - r.preference) for r in clear]
    assert audit_of(photos, inverted[:49], tmp_path).warnings == []
    assert audit_of(photos, inverted[:50], tmp_path).warnings != []
    weak = [r._replace(preference=0.31) for r in inverted]
    assert audit_of(photos, weak, tmp_path).numbers == {"confident_pairs": 0}


def test_sharpness_is_the_variance_of_the_laplacian(photos: list[Path], tmp_path: Path) -> None:
    values = measure_sharpness(photos[:5], tmp_path)
    for file in photos[:5]:
        grey = np.asarray(Image.open(file).convert("L"), dtype=np.float64)
        assert values[file] == pytest.approx(laplace(grey, mode="mirror").var())


def test_sharpness_is_measured_once(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [tmp_path / path.name for path in photos[:3]]
    for path, source in zip(mine, photos, strict=False):
        path.write_bytes(source.read_bytes())
    settle()
    first = measure_sharpness(mine, tmp_path / "cache")
    measured: list[Path] = []
    original = sharpness._sharpness

    def counted(file: Path) -> float:
        measured.append(file)
        return original(file)

    monkeypatch.setattr(sharpness, "_sharpness", counted)
    assert measure_sharpness(mine, tmp_path / "cache") == first
    assert measured == []
    mine[1].write_bytes(photos[7].read_bytes() + b"more")
    mine[2].write_bytes(b"nothing")
    second = measure_sharpness(mine, tmp_path / "cache")
    assert measured == mine[1:]
    assert second[mine[0]] == first[mine[0]]
    assert second[mine[1]] == measure_sharpness([photos[7]], tmp_path / "other")[photos[7]]
    assert math.isnan(second[mine[2]])


def test_photos_of_one_name_in_two_folders(photos: list[Path], tmp_path: Path) -> None:
    mine = [tmp_path / folder / "1.jpg" for folder in ("a", "b")]
    for path, source in zip(mine, photos, strict=False):
        path.parent.mkdir()
        path.write_bytes(source.read_bytes())
    for _ in range(2):
        values = measure_sharpness(mine, tmp_path / "cache")
        assert [values[path] for path in mine] == [
            *measure_sharpness(photos[:2], tmp_path / "other").values()
        ]


def test_baselines(photos: list[Path], tmp_path: Path) -> None:
    """Ties do not count; photos of equal sharpness count half."""
    same = [photos[0], photos[0], *photos[2:]]
    order = [1, 0] if QUALITY[1, 0] > QUALITY[1, 1] else [0, 1]  # the sharper one comes second
    pairs = [
        Pair(0, 0, 1, 0.9, 1),
        Pair(1, 3 + order[0], 3 + order[1], 0.1, 1),
        Pair(1, 3 + order[1], 3 + order[0], 0.2, 1),
        Pair(2, 6, 7, 0.5, 1),
    ]
    pair_set = PairSet(same, pairs, ["0", "1", "2"])
    assert sharper_wins(same, pairs, tmp_path) == (1.5, 3)
    expected = (
        "pair accuracy 0.6667 (n=3 pairs) of always the second photo, "
        "0.5000 (n=3 pairs) of the sharper photo"
    )
    assert describe_baselines(pair_set, tmp_path) == expected
    assert describe_baselines(PairSet(same, pairs[3:], ["2"]), tmp_path) is None
