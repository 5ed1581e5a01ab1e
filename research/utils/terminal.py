"""What a terminal can show: its width, and whether text may be coloured."""

from __future__ import annotations

import os
from typing import Final, TextIO

BOLD: Final = "\x1b[1m"
CYAN: Final = "\x1b[36m"
RESET: Final = "\x1b[0m"
DUMB: Final = "dumb"
"""The value of ``TERM`` of a terminal without control codes, such as that of an editor."""


def width(stream: TextIO) -> int:
    """Characters of a line of a terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def has_controls(stream: TextIO) -> bool:
    """Whether a stream is a terminal that understands control codes."""
    return stream.isatty() and os.environ.get("TERM") != DUMB


def styled(text: str, style: str, stream: TextIO) -> str:
    """A text in ``BOLD`` or ``CYAN`` on a terminal, unless ``NO_COLOR`` is set (no-color.org)."""
    plain = not text or not has_controls(stream) or bool(os.environ.get("NO_COLOR"))
    return text if plain else f"{style}{text}{RESET}"
