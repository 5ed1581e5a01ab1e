from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from research.benchmarks import loaders


def test_each_candidate_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that of a store keeps freed memory, as a run does."""
    kept: list[int] = []
    monkeypatch.setattr(loaders, "keep_freed_memory", lambda: kept.append(1))
    with ExitStack() as stack:
        found = loaders.side_by_side(
            {
                "timm": lambda: float(os.getpid()),
                "timm, settings": lambda: float(len(kept)),
                "broken": lambda: 1 / 0,
            },
            {
                "store": lambda: float(os.getpid()),
                "store, settings": lambda: float(len(kept)),
            },
            stack,
        )
        processes = [found[name]() for name in ("timm", "store")]
        assert len({os.getpid(), *processes}) == 3
        assert [found[name]() for name in ("timm", "store")] == processes
        assert found["timm, settings"]() == 0
        assert found["store, settings"]() == 1
        with pytest.raises(ZeroDivisionError):  # its error, not that of a closed connection
            found["broken"]()
    assert not kept
