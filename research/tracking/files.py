"""The tracker of every run: CSV tables and pictures in the run folder.

The columns of a table are the keys of its rows: ``research.engine.loop.fit`` makes the row of an
epoch, ``research.engine.loss_log`` the row of a batch.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL.Image import Image

from research.config.migrations import current_column
from research.tracking.tracker import Position, Row, Rows, Run, Table, Tracker
from research.utils.errors import one_line
from research.utils.files import write_atomic, write_text

log = logging.getLogger(__name__)


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
                every, damaged = _read(path, epochs=True)
                self._set_aside(path, damaged)
                rows = [row for row in every if _is_before(row, run.resumed)]
                if rows:
                    self.columns[table] = list(rows[0])
                    write_text(path, csv_text(self.columns[table], rows))
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
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns[table], lineterminator="\n").writerow(row)

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        for name, image in images.items():
            write_atomic(
                self.folder / "pictures" / f"{name}.png",
                lambda path, image=image: image.save(path, "PNG"),  # type: ignore[misc]
            )

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        for name, rows in tables.items():
            write_text(self.folder / "tables" / f"{name}.csv", csv_text(list(rows[0]), rows))

    def _set_aside(self, path: Path, lines: Sequence[bytes]) -> None:
        """Keep damaged lines in a file of their own."""
        if lines:
            aside = path.with_name(f"{path.name}.damaged")
            with aside.open("ab") as file:
                file.writelines(line + b"\n" for line in lines)
            log.warning("%s: %d damaged lines, which are now in %s", path, len(lines), aside)

    def _path(self, table: Table) -> Path:
        return self.folder / f"{table}_metrics.csv"


def read_rows(path: Path, *, epochs: bool = False) -> list[dict[str, str]]:
    """Rows of a table under the current column names; empty if there is no file.

    Damaged lines are ignored, with a warning.

    Args:
        path: of the file.
        epochs: whether a row without the number of an epoch is damaged.
    """
    rows, damaged = _read(path, epochs=epochs)
    if damaged:
        log.warning("%s: %d damaged lines are ignored", path, len(damaged))
    return rows


def _read(path: Path, *, epochs: bool) -> tuple[list[dict[str, str]], list[bytes]]:
    """Rows of a table, and the lines that are none.

    A last line that a crash has cut short is neither: it was never part of a checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s: cannot be read (%s)", path, one_line(error))
        return [], []
    lines = content.split(b"\n")
    if len(lines.pop()) and not lines:
        return [], [content]
    head = _fields(lines[0]) if lines else []
    columns = [current_column(name) for name in head]
    if len(set(columns)) < len(columns) or (epochs and "epoch" not in columns):
        return [], lines
    rows, damaged = [], []
    for line in lines[1:]:
        row = dict(zip(columns, fields, strict=False)) if (fields := _fields(line)) else {}
        whole = len(fields) == len(columns) > 0
        if whole and not (epochs and _whole(row["epoch"]) is None):
            rows.append(row)
        else:
            damaged.append(line)
    return rows, damaged


def _fields(line: bytes) -> list[str]:
    """The fields of a line; empty if it is not text, or not CSV."""
    try:
        text = line.decode("utf-8").removesuffix("\r")
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
    """Rows as CSV with a header; missing values are empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
