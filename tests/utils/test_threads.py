from __future__ import annotations

import threading

import pytest

from research.utils import threads
from research.utils.threads import map_threads
from tests.conftest import Update


def test_results_are_in_order_and_progress_counts_them(
    monkeypatch: pytest.MonkeyPatch, updates: list[Update]
) -> None:
    monkeypatch.setattr(threads, "AT_ONCE", 3)
    found = map_threads(str, range(7), 2, "counting")
    assert list(found) == ["0", "1", "2", "3", "4", "5", "6"]
    assert updates == [("counting", done, 7) for done in range(1, 8)]
    assert list(map_threads(str, [], None, "nothing")) == []


def test_an_error_comes_through_and_stops_the_work() -> None:
    started: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            started.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    with pytest.raises(ValueError, match="two"):
        list(map_threads(work, range(5000), 1, "work"))
    assert len(started) < 5000
