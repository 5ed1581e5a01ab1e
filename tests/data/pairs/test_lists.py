from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.index import Entry
from research.data.pairs.audit import Audit, read_labels
from research.data.pairs.lists import (
    PairRow,
    find_pair_lists,
    find_photo_folder,
    photo_names,
    pool_rows,
    read_pair_list,
    read_votes,
)
from research.data.pairs.select import SplitConfig, select_pairs
from tests.conftest import user_error

HEAD = "series_id,compareID1,compareFile1,compareID2,compareFile2,LEFT,RIGHT,Total,MaxVote\n"
CONFIG = SplitConfig("soft", 0.0, 0, 0.2, 0.2, 0, None, 0, None)


def row(series: int, first: int, second: int, preference: float, votes: int = 0) -> PairRow:
    ranks = None if votes else (1.0, 2.0)
    return PairRow("list row 1", series, first, second, preference, votes, ranks)


def write(root: Path, text: str) -> Path:
    file = root / "some.txt"
    file.write_text(text)
    return file


def test_read_the_official_list(tmp_path: Path) -> None:
    file = write(tmp_path, "1 1 2 0.9032 2 3\n\n12 1 3 0.16 2 1\r\n")
    one, two = read_pair_list(file)
    assert one == PairRow(f"{file} row 1", 1, 1, 2, 0.9032, 0, (2.0, 3.0))
    assert (two.location, two.pair, two.agreement) == (f"{file} row 3", (12, 1, 3), 0.84)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 1 2 0.5\n", ("row 1", "4", "series photo1 photo2 preference rank1 rank2")),
        ("1 1 2 0.5 1 2 3\n", ("row 1", "7")),
        ("1 1 2 x 1 2\n", ("row 1", "preference", "'x'")),
        ("1 1 2 nan 1 2\n", ("row 1", "preference", "'nan'")),
        ("1 1 2 0.4 1 2\n1 1 2 1.2 1 2\n", ("row 2", "preference 1.2", "0…1", "fraction")),
        ("1 1 2 -0.1 1 2\n", ("row 1", "preference -0.1")),
        ("1 1 2 1 1 2\n1 1 3 2 1 2\n", ("row 2", "preference 2", "probably ranks")),
        ("1 0 2 0.5 1 2\n", ("row 1", "from 1")),
        ("1 1.5 2 0.5 1 2\n", ("row 1", "photo1 is 1.5", "whole number")),
        ("-1 1 2 0.5 1 2\n", ("row 1", "series is -1")),
        ("1 2 2 0.5 1 2\n", ("row 1", "photo 2", "itself")),
    ],
)
def test_invalid_rows(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with user_error("labels", tmp_path, *words):
        read_pair_list(write(tmp_path, text))


def test_lists_in_the_folder_or_in_its_train_val(tmp_path: Path) -> None:
    assert find_pair_lists(tmp_path) == {}
    with user_error("dataset.root", "no train_pairlist.txt", "dataset.labels=votes"):
        read_labels("pairs", tmp_path, None, 0, False, Audit())
    (tmp_path / "train_val").mkdir()
    (tmp_path / "train_val" / "train_pairlist.txt").write_text("")
    assert find_pair_lists(tmp_path) == {"train": tmp_path / "train_val" / "train_pairlist.txt"}
    (tmp_path / "train_val" / "val_pairlist.txt").write_text("")
    assert find_pair_lists(tmp_path / "train_val").keys() == {"train", "val"}


def test_photos_are_identified_by_number_with_any_suffix(tmp_path: Path) -> None:
    index = {name: Entry(1, "", 0) for name in ("000001-02.JPG", "7-1.jpeg", "cover.jpg")}
    assert photo_names(tmp_path, index) == {(1, 2): "000001-02.JPG", (7, 1): "7-1.jpeg"}
    index["1-2.png"] = Entry(1, "", 0)
    with user_error("dataset.root", "000001-02.JPG", "1-2.png", "photo 2 of series 000001"):
        photo_names(tmp_path, index)
    with user_error("dataset.root", tmp_path, "SSSSSS-PP.JPG"):
        find_photo_folder(tmp_path)
    (tmp_path / "000001-02.JPG").touch()
    assert find_photo_folder(tmp_path) == tmp_path / "."


def test_votes_of_both_orders_are_pooled(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        HEAD + "5,0,5-1.JPG,2,5-3.JPG,3,1,4,0\n"
        "5,2,5-3.JPG,0,5-1.JPG,2,2,4,0\n"
        "5,0,5-1.JPG,1,5-2.JPG,1,1,2,1\n"
        "5,1,5-2.JPG,2,5-3.JPG,0,0,0,1\n",
    )
    rows = read_votes(file)
    assert [r.preference for r in rows] == [0.75, 0.5, 0.5, 0.5]
    clear, tie, none = pool_rows(rows)
    assert (clear.pair, clear.preference, clear.votes) == ((5, 1, 3), 5 / 8, 8)
    assert (tie.pair, tie.preference, tie.votes) == ((5, 1, 2), 0.5, 2)
    assert (none.pair, none.votes) == ((5, 2, 3), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("series_id,LEFT\n", ("row 1", "compareID1, compareID2, RIGHT;")),
        (HEAD + "5,0,5-1.JPG,1,5-2.JPG,x,1,1,0\n", ("row 2", "LEFT", "'x'")),
        (HEAD + "5,0,5-1.JPG\n", ("row 2", "compareID2", "''")),
        (HEAD + "5,0,5-1.JPG,1,5-2.JPG,-1,1,1,0\n", ("row 2", "LEFT is -1")),
        (HEAD + "5,0,5-1.JPG,1,5-3.JPG,1,1,2,0\n", ("compareFile2=5-3.JPG", "photo 2 of series 5")),
        (HEAD, ("some.txt", "no votes")),
        (HEAD + '5,"' + ("x" * 60_000 + "\n") * 3, ("some.txt row", "field larger")),
        (HEAD + "5,1e300,5-2.JPG,1,5-2.JPG,1,1,2,0\n", ("row 2", "compareID1 is 1e+300")),
        (HEAD + "5,1,5-2.JPG,1,5-2.JPG,1,1,2,0\n", ("row 2", "photo 2", "itself")),
    ],
)
def test_invalid_tables_of_votes(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with user_error("labels", *words):
        read_votes(write(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"5 1 2 \x80")
    with user_error("labels", file, "is not UTF-8 (line 1)"):
        read_pair_list(file)
    with user_error("dataset.votes_file", "gone.csv", "cannot be read"):
        read_votes(tmp_path / "gone.csv")


votes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans())


@given(st.lists(votes, min_size=1, max_size=6))
def test_pooled_preference_is_the_fraction_of_all_votes(given: list[tuple[int, int, bool]]) -> None:
    rows = []
    for first, second, swap in given:
        total = first + second
        fraction = first / total if total else 0.5
        rows.append(row(1, 2, 1, 1 - fraction, total) if swap else row(1, 1, 2, fraction, total))
    (pooled,) = pool_rows(rows)
    wins = sum(first for first, _, _ in given)
    total = wins + sum(second for _, second, _ in given)
    assert pooled.votes == total
    assert pooled.preference_of_lower == pytest.approx(wins / total if total else 0.5)


many = [row(series, 1, 2, series / 100) for series in range(100)]


@given(seed=st.integers(0, 50), lowest=st.sampled_from([0.0, 0.7]))
def test_no_series_is_in_two_splits(seed: int, lowest: float) -> None:
    repeated = [*many, *(row(series, 1, 3, 0.9) for series in range(100))]
    config = replace(CONFIG, split_seed=seed, min_agreement=lowest)
    selected = select_pairs({"train": repeated}, config).rows
    groups = {split: {r.series for r in rows} for split, rows in selected.items()}
    assert set(groups) == {"train", "val", "test"}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 100
    assert len(groups["val"]) == len(groups["test"]) == 20
    # The filters move no series to another split.
    loose = select_pairs({"train": repeated}, replace(CONFIG, split_seed=seed)).rows
    assert groups == {split: {r.series for r in rows} for split, rows in loose.items()}


def test_the_split_of_the_lists_is_kept_without_leaking_series() -> None:
    lists = {"train": many[:50], "val": [*many[80:], row(3, 1, 2, 0.9)]}
    selection = select_pairs(lists, CONFIG)
    assert {r.series for r in selection.rows["val"]} == {3, *range(80, 100)}
    assert 3 not in {r.series for part in ("train", "test") for r in selection.rows[part]}
    assert selection.skipped["train"] == Counter(leaking_series=1)
    assert len(selection.rows["test"]) == 14  # a fifth of 70 series


def test_filters() -> None:
    rows = [row(1, 1, 2, 0.5, 4), row(2, 1, 2, 0.6, 9), row(3, 1, 2, 0.2, 1), row(4, 1, 2, 0.1, 8)]
    config = replace(CONFIG, ties="drop", min_agreement=0.7, min_reviewers=2)
    lists = {"train": rows, "val": [row(9, 1, 2, 1.0, 5)]}
    selection = select_pairs(lists, replace(config, test_fraction=0.0))
    assert [r.series for r in selection.rows["train"]] == [4]
    assert selection.skipped["train"] == Counter(tie=1, low_agreement=1, few_reviewers=1)
    assert selection.total == Counter(train=4, val=1)


def test_a_tie_of_pooled_votes_is_a_tie() -> None:
    """0:1 and, in the other order, 10:9 are ten votes each; in floats 0.5000000000000001."""
    for first, second in product(range(1, 30), repeat=2):
        if (first + second) % 2 == 0 and second >= first:
            half = (first + second) // 2
            rows = [row(1, 1, 2, 0.0, first), row(1, 2, 1, (second - half) / second, second)]
            (pooled,) = pool_rows(rows)
            assert pooled.preference == 0.5, rows
            assert pool_rows(rows[::-1])[0].preference == 0.5


def test_the_least_agreement_is_the_same_for_both_photos() -> None:
    for cast, lost in ((11, 2), (12, 5), (13, 3), (24, 7), (25, 8), (26, 6)):
        shares = lost / cast, (cast - lost) / cast
        lists = {"train": [row(n, 1, 2, shares[n % 2], cast) for n in range(1, 9)]}
        selection = select_pairs(lists, replace(CONFIG, min_agreement=shares[1]))
        assert sum(len(rows) for rows in selection.rows.values()) == 8, shares


def test_a_pair_without_votes_is_no_tie() -> None:
    rows = [row(1, 1, 2, 0.5, 2), row(2, 1, 2, 0.5, 2)._replace(votes=0)]
    selection = select_pairs({"train": rows}, replace(CONFIG, val_fraction=0.0, test_fraction=0.0))
    assert [r.series for r in selection.rows["train"]] == [1]
    assert selection.skipped["train"] == Counter(no_votes=1)


def test_quick_experiments_use_whole_series_and_are_nested() -> None:
    def series(quick: float | None) -> dict[str, set[int]]:
        selected = select_pairs({"train": many}, replace(CONFIG, quick=quick)).rows
        return {split: {r.series for r in rows} for split, rows in selected.items()}

    everything, tenth, half = series(None), series(0.1), series(0.5)
    assert {split: len(numbers) for split, numbers in tenth.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    for split in everything:
        assert tenth[split] < half[split] < everything[split]
    assert series(0.1) == tenth


def test_fractions_that_leave_nothing_for_training() -> None:
    with user_error("dataset.val_fraction", "100 series", "dataset.test_fraction"):
        select_pairs({"train": many}, replace(CONFIG, val_fraction=0.5, test_fraction=0.5))
