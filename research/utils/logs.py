"""Logging to the terminal and to a file in the run folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

from research.utils import bars, terminal
from research.utils.launch import process_prefix
from research.utils.progress import GAP

RESULT: Final = {"is_result": True}
"""``extra`` of a record that is what the command was run for: it is on standard output."""


def to_terminal(rank: int = 0) -> None:
    """Log INFO of this project and warnings of other libraries; may be called more than once.

    Logs are on standard error, a ``RESULT`` on standard output, where commands print theirs.

    Args:
        rank: of this process among those of a run; those after 0 log warnings only.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Terminal) for handler in root.handlers):
        for stream, of_results in ((sys.stderr, False), (sys.stdout, True)):
            handler = _Terminal(stream, of_results=of_results)
            handler.setFormatter(logging.Formatter(process_prefix(rank) + "%(message)s"))
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

    Args:
        stream: where to.
        of_results: take each ``RESULT``; False: all other records.
    """

    def __init__(self, stream: TextIO, *, of_results: bool) -> None:
        super().__init__(stream)
        self.addFilter(lambda record: getattr(record, "is_result", False) is of_results)
        self.addFilter(self._is_needed)

    def _is_needed(self, record: logging.LogRecord) -> bool:
        superfluous = getattr(record, "is_progress", False) and bars.are_shown()
        return not (superfluous and self.stream.isatty())

    def format(self, record: logging.LogRecord) -> str:
        parts: list[str] = getattr(record, "parts", [])
        if not parts or not self.stream.isatty():
            return super().format(record)
        label: str = getattr(record, "label", "")
        lines = wrapped(parts, terminal.width(self.stream), len(label) or 4, label)
        shown = terminal.styled(label, terminal.BOLD, self.stream)
        return "\n".join([shown + lines[0][len(label) :], *lines[1:]])


def log_table(
    logger: logging.Logger,
    title: str,
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    is_result: bool = False,
) -> None:
    """Log a title and labelled rows: a line each in a file, fitted to the width on a terminal.

    Args:
        logger: of the caller.
        title: the first line.
        rows: label and parts of the text, of which none is broken; rows without parts are left out.
        is_result: whether it is a ``RESULT``.
    """
    shown = [(label, list(filter(None, parts))) for label, parts in rows]
    column = max((len(label) for label, _ in shown), default=0) + len(f"{GAP}{GAP}")
    logger.info("%s", title, extra={"is_result": is_result})
    for label, parts in shown:
        if parts:
            head = f"{GAP}{label}".ljust(column)
            more = {"parts": parts, "label": head, "is_result": is_result}
            logger.info("%s%s", head, GAP.join(parts), extra=more)


def wrapped(parts: Sequence[str], width: int, indent: int = 4, head: str = "") -> list[str]:
    """Lines of parts, two spaces apart, of which none is broken.

    Args:
        parts: of the text.
        width: characters of a line.
        indent: spaces before all lines but the first.
        head: of the first line.
    """
    lines = [head]
    for number, part in enumerate(parts):
        gap = GAP if number else ""
        if number and len(lines[-1] + gap + part) > width:
            lines.append(" " * indent)
            gap = ""
        lines[-1] += gap + part
    return lines


class _RunLog(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop lines that the disk does not accept: the run's own files end the run for it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
