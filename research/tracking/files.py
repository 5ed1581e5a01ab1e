"""The tracker of every run: CSV tables and pictures in the run folder.

The columns of a table are the keys of its rows: ``research.engine.loop.fit`` makes the row of an
epoch, ``research.engine.loss_log`` the row of a batch.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from PIL.Image import Image

from research.config.migrations import current_column
from research.tracking.tracker import Position, Row, Rows, Run, Table, Tracker
from research.utils.conditions import naming
from research.utils.errors import one_line
from research.utils.files import write_atomic, write_text
from research.utils.spreadsheets import cell

log = logging.getLogger(__name__)

MAX_LINE: Final = 2**20
"""Bytes of a line; a file without line breaks would be read as a whole."""


class FileTracker(Tracker):
    """Writes ``epoch_metrics.csv``, ``batch_metrics.csv``, ``pictures/`` and ``tables/``.

    Each row is written to the file at once.

    Args:
        folder: output folder, until ``start`` sets it to the run folder.
    """

    def __init__(self, folder: Path = Path()) -> None:
        self.folder = folder
        self.columns: dict[Table, list[str]] = {}

    def start(self, run: Run) -> None:
        self.folder = run.folder
        tables: tuple[Table, ...] = ("batch", "epoch")
        for table in tables:
            path = self._path(table)
            if run.resumed.step:
                self._set_aside(path)
                rows = (row for row, _ in _read(path, epochs=True) if row)
                kept = (row for row in rows if _is_before(row, run.resumed))
                first = next(kept, None)
                if first is not None:
                    self.columns[table] = list(first)
                    write_atomic(path, partial(_write_rows, list(first), chain([first], kept)))
                    continue
            path.unlink(missing_ok=True)

    def log(self, table: Table, step: int, row: Row) -> None:
        path = self._path(table)
        known = self.columns.get(table, [])
        added = [name for name in row if name not in known]
        if added:
            # A metric that first appears in a later row becomes a column of all rows.
            rows = read_rows(path) if known else []
            self.columns[table] = known + added
            write_text(path, csv_text(self.columns[table], rows))
        with naming(path), path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns[table], lineterminator="\n")
            writer.writerow({name: cell(value) for name, value in row.items()})

    def correct(self, column: str, values: Mapping[int, str]) -> None:
        path, columns = self._path("epoch"), self.columns.get("epoch", [])
        if column in columns:
            rows = read_rows(path)
            for row in rows:
                row[column] = values.get(_whole(row["epoch"]) or 0, row[column])
            write_text(path, csv_text(columns, rows))

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        for name, image in images.items():
            write_atomic(
                self.folder / "pictures" / f"{name}.png",
                lambda path, image=image: image.save(path, "PNG"),  # type: ignore[misc]
            )

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        for name, rows in tables.items():
            path = self.folder / "tables" / f"{name}.csv"
            # Without rows, the header of an earlier epoch's table is all that stays.
            if columns := list(rows[0] if rows else first_row(path)):
                write_text(path, csv_text(columns, rows))

    def _set_aside(self, path: Path) -> None:
        """Keep damaged lines in a file of their own."""
        damaged = (line for row, line in _read(path, epochs=True) if row is None)
        first = next(damaged, None)
        if first is None:
            return
        count, aside = 0, path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as file:
            for count, line in enumerate(chain([first], damaged), start=1):  # noqa: B007
                file.write(line + b"\n")
        log.warning("%s: damaged lines: %d, now in %s", path, count, aside)

    def _path(self, table: Table) -> Path:
        return self.folder / f"{table}_metrics.csv"


def read_rows(path: Path, *, epochs: bool = False) -> list[dict[str, str]]:
    """Rows of a table under the current column names; empty if there is no file.

    Damaged lines are ignored, with a warning.

    Args:
        path: of the file.
        epochs: whether a row without the number of an epoch is damaged.
    """
    rows, damaged = [], 0
    for row, _ in _read(path, epochs=epochs):
        if row is None:
            damaged += 1
        else:
            rows.append(row)
    if damaged:
        log.warning("%s: damaged lines: %d, ignored", path, damaged)
    return rows


def first_row(path: Path) -> dict[str, str]:
    """The first row of a table, which may be large; empty without one."""
    return next((row for row, _ in _read(path, epochs=False) if row), {})


def _read(path: Path, *, epochs: bool) -> Iterator[tuple[dict[str, str] | None, bytes]]:
    """Every line of a table after the first, and its row; None for a damaged line.

    Line by line: a table of batches may be larger than the memory. If the first line has no
    columns, all are damaged. A last line that a crash has cut short is left out: it was never part
    of a checkpoint.
    """
    if not path.is_file():  # opening a pipe would block
        return
    try:
        with path.open("rb") as file:
            head = file.readline(MAX_LINE)
            columns = [current_column(name) for name in _fields(head.rstrip(b"\r\n"))]
            whole = len(columns) == len(set(columns)) > 0 and (not epochs or "epoch" in columns)
            if head and not (whole and head.endswith(b"\n")):
                columns = []
                yield None, head.rstrip(b"\n")
            while line := file.readline(MAX_LINE):
                if not line.endswith(b"\n"):
                    if len(line) == MAX_LINE:  # the rest may have no end
                        yield None, line
                    return
                fields = _fields(line.rstrip(b"\r\n"))
                row = dict(zip(columns, fields, strict=False))
                is_row = len(fields) == len(columns) > 0
                if is_row and epochs:
                    is_row = _whole(row["epoch"]) is not None
                yield (row if is_row else None), line.rstrip(b"\n")
    except OSError as error:
        log.warning("%s: cannot be read (%s)", path, one_line(error))


def _write_rows(columns: Sequence[str], rows: Iterable[Mapping[str, object]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(cell, columns))
        writer.writerows([cell(row.get(name, "")) for name in columns] for row in rows)


def typed_rows(path: Path) -> Iterator[Row]:
    """Rows of a table with the types that they were recorded with, without empty cells."""
    for row in read_rows(path):
        yield {name: _typed(text) for name, text in row.items() if text}


def _typed(text: str) -> float | int | str | bool:
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        return text


def _fields(line: bytes) -> list[str]:
    """The fields of a line; empty if it is not text, or not CSV."""
    try:
        text = line.decode("utf-8")
        return [] if "\0" in text else next(csv.reader([text]), [])
    except (ValueError, csv.Error):
        return []


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _is_before(row: Mapping[str, str], position: Position) -> bool:
    """Whether a row was recorded up to ``position``."""
    epoch, batch = _whole(row["epoch"]), _whole(row.get("batch", ""))
    if epoch is None or epoch <= position.epoch:
        return epoch is not None
    within = batch is not None and batch <= position.batch
    return epoch == position.epoch + 1 and within


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV with a header; missing values are empty, and no cell is a formula."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writerow({name: cell(name) for name in columns})
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
