"""TensorBoard: the same metric names as in MLflow, pictures, tables, the configuration."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from PIL.Image import Image

from research.tracking.evaluations import Evaluation
from research.tracking.tracker import Row, Rows, Run, Status, Table, Tracker
from research.utils.tables import TextTable

log = logging.getLogger(__name__)

TABLES: Final[tuple[Table, ...]] = ("batch", "epoch")


class TensorBoardTracker(Tracker):
    """Event files in ``tensorboard/batch`` and ``tensorboard/epoch`` of the run folder.

    Two folders, because batch rows are at steps of batches and everything else at epochs: on
    resume, TensorBoard drops all events of a folder after one step.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self.writers: dict[Table, Any] = {}
        self.batches = 0

    def start(self, run: Run) -> None:
        self.folder = run.folder / "tensorboard"
        if not run.resumed.step:
            shutil.rmtree(self.folder, ignore_errors=True)
        batches = str(run.state.get("tensorboard_batches", ""))[:18]
        self.batches = int(batches) if batches.isdecimal() else run.resumed.step
        purge = {"batch": self.batches + 1, "epoch": run.resumed.epoch + 1}
        self._try(lambda: self._open(purge if run.resumed.step else {}))
        text = yaml.safe_dump(dict(run.config), sort_keys=False)
        self._write(
            "epoch", lambda w: w.add_text("config", f"```yaml\n{text}```", run.resumed.epoch)
        )

    def log(self, table: Table, step: int, row: Row) -> None:
        def write(writer: Any) -> None:
            for name, value in row.items():
                if isinstance(value, int | float) and name not in ("epoch", "batch"):
                    writer.add_scalar(f"batch/{name}" if table == "batch" else name, value, step)

        if table == "batch":
            self.batches = step
        self._write(table, write)

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        def write(writer: Any) -> None:
            for name, image in images.items():
                pixels = np.asarray(image.convert("RGB"))
                writer.add_image(f"pictures/{name}", pixels, step, dataformats="HWC")

        self._write("epoch", write)

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        def write(writer: Any) -> None:
            for name, rows in tables.items():
                writer.add_text(f"tables/{name}", _markdown(rows), step)

        self._write("epoch", write)

    def evaluation(self, evaluation: Evaluation, files: Sequence[Path]) -> None:
        def write(writer: Any) -> None:
            for name, value in evaluation.row.items():
                writer.add_scalar(name, value, evaluation.epoch)

        self._write("epoch", write)

    def flush(self) -> None:
        for table in TABLES:
            self._write(table, lambda writer: writer.flush())

    def state(self) -> dict[str, str]:
        return {"tensorboard_batches": str(self.batches)}

    def locations(self) -> list[str]:
        return [f"tensorboard --logdir {shlex.quote(str(self.folder))}"]

    def finish(self, status: Status) -> None:
        for table in TABLES:
            self._write(table, lambda writer: writer.close())
        self.writers = {}

    def discard(self) -> None:
        self.finish("FAILED")  # closes the files; nobody else has seen them

    def _open(self, purge: Mapping[str, int]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for table in TABLES:
            self.writers[table] = SummaryWriter(
                str(self.folder / table), purge_step=purge.get(table)
            )

    def _write(self, table: Table, write: Callable[[Any], None]) -> None:
        if table in self.writers:
            self._try(lambda: write(self.writers[table]))

    def _try(self, action: Callable[[], None]) -> None:
        """Run the action; a full disk or a missing folder must not end training."""
        try:
            action()
        except OSError as error:
            log.warning("TensorBoard files in %s cannot be written: %s", self.folder, error)
            self.writers = {}


def _markdown(rows: Rows) -> str:
    if not rows:
        return "no rows"
    cells = [list(map(_cell, row.values())) for row in rows]
    return TextTable([*rows[0]], cells, "l" * len(rows[0])).text()


def _cell(value: float | int | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
