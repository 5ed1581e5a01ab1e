"""Limits the time that what is repeated beside the work may take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Limits the fraction of time that a repeated action takes.

    Attributes:
        is_due: whether the fraction allows it again.
    """

    def __init__(self) -> None:
        self._next = -math.inf

    @property
    def is_due(self) -> bool:
        return time.perf_counter() >= self._next

    @contextmanager
    def spent(self, fraction: float) -> Iterator[None]:
        """Time the action inside, which may take ``fraction`` of all time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self._next = end + (end - start) / fraction
