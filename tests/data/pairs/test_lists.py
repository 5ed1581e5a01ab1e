from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.index import Entry
from research.data.pairs.lists import (
    Row,
    find_lists,
    has_lists,
    image_folder,
    photo_files,
    pooled,
    read_list,
    read_votes,
)
from research.data.pairs.select import Rules, select
from research.utils.errors import UserError

HEAD = "series_id,compareID1,compareFile1,compareID2,compareFile2,LEFT,RIGHT,Total,MaxVote\n"
RULES = Rules("soft", 0.0, 0, 0.2, 0.2, 0, None, 0, None)


def row(series: int, first: int, second: int, preference: float, votes: int = 0) -> Row:
    return Row("list row 1", series, first, second, preference, votes, None)


def write(root: Path, text: str) -> Path:
    file = root / "some.txt"
    file.write_text(text)
    return file


def test_rows_of_the_official_list(tmp_path: Path) -> None:
    file = write(tmp_path, "1 1 2 0.9032 2 3\n\n12 1 3 0.16 2 1\r\n")
    one, two = read_list(file)
    assert one == Row(f"{file} row 1", 1, 1, 2, 0.9032, 0, (2.0, 3.0))
    assert (two.where, two.pair, two.agreement) == (f"{file} row 3", (12, 1, 3), 0.84)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1 2 0.5\n", "row 1: 4 columns; expected series photo1 photo2 preference rank1 rank2"),
        ("1 1 2 0.5 1 2 3\n", "row 1: 7 columns"),
        ("1 1 2 x 1 2\n", "row 1: preference is 'x'; expected a number"),
        ("1 1 2 nan 1 2\n", "row 1: preference is 'nan'"),
        ("1 1 2 0.4 1 2\n1 1 2 1.2 1 2\n", "row 2: preference 1.2 is not in 0…1; give the share"),
        ("1 1 2 -0.1 1 2\n", "row 1: preference -0.1 is not in"),
        ("1 1 2 1 1 2\n1 1 3 2 1 2\n", "row 2: preference 2 is not in 0…1; .* likely ranks"),
        ("1 0 2 0.5 1 2\n", "row 1: a photo is 0; photos are numbered from 1"),
        ("1 1.5 2 0.5 1 2\n", r"row 1: photo1 is 1.5; expected a whole number"),
        ("-1 1 2 0.5 1 2\n", "row 1: series is -1"),
        ("1 2 2 0.5 1 2\n", "row 1: photo 2 is compared with itself"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_list(write(tmp_path, text))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_lie_in_the_folder_or_in_its_train_val(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no train_pairlist.txt, .*dataset.labels=votes"):
        find_lists(tmp_path)
    assert not has_lists(tmp_path)
    (tmp_path / "train_val").mkdir()
    (tmp_path / "train_val" / "train_pairlist.txt").write_text("")
    assert find_lists(tmp_path) == {"train": tmp_path / "train_val" / "train_pairlist.txt"}
    (tmp_path / "train_val" / "val_pairlist.txt").write_text("")
    assert find_lists(tmp_path / "train_val").keys() == {"train", "val"}


def test_photos_are_told_by_their_numbers_whatever_their_suffix(tmp_path: Path) -> None:
    index = {name: Entry(1, 1, "") for name in ("000001-02.JPG", "7-1.jpeg", "cover.jpg")}
    assert photo_files(tmp_path, index) == {(1, 2): "000001-02.JPG", (7, 1): "7-1.jpeg"}
    index["1-2.png"] = Entry(1, 1, "")
    with pytest.raises(UserError, match=r"000001-02.JPG and 1-2.png are both photo 2 of series"):
        photo_files(tmp_path, index)
    with pytest.raises(UserError, match=r"holds no photos SSSSSS-PP.JPG"):
        image_folder(tmp_path)
    (tmp_path / "000001-02.JPG").touch()
    assert image_folder(tmp_path) == tmp_path / "."


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
    whole, tie, none = pooled(rows)
    assert (whole.pair, whole.preference, whole.votes) == ((5, 1, 3), 5 / 8, 8)
    assert (tie.pair, tie.preference, tie.votes) == ((5, 1, 2), 0.5, 2)
    assert (none.pair, none.votes) == ((5, 2, 3), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("series_id,LEFT\n", "row 1: no column compareID1, compareID2, RIGHT; a table of votes"),
        (HEAD + "5,0,5-1.JPG,1,5-2.JPG,x,1,1,0\n", "row 2: LEFT is 'x'; expected a number"),
        (HEAD + "5,0,5-1.JPG\n", "row 2: compareID2 is ''"),
        (HEAD + "5,0,5-1.JPG,1,5-2.JPG,-1,1,1,0\n", "row 2: LEFT is -1"),
        (HEAD + "5,0,5-1.JPG,1,5-3.JPG,1,1,2,0\n", "compareFile2=5-3.JPG, .* photo 2 of series 5"),
        (HEAD, "some.txt: no vote in it"),
        (HEAD + "5,1,5-2.JPG,1,5-2.JPG,1,1,2,0\n", "row 2: photo 2 is compared with itself"),
    ],
)
def test_tables_of_votes_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_votes(write(tmp_path, text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"list.txt: cannot be read"):
        read_list(file)


votes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans())


@given(st.lists(votes, min_size=1, max_size=6))
def test_pooled_is_the_share_of_all_votes(given: list[tuple[int, int, bool]]) -> None:
    rows = []
    for first, second, turned in given:
        of = first + second
        share = first / of if of else 0.5
        rows.append(row(1, 2, 1, 1 - share, of) if turned else row(1, 1, 2, share, of))
    (found,) = pooled(rows)
    mine = sum(first for first, _, _ in given)
    total = mine + sum(second for _, second, _ in given)
    assert found.votes == total
    assert found.preference_of_lower == pytest.approx(mine / total if total else 0.5)


many = [row(series, 1, 2, series / 100) for series in range(100)]


@given(seed=st.integers(0, 50), lowest=st.sampled_from([0.0, 0.7]))
def test_no_series_is_in_two_splits(seed: int, lowest: float) -> None:
    repeated = [*many, *(row(series, 1, 3, 0.9) for series in range(100))]
    rules = replace(RULES, split_seed=seed, min_agreement=lowest)
    found = select({"train": repeated}, rules).rows
    groups = {split: {r.series for r in rows} for split, rows in found.items()}
    assert set(groups) == {"train", "val", "test"}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 100
    assert len(groups["val"]) == len(groups["test"]) == 20
    # What is asked of a pair moves none to another split.
    loose = select({"train": repeated}, replace(RULES, split_seed=seed)).rows
    assert groups == {split: {r.series for r in rows} for split, rows in loose.items()}


def test_the_lists_own_split_is_kept_and_a_leak_is_closed() -> None:
    lists = {"train": many[:50], "val": [*many[80:], row(3, 1, 2, 0.9)]}
    found = select(lists, RULES)
    assert {r.series for r in found.rows["val"]} == {3, *range(80, 100)}
    assert 3 not in {r.series for part in ("train", "test") for r in found.rows[part]}
    assert found.left_out["train"] == Counter(leaking_series=1)
    assert len(found.rows["test"]) == 14  # a fifth of 70 series


def test_what_is_asked_of_a_pair() -> None:
    rows = [row(1, 1, 2, 0.5, 4), row(2, 1, 2, 0.6, 9), row(3, 1, 2, 0.2, 1), row(4, 1, 2, 0.1, 8)]
    rules = replace(RULES, ties="drop", min_agreement=0.7, min_reviewers=2)
    lists = {"train": rows, "val": [row(9, 1, 2, 1.0, 5)]}
    found = select(lists, replace(rules, test_fraction=0.0))
    assert [r.series for r in found.rows["train"]] == [4]
    assert found.left_out["train"] == Counter(tie=1, low_agreement=1, few_reviewers=1)
    assert found.read == Counter(train=4, val=1)


def test_quick_experiments_keep_whole_series_and_grow() -> None:
    def kept(share: float | None) -> dict[str, set[int]]:
        found = select({"train": many}, replace(RULES, quick=share)).rows
        return {split: {r.series for r in rows} for split, rows in found.items()}

    whole, tenth, half = kept(None), kept(0.1), kept(0.5)
    assert {split: len(numbers) for split, numbers in tenth.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    for split in whole:
        assert tenth[split] < half[split] < whole[split]
    assert kept(0.1) == tenth


def test_shares_that_leave_nothing() -> None:
    with pytest.raises(UserError, match=r"leave none of 100 series .*dataset.val_fraction"):
        select({"train": many}, replace(RULES, val_fraction=0.5, test_fraction=0.5))
