"""The records of a run that are still to be delivered to a store, kept in its run folder.

``mlflow_spool.jsonl`` has the records that wait, ``mlflow_refused.jsonl`` those that the store has
refused, each with the reason. A resumed run tries both again.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any, Final
from uuid import uuid4

from research.tracking.tracker import Position
from research.utils.errors import one_line
from research.utils.files import write_text

log = logging.getLogger(__name__)

Record = dict[str, Any]
NAME: Final = "mlflow_spool.jsonl"
REFUSED: Final = "mlflow_refused.jsonl"
RUN_ID: Final = "mlflow_run_id"
ONCE: Final = "once"
"""Entry of the metrics of an evaluation, which may have been delivered by another process."""
MODEL: Final = "model"
"""Entry of a file with the weights of the best epoch: that epoch."""
FOLDER_ID: Final = "mlflow_folder_id"
"""File with the id that all MLflow runs of a run folder have as a tag of this name."""
LONGEST_LINE: Final = 2**22
"""Bytes; a row with the metrics of ten thousand classes has half a million."""
KEPT_OF_DAMAGED: Final = 2**16
"""Characters of a damaged line that are kept."""
LARGEST: Final = 2**63 - 1
"""Of a step or a time: a store's integers have 64 bits."""


class Spool:
    """Records that wait for a store, on disk as soon as they are added.

    A thread may deliver them while another adds more.

    Args:
        folder: the run folder.

    Attributes:
        rows: the metrics of a step each, in their order.
        files: files of the run folder to upload.
        refused: number of records that this process has set aside.
        reasons: for which an earlier process has set records aside.
        is_stale: whether the file has records that do not wait any more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: deque[Record] = deque()
        self.files: list[Record] = []
        self.refused = 0
        self.reasons: set[str] = set()
        self.on_disk = True
        self.is_stale = False
        self.lock = RLock()
        self.uploading = 0

    def __len__(self) -> int:
        return len(self.rows) + len(self.files)

    def clear(self) -> None:
        """Delete the files of an earlier run in this folder."""
        for name in (NAME, REFUSED, RUN_ID):
            (self.folder / name).unlink(missing_ok=True)

    def load(self, position: Position) -> None:
        """Read what an earlier process left: what waits, and what was refused.

        Lines that are no records are kept in ``mlflow_refused.jsonl``. The last line may be cut
        short by a kill; it was written after the checkpoint.

        Args:
            position: of the checkpoint; records after it are dropped.
        """
        kept: list[str] = []
        damaged = 0
        self.rows.clear()
        self.files.clear()
        self.uploading = 0
        for name in (REFUSED, NAME):
            for line in _lines(self.folder / name):
                record = _parsed(line)
                if name == REFUSED and isinstance(record, dict):
                    self.reasons.add(str(record.get("reason")))
                    if "line" in record:
                        kept.append(line.decode())
                        continue
                    # Tags and parameters are sent again, as they now are.
                    record = record.get("record")
                    if isinstance(record, dict) and {"tag", "param", "data"} & record.keys():
                        continue
                if _is_record(record):
                    if _is_before(record, position):
                        self._append(record)
                else:
                    damaged += 1
                    text = line.decode("utf-8", "backslashreplace")[:KEPT_OF_DAMAGED]
                    kept.append(json.dumps({"reason": "damaged", "line": text}))
        self.rows = deque(sorted(self.rows, key=lambda row: int(row["time"])))
        if damaged:
            log.warning(
                "%s: damaged lines: %d, kept in %s; the others are used",
                self.folder / NAME, damaged, self.folder / REFUSED,
            )  # fmt: skip
        self._write(self.folder / REFUSED, kept)
        self.save()

    def take_back(self) -> None:
        """Let the records wait again that were set aside."""
        with self.lock:
            if self.refused and self.save():
                self.refused = 0
                self.load(Position(LARGEST, LARGEST, LARGEST))

    def add(self, record: Record) -> None:
        """Add a record of this run, and write it."""
        with self.lock:
            if self._append(record):
                # What a full disk has kept out before is written with it.
                self.on_disk = self._extend(NAME, [record]) if self.on_disk else self.save()

    def add_first(self, records: Sequence[Record]) -> None:
        """Add metrics that go before those that wait."""
        with self.lock:
            self.rows.extendleft(reversed(records))
            self.save()

    def first_rows(self, most: int) -> list[Record]:
        """The metrics that have waited for the longest, of at most ``most`` steps."""
        with self.lock:
            return list(islice(self.rows, most))

    def drop_rows(self, count: int) -> None:
        """Forget the first ``count`` of them, which are delivered."""
        with self.lock:
            self.is_stale = True
            for _ in range(count):
                self.rows.popleft()

    def first_file(self) -> Record:
        """The file that has waited for the longest; if it changes now, it is added again."""
        with self.lock:
            self.uploading = 1
            return self.files[0]

    def drop_file(self) -> None:
        """Forget it, since it is delivered."""
        with self.lock:
            self.is_stale = True
            self.uploading = 0
            del self.files[0]

    def save(self) -> bool:
        """Write the records that still wait; whether that was possible."""
        with self.lock:
            lines = (json.dumps(record) for record in [*self.rows, *self.files])
            self.on_disk = self._write(self.folder / NAME, lines)
            self.is_stale = not self.on_disk
            return self.on_disk

    def refuse(self, record: Record, reason: str) -> None:
        """Set a record aside."""
        self._refuse([record], reason)

    def refuse_all(self, reason: str) -> None:
        """Set everything aside that waits."""
        with self.lock:
            if self._refuse([*self.rows, *self.files], reason):
                self.is_stale = True
                self.rows.clear()
                self.files.clear()

    def _refuse(self, records: Sequence[Record], reason: str) -> bool:
        self.refused += len(records)
        entries = ({"reason": reason, "record": record} for record in records)
        return self._extend(REFUSED, entries)

    def _append(self, record: Record) -> bool:
        """Whether the record is not there yet: a file is uploaded once, as it then is."""
        if "file" not in record:
            self.rows.append(record)
            return True
        if record in self.files[self.uploading :]:
            return False
        self.files.append(record)
        return True

    def _extend(self, name: str, records: Iterable[Record]) -> bool:
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(record)}\n" for record in records)
        except OSError as error:
            self._cannot_write(error)
            return False
        return True

    def _write(self, path: Path, lines: Iterable[str]) -> bool:
        try:
            text = "".join(f"{line}\n" for line in lines)
            if text:
                write_text(path, text)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._cannot_write(error)
            return False
        return True

    def _cannot_write(self, error: OSError) -> None:
        """A full disk ends training where it must, not here."""
        if self.on_disk:
            log.warning("%s: cannot be written (%s)", self.folder / NAME, one_line(error))


def read_run_id(folder: Path) -> str:
    """The id of the MLflow run of a run folder; empty if there is none, or none that is one."""
    try:
        text = (folder / RUN_ID).read_bytes()[:1000].decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if is_run_id(text) else ""


def folder_id(folder: Path) -> tuple[str, bool]:
    """The id of a run folder, which is made at the first call, and whether it was there before."""
    try:
        text = (folder / FOLDER_ID).read_bytes()[:1000].decode("ascii", "replace").strip()
    except FileNotFoundError:
        text = ""
    if is_run_id(text):
        return text, True
    text = uuid4().hex
    write_text(folder / FOLDER_ID, text)
    return text, False


def hand_on(earlier: Path, folder: Path) -> None:
    """Give a new run folder the id of the one that it replaces, whose MLflow run it then ends."""
    if (earlier / FOLDER_ID).exists():
        write_text(folder / FOLDER_ID, folder_id(earlier)[0])


def is_run_id(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9][\w-]{0,255}", text) is not None


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; without the last if it is cut short, and no more than its begin of a
    line that is too long."""
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n"):
                    more = file.readline(LONGEST_LINE)
                    if more:
                        line = line[:KEPT_OF_DAMAGED]
                    elif _parsed(line) is None:
                        return
                    while more and not more.endswith(b"\n"):
                        more = file.readline(LONGEST_LINE)
                if line.strip():
                    yield line.strip(b"\r\n")
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s: cannot be read (%s)", path, one_line(error))


