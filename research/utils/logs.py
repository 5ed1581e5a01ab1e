"""Logging to the terminal and to a file in the run folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from research.utils import bars
from research.utils.launch import process_prefix


def to_terminal(stream: TextIO | None = None, rank: int = 0) -> None:
    """Log INFO of this project and warnings of other libraries; may be called more than once.

    Args:
        stream: None: standard output.
        rank: of this process among those of a run; those after 0 log warnings only.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Terminal) for handler in root.handlers):
        handler = _Terminal(stream or sys.stdout)
        handler.setFormatter(logging.Formatter(process_prefix(rank) + "%(message)s"))
        handler.addFilter(handler.is_needed)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("research").setLevel(logging.WARNING if rank else logging.INFO)
    # Alembic logs hundreds of INFO lines when an MLflow store is created.
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def to_file(folder: Path, rank: int = 0) -> Iterator[None]:
    """Log the same lines with dates to ``folder/train.log``, and the traceback of an exception.

    All processes append to it.
    """
    handler = _RunLog(folder / "train.log", encoding="utf-8")
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {process_prefix(rank)}%(message)s")
    )
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        # Only in the file: the terminal shows one line for a UserError.
        trace = (type(error), error, error.__traceback__)
        handler.handle(
            logging.LogRecord(__name__, logging.ERROR, __file__, 0, "%s", (error,), trace)
        )
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):  # a full disk
            handler.close()


class _Terminal(logging.StreamHandler[TextIO]):
    """Fits lines to a terminal; elsewhere they stay as they are.

    Of a record with ``parts``, its text in parts, none is broken; ``is_progress`` marks a record
    that bars make superfluous.
    """

    def is_needed(self, record: logging.LogRecord) -> bool:
        superfluous = getattr(record, "is_progress", False) and bars.are_shown()
        return not (superfluous and self.stream.isatty())

    def format(self, record: logging.LogRecord) -> str:
        parts: list[str] = getattr(record, "parts", [])
        if not parts or not self.stream.isatty():
            return super().format(record)
        return "\n".join(wrapped(parts, bars.width(self.stream)))


def wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Lines of unbroken parts, two spaces apart; all lines but the first are indented by four."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 2 + len(part) > width:
            lines.append(f"    {part}")
        else:
            lines[-1] += f"  {part}"
    return lines


class _RunLog(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop lines that the disk does not accept: the run's own files end the run for it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
