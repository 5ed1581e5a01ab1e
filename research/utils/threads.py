"""Processes many files in threads, for work that releases the GIL: reading, decoding, hashing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from research.utils.progress import Phase

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 512
"""Items submitted to the pool at a time; futures for a million items need much memory."""


def map_threads(
    function: Callable[[T], R],
    items: Sequence[T],
    threads: int | None,
    what: str,
    unit: str = "files",
) -> Iterator[R]:
    """``function`` of each item, in the order of the items.

    Args:
        function: must be safe to call in several threads.
        items: its arguments.
        threads: number of threads; ``None`` for the default of ``ThreadPoolExecutor``.
        what: the work, while its progress is shown.
        unit: name of the items.
    """
    with ThreadPoolExecutor(threads) as pool, Phase(what, len(items), unit) as phase:
        for start in range(0, len(items), AT_ONCE):
            results = pool.map(function, items[start : start + AT_ONCE])
            for done, result in enumerate(results, start + 1):
                yield result
                phase.update(done)
