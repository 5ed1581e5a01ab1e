"""Signals that end a run: the step is finished, the state saved, the exit status 128 + signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from research.data.workers import SIGNALS


class Interrupted(KeyboardInterrupt):
    """Raised for a signal, whose number is ``args[0]``."""


class Interrupts:
    """Handlers of ``SIGNALS``, while it is used as a context manager.

    A signal raises ``Interrupted`` at once, or at the next ``check`` while ``deferred``. A second
    signal ends the process at once; files are written atomically, so that it harms nothing.
    Ignored signals stay ignored: ``nohup`` ignores SIGHUP, shells ignore SIGINT in the background.

    Args:
        repeated: whether the same signal may come twice, and is then ignored: a launcher passes on
            what its processes have received as well. It kills those that do not end.
    """

    def __init__(self, *, repeated: bool = False) -> None:
        self.repeated = repeated
        self.requested = 0
        self.is_deferred = False

    def __enter__(self) -> Interrupts:
        handled = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
        self.former = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # One of several processes that ends with an error prints it before the signal ends it that
        # the launcher sends to all when the first has ended.
        is_ending = self.repeated and kind is not None
        for number, handler in self.former.items():
            signal.signal(number, signal.SIG_IGN if is_ending else handler)

    def check(self) -> None:
        """Raise ``Interrupted`` if there was a signal."""
        if self.requested:
            raise Interrupted(self.requested)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals to the next ``check``."""
        before, self.is_deferred = self.is_deferred, True
        try:
            yield
        finally:
            self.is_deferred = before

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within ``deferred``: raise signals at once, also one that came before."""
        before, self.is_deferred = self.is_deferred, False
        try:
            self.check()
            yield
        finally:
            self.is_deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if self.repeated:
                return
            os._exit(128 + number)
        self.requested = number
        if not self.is_deferred:
            raise Interrupted(number)


def terminate_as_interrupt() -> None:
    """Handle SIGTERM, as sent by schedulers, like Ctrl-C, in a process that runs no training."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    signal.signal(signal.SIGTERM, interrupt)