def _parsed(line: bytes) -> Any:
    """The JSON document of a line; None if it has none."""
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _is_before(record: Mapping[str, Any], position: Position) -> bool:
    """Whether a record was made up to ``position``."""
    if record.get("epoch", 0) <= position.epoch:
        return True
    of_batch = all(key.startswith("batch/") for key in record.get("metrics", ()))
    return of_batch and "metrics" in record and bool(record["step"] <= position.step)


def _is_record(record: Any) -> bool:
    """Whether it is a file of the run folder or the metrics of a step."""
    if not isinstance(record, dict) or not _is_whole(record.get("epoch", 0)):
        return False
    if "file" in record:
        names, epoch = (record["file"], record.get("folder")), record.get(MODEL, 1)
        is_file = isinstance(names[0], str) and _is_whole(epoch) and epoch > 0
        return is_file and all(name is None or _is_inside(name) for name in names)
    metrics = record.get("metrics")
    return (
        _is_whole(record.get("step"))
        and _is_whole(record.get("time"))
        and isinstance(metrics, dict)
        and all(_is_number(value) for value in metrics.values())
    )


def _is_whole(value: Any) -> bool:
    return type(value) is int and -LARGEST <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_whole(value)


def _is_inside(name: Any) -> bool:
    """Whether it is the path of something in a folder."""
    if not isinstance(name, str) or "\0" in name or len(name) > 1000:
        return False
    return ".." not in Path(name).parts and not Path(name).is_absolute()
