"""Tables in Markdown; on a terminal they are fitted to its width, without a cut cell."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from research.utils import terminal

LEAST: Final = 16
"""Characters to which a column of text may be narrowed."""
Column = tuple[list[str], str]
"""The cells, the name of the column first, and the side."""


@dataclass(frozen=True)
class TextTable:
    """A table.

    Attributes:
        header: names of the columns.
        rows: a cell for each column; a newline is a space at which a figure may be wrapped.
        sides: for each column ``l`` for text or ``r`` for figures, which are aligned to the right.
        keys: number of first columns that say what a row is about.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    sides: str
    keys: int = 1

    def text(self, width: int | None = None) -> str:
        """The table in Markdown.

        Args:
            width: characters of a line: columns are aligned, text and names of columns are wrapped,
                and if that is not enough, columns are spread over several tables, each with the
                keys. None: a line for each row, as it is.
        """
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.header, *self.rows)]
        if width is None:
            rules = ["---:" if side == "r" else "---" for side in self.sides]
            whole = [[_flat(cell) for cell in line] for line in lines]
            return "\n".join(f"| {' | '.join(line)} |" for line in (whole[0], rules, *whole[1:]))
        cells = map(list, zip(*lines, strict=True))
        columns: list[Column] = list(zip(cells, self.sides, strict=True))
        keys, others = columns[: self.keys], columns[self.keys :]
        parts: list[list[Column]] = [[*keys, *others[:1]]]
        for column in others[1:]:
            if _total(map(_least, [*parts[-1], column])) <= width:
                parts[-1].append(column)
            else:
                parts.append([*keys, column])
        return "\n\n".join(_aligned(part, width) for part in parts)


def terminal_width() -> int | None:
    """The width of standard output if it is a terminal; None elsewhere."""
    return terminal.width(sys.stdout) if sys.stdout.isatty() else None


def paragraph(text: str, width: int | None) -> str:
    """A text in lines of at most ``width`` characters; None: in one line."""
    if width is None:
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _flat(cell: str) -> str:
    return cell.replace("\n", " ")


def _total(widths: Iterable[int]) -> int:
    """Characters of a line with the bars between the columns."""
    return sum(width + 3 for width in widths) + 1


def _least(column: Column) -> int:
    """The width to which a column can be narrowed."""
    (name, *cells), side = column
    words = max(map(len, name.split()), default=1)
    if side == "r":
        return max([words, *(len(piece) for cell in cells for piece in cell.split("\n"))])
    return max(words, min(LEAST, max(map(len, cells), default=0)))


def _aligned(columns: Sequence[Column], width: int) -> str:
    """A table of some columns in lines of this width, text as wide as possible."""
    widths = list(map(_least, columns))
    for index in sorted(range(len(columns)), key=lambda index: columns[index][1]):  # text first
        wanted = max(map(len, columns[index][0]))
        widths[index] += max(0, min(wanted - widths[index], width - _total(widths)))
    sides = [side for _, side in columns]
    names, *rows = zip(*(cells for cells, _ in columns), strict=True)
    rule = [
        "-" * (wide - 1) + (":" if side == "r" else "-")
        for wide, side in zip(widths, sides, strict=True)
    ]
    lines = [*_wrapped(names, widths, "l" * len(sides)), rule]
    for row in rows:
        lines += _wrapped(row, widths, sides)
    return "\n".join("| " + " | ".join(map(_padded, line, widths, sides)) + " |" for line in lines)


def _wrapped(
    cells: Sequence[str], widths: Sequence[int], sides: Sequence[str]
) -> Iterator[list[str]]:
    """A row as lines of cells."""
    pieces = [
        [_flat(cell)]
        if len(cell) <= width
        else (cell.split("\n") if side == "r" else _filled(cell, width))
        for cell, width, side in zip(cells, widths, sides, strict=True)
    ]
    yield from map(list, zip_longest(*pieces, fillvalue=""))


def _filled(cell: str, width: int) -> list[str]:
    """Text in lines of at most ``width`` characters, broken in names only where it must be."""
    lines = [""]
    for piece in re.split(r"(?<=[/_, ])", _flat(cell)):
        if len((lines[-1] + piece).rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]


def _padded(cell: str, width: int, side: str) -> str:
    return cell.rjust(width) if side == "r" else cell.ljust(width)
