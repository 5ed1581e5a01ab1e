"""A tracker that writes lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from research.tracking.tracker import Row, Run, Table, Tracker


class JsonLines(Tracker):
    """``RUN/FILE``: one line for each row.

    Args:
        file: its name.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def start(self, run: Run) -> None:
        self.file = run.folder / self.file

    def log(self, table: Table, step: int, row: Row) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, "step": step, **row}) + "\n")
