"""The exceptions that stand for a user's mistake and for a damaged file."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's configuration or data, told in one line.

    The message says what is wrong, where (file, key, row) and what to do. Commands print it
    as ``error: …`` and exit with status 2; a traceback would only hide it. What files and command
    lines say may stand in it, so it is kept printable and short.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class NotFinite(UserError):
    """A loss that is no number any more; what a range test looks for."""


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
