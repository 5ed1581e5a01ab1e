"""Exceptions for a user's mistake and for a damaged file."""

from __future__ import annotations

from collections.abc import Iterator

from research.utils.secrets import redact


class UserError(Exception):
    """A mistake in the user's configuration, command line or data, reported in one line.

    Commands print it as ``error: MESSAGE; HINT`` and exit with status 2, without a traceback.
    The text may contain parts of files and command lines, so secrets in it are hidden, control
    characters are replaced and it is cut to ``MAX_LENGTH`` characters.

    Attributes:
        key: what the error is about: a configuration key (``dataset.fold``), an option or
            positional argument of a command (``out``, ``RUN``), or a kind of file
            (``checkpoint``, ``labels``).
        message: what is wrong and where (file, key, row).
        hint: what to do; empty if the message already says it.
    """

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        self.key = key
        self.message = message
        self.hint = hint
        super().__init__(printable(redact(f"{message}; {hint}" if hint else message)))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.key, self.message, self.hint)  # from workers and jobs


class Damaged(UserError):
    """A file of a run is missing, or its content is not what was written."""


class NotFinite(UserError):
    """A loss is infinite or NaN."""


class DamagedImage(Exception):
    """A file that cannot be read as an image; it is skipped and counted under ``kind``.

    Attributes:
        kind: one snake_case word: ``empty``, ``not_an_image``, ``truncated``, ``oversized``,
            ``too_small`` or ``unreadable``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


MAX_LENGTH = 4000
"""Of a message, in characters."""


def printable(text: str) -> str:
    """The text in one line, with control characters replaced, cut to ``MAX_LENGTH``."""
    line = "".join(char if char.isprintable() else " " for char in text[: 2 * MAX_LENGTH])
    return line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]}…"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from, such as a library's and its driver's."""
    while error is not None:
        yield error
        error = error.__cause__


def one_line(error: Exception) -> str:
    """The message of a library's exception in one short line; the class name if it is empty."""
    return " ".join(redact(str(error)).split())[:160] or type(error).__name__
