"""Where log lines go: the terminal, and a file in the run folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def to_terminal(stream: TextIO | None = None) -> None:
    """Lines of this project and warnings of others; safe to call again.

    Args:
        stream: standard output when not given.
    """
    root = logging.getLogger()
    if not any(getattr(handler, "ours", False) for handler in root.handlers):
        handler = logging.StreamHandler(stream or sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.ours = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("research").setLevel(logging.INFO)
    # Hundreds of lines on every first use of a store; ours say what matters.
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def to_file(folder: Path) -> Iterator[None]:
    """The same lines, dated, in ``train.log`` of the run folder."""
    handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
