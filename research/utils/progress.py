"""Progress of long work: a line now and then in a log; ``research.utils.bars`` on a terminal.

    for file in track(files, "hashing files"):
        ...

    with Phase("writing shards", samples, "samples") as phase:
        phase.update(done)

What takes long opens a phase itself: its callers pass nothing on. Phases may be nested. Work that
is done within seconds shows nothing.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import takewhile
from types import TracebackType
from typing import Final, TypeVar

from research.utils.errors import printable
from research.utils.pace import Pace

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S", bound=Sized)

SECONDS_BETWEEN_LINES: Final = 30.0
SECONDS_BEFORE_METRICS: Final = 2.0
"""Work that takes less shows none."""
FRACTION: Final = 0.01
"""Of the time of a phase, at most, for the values that its line shows."""
SHORTEST_BAR: Final = 6
LONGEST_BAR: Final = 40
"""Characters."""
GAP: Final = "  "
SLOW: Final = 0.1
"""Items per second, below which the time of an item is shown."""
_open: list[Phase] = []
_closed = 0.0


class Phase:
    """A part of the work that may take long; it is shown from its creation until ``close``.

    Args:
        name: what is done, at most about 30 characters.
        total: number of items; None if it is not known.
        unit: name of the items.
        first: number of items that were done before.

    Attributes:
        done: number of items done.
        rate: samples per second; None: items per second are shown.
        metrics: current values, the most important first.
        start: ``time.monotonic`` when it was created.
    """

    def __init__(
        self, name: str, total: int | None = None, unit: str = "files", first: int = 0
    ) -> None:
        self.name = printable(name)
        self.total = total
        self.unit = unit
        self.first = first
        self.done = first
        self.rate: float | None = None
        self.metrics: Mapping[str, float] = {}
        self.start = time.monotonic()
        self.next_line = self.start + SECONDS_BETWEEN_LINES
        _open.append(self)

    def update(
        self, done: int, rate: float | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Called often, after each item or some of them."""
        self.done, self.rate, self.metrics = done, rate, metrics or {}
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + SECONDS_BETWEEN_LINES
            outer = takewhile(lambda phase: phase is not self, _open)
            above = "".join(f"{phase.name} {phase.position}: " for phase in outer)
            # ``research.utils.logs`` drops it on a terminal with bars.
            log.info("%s%s", above, line(self, now), extra={"is_progress": True})

    def close(self) -> None:
        """End this phase; does nothing the second time."""
        global _closed
        if self in _open:
            _open.remove(self)
            _closed = time.monotonic()

    def __enter__(self) -> Phase:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def position(self) -> str:
        """Items done, of all; empty for work without items."""
        if self.total is None:
            return str(self.done) if self.done else ""
        return f"{self.done:>{len(str(self.total))}}/{self.total}"

    @property
    def fraction(self) -> float | None:
        """How much is done, 0…1; None if it is not known."""
        return None if not self.total else min(1.0, self.done / self.total)


def track(
    items: Iterable[T], name: str, total: int | None = None, unit: str = "files"
) -> Iterator[T]:
    """The items, while a phase shows how many of them are done.

    Args:
        items: the items.
        name: what is done.
        total: number of items; None for their length, if they have one.
        unit: name of the items.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Phase(name, total, unit) as phase:
        for done, item in enumerate(items, start=1):
            yield item
            phase.update(done)


def track_batches(
    batches: Iterable[S],
    name: str,
    total: int,
    metrics: Callable[[], Mapping[str, float]] = dict,
) -> Iterator[S]:
    """The same for batches, whose length is the number of their samples: of these is the rate.

    Args:
        batches: the batches.
        name: what is done.
        total: number of batches.
        metrics: current values, the most important first; computed now and then, in at most
            ``FRACTION`` of the time, so that they may be expensive.
    """
    samples, pace = 0, Pace()
    values: Mapping[str, float] = {}
    with Phase(name, total, "batches") as phase:
        for done, batch in enumerate(batches, start=1):
            yield batch
            samples += len(batch)
            seconds = time.monotonic() - phase.start
            if seconds >= SECONDS_BEFORE_METRICS and pace.is_due:
                with pace.spent(FRACTION):
                    values = metrics()
            phase.update(done, samples / max(1e-9, seconds), values)


def open_phases() -> tuple[Phase, ...]:
    """The phases that are open, the outermost first."""
    return tuple(_open)


def last_close() -> float:
    """``time.monotonic`` when a phase was closed last."""
    return _closed


@contextmanager
def contained() -> Iterator[None]:
    """Close what was opened inside, also if an exception has left it open; also a decorator."""
    outer = open_phases()
    try:
        yield
    finally:
        for phase in open_phases():
            if phase not in outer:
                phase.close()


def line(phase: Phase, now: float, width: int | None = None) -> str:
    """A phase in one line: name, percentage, position, rate, time left, metrics.

    In a narrow terminal, words of units and all metrics but the first are left out, then spaces,
    and then the end of the name.

    Args:
        phase: to show.
        now: ``time.monotonic``.
        width: characters of the line; a bar fills those that are left. None: any number, no bar.
    """
    words = list(_words(phase, now))
    metrics = [f"{name} {value:.4g}" for name, value in phase.metrics.items()]
    most = sys.maxsize if width is None else width
    long, short = ([each[which] for each in words] for which in (0, 1))
    first = metrics[:1]
    for parts, gap in (
        ([*long, *metrics], GAP),
        ([*short, *metrics], GAP),
        ([*short, *first], GAP),
        ([*short, *first], " "),
    ):
        text = gap.join([phase.name, *parts])
        if len(text) <= most:
            break
    else:
        name = phase.name[: max(1, len(phase.name) - 1 - (len(text) - most))] + "…"
        return (name + text.removeprefix(phase.name))[:most]
    bar = 0 if width is None else min(LONGEST_BAR, width - len(text) - len(GAP))
    if phase.fraction is None or bar < SHORTEST_BAR:
        return text
    full = round(bar * phase.fraction)
    return GAP.join([phase.name, "━" * full + "╌" * (bar - full)]) + text.removeprefix(phase.name)


def _words(phase: Phase, now: float) -> Iterator[tuple[str, str]]:
    """Percentage, position, rate and time, each with and without the words of its unit."""
    seconds, new = now - phase.start, phase.done - phase.first
    if phase.fraction is not None:
        yield (f"{int(100 * phase.fraction):3}%",) * 2
    if phase.position:
        yield f"{phase.position} {phase.unit}", phase.position
    rate, unit = phase.rate, "samples"
    if rate is None:
        rate, unit = new / max(1e-9, seconds), phase.unit
    if 0 < rate < SLOW:
        yield (f"{duration(1 / rate)} each",) * 2
    elif rate:
        number = f"{rate:.0f}" if rate >= 100 else f"{rate:.2g}" if rate < 10 else f"{rate:.1f}"
        yield f"{number} {unit}/s", f"{number}/s"
    if phase.total and new:
        left = seconds / new * max(0, phase.total - phase.done)
        yield (f"{duration(left)} left",) * 2
    else:
        yield (duration(seconds),) * 2


def duration(seconds: float) -> str:
    """``0:07``, ``12:34``, ``1:02:03``, ``2d 03h``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
