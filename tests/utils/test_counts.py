from __future__ import annotations

import pytest

from research.utils.counts import by_kind, counted, samples_of, spanned, with_n


def test_the_split_of_a_metric_says_which_count() -> None:
    row = {"train/n": 2040, "val/n": 480, "val/top1": 0.5}
    assert [samples_of(row, name) for name in ("val/top1", "train/loss")] == [480, 2040]
    assert samples_of({"val/top1": 0.5}, "val/top1") is None
    assert samples_of(row, "latency_ms") is None


@pytest.mark.parametrize(
    ("unit", "one"),
    [
        ("runs", "run"), ("label files", "label file"), ("classes", "class"), ("boxes", "box"),
        ("batches", "batch"), ("entries", "entry"), ("series", "series"), ("fish", "fish"),
    ],
)  # fmt: skip
def test_a_count_has_the_number_of_its_unit(unit: str, one: str) -> None:
    assert [counted(n, unit) for n in (0, 1, 2)] == [f"0 {unit}", f"1 {one}", f"2 {unit}"]


def test_counts_by_kind() -> None:
    """The largest first; of equal ones in the order in which they came; none without a count."""
    counts = {"a": 1, "truncated": 3, "b": 0, "hidden": 1}
    assert by_kind(counts) == "3 truncated, 1 a, 1 hidden"
    assert by_kind({}) == ""


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((), ""), ((None,), ""), ((480,), "480"), ((480, None, 480), "480"),
        ((480, 96, 200), "96…480"),
    ],
)  # fmt: skip
def test_counts_as_text(counts: tuple[int | None, ...], text: str) -> None:
    assert spanned(*counts) == text
    assert with_n("top1", *counts) == (f"top1 (n={text})" if text else "top1")
    assert with_n("top1", *counts, unit="pairs") == (f"top1 (n={text} pairs)" if text else "top1")
