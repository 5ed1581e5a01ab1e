"""Bars on a terminal for the phases of ``research.utils.progress``, below all other output.

A thread draws them on standard error, so that work only stores its position. What is written to
standard output or error removes them first; they come back when it ends with a line. Elsewhere than
on a terminal nothing is changed.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, TextIO

from research.utils import progress, terminal

QUIET: Final = 1.0
"""Seconds of a phase, and without other output, before it is shown."""
INTERVAL: Final = 0.25
"""Seconds between two looks at the phases; only what has changed is drawn."""
WORKING: Final = "working"
"""Shown while no phase is open: imports, building a network, drawing pictures."""
UP: Final = "\x1b[A"
CLEAR: Final = "\r\x1b[J"
"""Erases the line of the cursor and all below."""
ASCII: Final = str.maketrans("━╌…", "=-~")
FULL: Final = re.compile("━+")


class Bars:
    """Draws the open phases on a terminal, a line for each.

    Args:
        stream: of the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_unicode = (stream.encoding or "").lower().startswith("utf")
        self.lock = threading.RLock()
        self.drawn = ""
        self.is_line_start = True
        self.last_output = time.monotonic()
        self.ended = False

    def hide(self, written: str) -> None:
        """Called before ``written`` is written to the terminal."""
        with self.lock:
            if not self.ended and written:
                self._draw("")
                self.is_line_start = written.endswith("\n")
                self.last_output = time.monotonic()

    def tick(self, now: float) -> None:
        """Draw what is to be shown, unless it is there already."""
        with self.lock:
            # What others have written stays a second; a line that has not ended stays.
            if self.ended or not self.is_line_start or now - self.last_output < QUIET:
                return
            most = terminal.width(self.stream) - 1
            phases = [each for each in progress.open_phases() if now - each.start >= QUIET]
            lines = [progress.line(phase, now, most) for phase in phases]
            idle = now - max(self.last_output, progress.last_close())
            if not lines and idle >= QUIET:
                lines = [f"{WORKING}  {progress.duration(idle)}"[:most]]
            self._draw("\n".join(lines))

    def end(self) -> None:
        """Remove the bars for good."""
        with self.lock:
            if not self.ended:
                self._draw("")
            self.ended = True

    def _draw(self, text: str) -> None:
        if text == self.drawn:
            return
        shown = FULL.sub(lambda part: terminal.styled(part[0], terminal.CYAN, self.stream), text)
        if not self.is_unicode:
            shown = shown.translate(ASCII)
        try:
            self.stream.write(UP * self.drawn.count("\n") + CLEAR + shown)
            self.stream.flush()
        except OSError:  # the terminal was closed
            self.ended = True
        self.drawn = text


class Above:
    """A standard stream: the bars are removed before something is written to it."""

    def __init__(self, stream: TextIO, bars: Bars) -> None:
        self.stream = stream
        self.bars = bars

    def write(self, text: str) -> int:
        self.bars.hide(text)
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_shown: Bars | None = None


def show() -> None:
    """Show bars until the process ends, if standard error is a terminal; called by commands."""
    global _shown
    if _shown is not None or not terminal.has_controls(sys.stderr):
        return
    bars = _shown = Bars(sys.stderr)
    # Also where standard output is a pipe, whose reader may write to the terminal.
    sys.stdout, sys.stderr = Above(sys.stdout, bars), Above(sys.stderr, bars)

    def draw() -> None:
        while not bars.ended:
            time.sleep(INTERVAL)
            bars.tick(time.monotonic())

    def leave_terminal() -> None:
        bars.ended = True
        bars.lock.release()

    # A lock of the thread, or of its stream, would stay locked in a forked process for ever.
    os.register_at_fork(
        before=bars.lock.acquire, after_in_parent=bars.lock.release, after_in_child=leave_terminal
    )
    atexit.register(bars.end)
    threading.Thread(target=draw, name="bars", daemon=True).start()


def end() -> None:
    """Show no bars any more, for other processes that write to the terminal."""
    if _shown is not None:
        _shown.end()


def are_shown() -> bool:
    """Whether this process shows bars, so that a terminal needs no lines about progress."""
    return _shown is not None and not _shown.ended
