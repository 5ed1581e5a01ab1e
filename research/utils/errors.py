"""The exceptions that stand for a user's mistake and for a damaged file."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's configuration, command line or data, reported in one line.

    Commands print it as ``error: MESSAGE; HINT`` and exit with status 2, without a traceback.
    Text from files and command lines may be part of it, so it is made printable and cut to
    ``LONGEST`` characters.

    Attributes:
        key: what is wrong: a key of the configuration (``dataset.fold``), an option or positional
            word of a command (``out``, ``RUN``), or the kind of file (``checkpoint``, ``labels``).
        message: what is wrong and where (file, key, row).
        hint: what to do; empty where the message says it.
    """

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        self.key = key
        self.message = message
        self.hint = hint
        super().__init__(printable(f"{message}; {hint}" if hint else message))


class NotFinite(UserError):
    """A loss that is infinite or not a number."""


class DamagedImage(Exception):
    """A file that cannot be read as an image; it is left out and counted under ``kind``.

    Attributes:
        kind: one snake_case word: ``empty``, ``not_an_image``, ``truncated``, ``oversized``,
            ``too_small`` or ``unreadable``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


LONGEST = 4000
"""Characters of a message."""


def printable(text: str) -> str:
    """A text in one line, without characters that a terminal would act upon, and not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * LONGEST])
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def one_line(error: Exception) -> str:
    """What a library's exception says, short and in one line; its name when it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__
