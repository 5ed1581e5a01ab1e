"""The clock and the phases of tests of progress."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from research.utils import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    for phase in progress.open_phases():  # of a test that broke an epoch off
        phase.close()
    with progress.contained():
        yield
