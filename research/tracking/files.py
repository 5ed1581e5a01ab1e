"""The tracker of every run: CSV tables and pictures in the run folder.

The columns of a table are the keys of its rows: ``research.engine.loop.fit`` makes the row of an
epoch, ``research.engine.loss_log`` the row of a batch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL.Image import Image

from research.config.migrations import current_column
from research.tracking.tracker import Position, Row, Rows, Run, Table, Tracker
from research.utils.conditions import naming
from research.utils.files import write_atomic, write_text


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
                rows = [row for row in read_rows(path) if _is_before(row, run.resumed)]
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
        with naming(path), path.open("a", newline="", encoding="utf-8") as file:
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

    def _path(self, table: Table) -> Path:
        return self.folder / f"{table}_metrics.csv"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Complete rows of a table under the current column names; empty if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        # A row cut short by a crash lacks fields; it was never part of a checkpoint.
        complete = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{current_column(name): text for name, text in row.items()} for row in complete]


def typed_rows(path: Path) -> Iterator[Row]:
    """Complete rows of a table with the types that they were recorded with, without empty cells."""
    for row in read_rows(path):
        yield {name: _typed(text) for name, text in row.items() if text}


def _typed(text: str) -> float | int | str | bool:
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        return text


def _is_before(row: Mapping[str, str], position: Position) -> bool:
    """Whether a row was recorded up to ``position``; False for a damaged row."""
    epoch, batch = row.get("epoch", ""), row.get("batch", "")
    if not epoch.isdecimal():
        return False
    if int(epoch) <= position.epoch:
        return True
    within = batch.isdecimal() and int(batch) <= position.batch
    return int(epoch) == position.epoch + 1 and within


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV with a header; missing values are empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
