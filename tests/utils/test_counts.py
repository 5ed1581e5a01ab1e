from __future__ import annotations

import pytest

from research.utils.counts import counted, samples_of, spanned, with_n


def test_the_split_of_a_metric_says_which_count() -> None:
    row = {"train/n": 2040, "val/n": 480, "val/top1": 0.5}
    assert [samples_of(row, name) for name in ("val/top1", "train/loss")] == [480, 2040]
    assert samples_of({"val/top1": 0.5}, "val/top1") is None
    assert samples_of(row, "latency_ms") is None


@pytest.mark.parametrize(("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs")])
def test_a_count_has_the_number_of_its_unit(count: int, text: str) -> None:
    assert counted(count, "runs") == text


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
