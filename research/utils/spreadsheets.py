"""Cells of CSV files that people open in spreadsheets."""

from __future__ import annotations

import re
from typing import Final

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters with which spreadsheets take a cell for a formula (OWASP, CSV injection)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def cell(value: object) -> object:
    """A value as a cell that no spreadsheet runs.

    Names of files, classes and runs can be a stranger's. A text that begins like a formula gets a
    ``'`` before it, as spreadsheets mark a text; control characters, which could begin another row,
    become spaces. Numbers are not changed, also those that are read from a file as text.
    """
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(" ", value) if _CONTROL.search(value) else value
    if not value.startswith(FORMULA):
        return text
    try:
        float(value)
    except ValueError:
        return f"'{text}"
    return text
