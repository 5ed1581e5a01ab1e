from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from research.data.folds import fold_splits
from tests.conftest import user_error


@given(
    sizes=st.lists(st.integers(1, 20), min_size=3, max_size=30),
    folds=st.integers(3, 6),
    order=st.randoms(),
)
def test_every_group_is_tested_once_and_parts_are_even(
    sizes: list[int], folds: int, order: object
) -> None:
    named = {f"{number:02d}": size for number, size in enumerate(sizes)}
    folds = min(folds, len(named))
    every = [fold_splits(named, folds, fold, "groups") for fold in range(folds)]
    tested = [{name for name in named if splits[name] == "test"} for splits in every]
    assert sorted(name for part in tested for name in part) == sorted(named)
    for fold, splits in enumerate(every):
        held = {name for name in named if splits[name] == "val"}
        assert held == tested[(fold + 1) % folds]
    filled = [sum(named[name] for name in part) for part in tested]
    assert max(filled) - min(filled) <= max(sizes)
    shuffled = list(named)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fold_splits({name: named[name] for name in shuffled}, folds, 0, "groups") == every[0]


def test_the_largest_group_comes_first() -> None:
    splits = fold_splits({"a": 1, "b": 5, "c": 2, "d": 2, "e": 1}, 3, 0, "groups")
    assert splits == {"b": "test", "c": "val", "d": "train", "a": "val", "e": "train"}


def test_groups_are_not_divided() -> None:
    with user_error("dataset.folds", 3, "2 series"):
        fold_splits({"a": 9, "b": 9}, 3, 0, "series")
    with user_error("dataset.folds", 4, "dataset.folds=3"):
        fold_splits({"a": 9, "b": 9, "c": 9}, 4, 0, "series")
