"""Writes paired folders as the arrays that training reads.

Files are written in this order: for each frame its label ``OUT/labels/**.txt`` (YOLO; empty for a
negative), then its array ``OUT/images/**.npy`` [H, W, 3 + X]; ``OUT/classes.txt``; finally
``OUT/rgbx.json``, which names the channels and holds the ignore regions, for which YOLO has no row.
Without ``rgbx.json``, OUT is incomplete and cannot be used. The ledger ``OUT/.prepared.jsonl``
records every finished array with the size and times of its source files, so that a stopped or
repeated run writes only what is missing. Every file is written atomically; arrays and labels
without a frame in the source are removed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from research.data.frames.frame import BoxXYXY, Frame, FrameSet, RunCounts, SkipFrame
from research.data.index import ProgressCallback
from research.data.rgbx.arrays import COLOURS, Pixels
from research.data.rgbx.layout import DESCRIPTION, LEDGER
from research.data.rgbx.paired_folders import PairedFolders, output_stems
from research.utils.cache import file_stamp
from research.utils.errors import UserError
from research.utils.files import write_atomic, write_text

CHUNK = 64
"""Frames submitted to the threads at a time; Ctrl-C waits for them."""


class LedgerEntry(NamedTuple):
    """A line of the ledger, stored as a JSON list.

    Attributes:
        stem: path below ``images``, without suffix.
        stamp: whether the array has 16 bits; name, size and times of every source file.
        bytes: size of the array's file; 0 for a frame that could not be read.
        reason: why it could not be read; otherwise empty.
    """

    stem: str
    stamp: list[Any]
    bytes: int
    reason: str


def pack(
    frame_set: FrameSet,
    folders: PairedFolders,
    out: Path,
    check: Callable[[FrameSet], None],
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Write the arrays of a source that do not exist yet.

    Args:
        frame_set: frames with usable headers.
        folders: their files.
        out: a new or empty folder, or one that was prepared from the same source.
        check: called with the remaining frames if some of them could not be decoded; may raise.
        workers: threads; ``None`` for the number of cores.
        progress: called after each frame.

    Returns:
        content of ``rgbx.json``: ``channels``, ``dtype``, ``source``, ``format``, ``classes`` (name
        to number of boxes) and ``counts``.

    Raises:
        UserError: for a folder with other content or in use, or a full disk. Finished arrays
            remain, and the next run continues from there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            workers = workers or os.cpu_count() or 1
            return _pack(frame_set, folders, out, check, workers, progress)
    except Timeout:
        raise UserError("OUT", f"{out}: another process writes to it", "wait for it") from None
    except OSError as error:
        raise UserError(
            "OUT",
            f"{out}: {error.strerror or error}",
            "fix it and run the same command again; finished arrays are kept",
        ) from None


def _pack(
    frame_set: FrameSet,
    folders: PairedFolders,
    out: Path,
    check: Callable[[FrameSet], None],
    workers: int,
    progress: ProgressCallback | None,
) -> dict[str, Any]:
    is_16bit = any(folders.is_16bit[folders.frame_of(frame.image)] for frame in frame_set.frames)
    stems = output_stems(frame_set, folders)
    frames = {stems[frame.name]: frame for frame in frame_set.frames}
    ledger_entries = _read_ledger(out, frame_set.root)
    stamps = {stem: _stamp(folders, frame, is_16bit) for stem, frame in frames.items()}
    entries = {
        stem: ledger_entries[stem]
        for stem in frames
        if stem in ledger_entries
        and ledger_entries[stem].stamp == stamps[stem]
        and ledger_entries[stem].bytes == _file_size(_array_path(out, stem))
    }
    (out / DESCRIPTION).unlink(missing_ok=True)
    _write_ledger(out, frame_set.root, entries)
    for stem, entry in entries.items():
        if not entry.reason:
            _write_label(out, stem, frames[stem])

    def write(stem: str) -> LedgerEntry:
        path = _array_path(out, stem)
        try:
            array = folders.pixels(folders.frame_of(frames[stem].image), is_16bit)
        except SkipFrame as reason:
            path.unlink(missing_ok=True)
            _label_path(out, stem).unlink(missing_ok=True)
            return LedgerEntry(stem, stamps[stem], 0, str(reason))
        _write_label(out, stem, frames[stem])
        write_atomic(path, lambda temporary: _save(temporary, array))
        return LedgerEntry(stem, stamps[stem], _file_size(path), "")

    missing = [stem for stem in frames if stem not in entries]
    with (out / LEDGER).open("a", encoding="utf-8") as ledger:
        for entry in _map_in_threads(write, missing, workers):
            entries[entry.stem] = entry
            ledger.write(json.dumps(entry) + "\n")
            ledger.flush()
            if progress is not None:
                progress("writing arrays", len(entries), len(frames))
    _remove_others(out, {stem for stem, entry in entries.items() if not entry.reason})
    failed = {frames[stem].name: entry.reason for stem, entry in entries.items() if entry.reason}
    if failed:
        frame_set = _drop_failed(frame_set, failed)
        check(frame_set)
    return _write_description(frame_set, folders, out, is_16bit, stems)


def _map_in_threads(
    write: Callable[[str], LedgerEntry], stems: list[str], workers: int
) -> Iterator[LedgerEntry]:
    # PIL releases the GIL while it decodes, and NumPy while it writes files.
    rest = iter(stems)
    pool = ThreadPoolExecutor(workers)
    try:
        while chunk := list(islice(rest, CHUNK)):
            yield from pool.map(write, chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_description(
    frame_set: FrameSet,
    folders: PairedFolders,
    out: Path,
    is_16bit: bool,
    stems: Mapping[str, str],
) -> dict[str, Any]:
    """Write ``classes.txt`` and ``rgbx.json``; ``stems`` by frame name."""
    names = [" ".join(name.split()) or str(index) for index, name in enumerate(frame_set.classes)]
    _write_if_changed(out / "classes.txt", "".join(f"{name}\n" for name in names))
    boxes = Counter(label for frame in frame_set.frames for label, _ in _rows(frame, ignored=False))
    regions = {stems[f.name]: rows for f in frame_set.frames if (rows := _rows(f, ignored=True))}
    counts = {
        "frames": len(frame_set.frames),
        "negatives": sum(not frame.boxes for frame in frame_set.frames),
        "boxes": boxes.total(),
        "left_out_invalid": sum(run.invalid for run in frame_set.runs),
        "left_out_missing": sum(run.missing_image + run.missing_file for run in frame_set.runs),
    }
    description: dict[str, Any] = {
        "channels": [*COLOURS, *(name for name in folders.folders if name != "rgb")],
        "dtype": "uint16" if is_16bit else "uint8",
        "source": str(frame_set.root),
        "format": frame_set.format,
        "classes": {name: boxes[index] for index, name in enumerate(names)},
        "counts": counts,
        "reading": str(frame_set.reading),
    }
    if regions:
        description["ignored"] = regions
    write_text(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return description


def _rows(frame: Frame, *, ignored: bool) -> list[tuple[int, BoxXYXY]]:
    """Class and box of the objects of a frame, or of its ignore regions."""
    flags = frame.ignored or (False,) * len(frame.boxes)
    rows = zip(frame.labels, frame.boxes, flags, strict=True)
    return [(label, box) for label, box, flag in rows if flag == ignored]


def _yolo_rows(frame: Frame) -> str:
    rows = []
    for label, (x0, y0, x1, y1) in _rows(frame, ignored=False):
        cxcywh = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        rows.append(" ".join([str(label), *(f"{value:.9g}" for value in cxcywh)]) + "\n")
    return "".join(rows)


def _drop_failed(frame_set: FrameSet, failed: Mapping[str, str]) -> FrameSet:
    """The frames that could be decoded, with the counts of the whole source."""
    frames = [frame for frame in frame_set.frames if frame.name not in failed]
    if not frames:
        name, reason = next(iter(failed.items()))
        raise UserError(
            "SOURCE", f"{frame_set.root}: no usable frame, the first problem is {name}: {reason}"
        )
    empty = sum(not frame.boxes for frame in frames)
    counts = RunCounts(
        "all",
        total=len(frames),
        non_empty=len(frames) - empty,
        empty=empty,
        missing_image=sum(run.missing_image for run in frame_set.runs),
        missing_file=sum(run.missing_file for run in frame_set.runs),
        invalid=sum(run.invalid for run in frame_set.runs) + len(failed),
    )
    problems = [f"{name}: {reason}" for name, reason in failed.items()]
    reading = frame_set.reading and frame_set.reading.leave_out(dict.fromkeys(failed, "unreadable"))
    return replace(frame_set, frames=frames, runs=[counts], problems=problems, reading=reading)


def _read_ledger(out: Path, source: Path) -> dict[str, LedgerEntry]:
    """Finished arrays, by stem.

    Raises:
        UserError: if the folder contains files that were not prepared from this source.
    """
    try:
        first, *rest = (out / LEDGER).read_text(encoding="utf-8").splitlines()
        own_source = json.loads(first)["source"]
    except FileNotFoundError:
        if any(path.name != ".lock" for path in out.iterdir()):
            raise UserError("OUT", f"{out}: contains other files", "pass an empty folder") from None
        return {}
    except (ValueError, KeyError, TypeError):
        own_source, rest = "an unknown source", []
    if own_source != str(source.resolve()):
        raise UserError(
            "OUT", f"{out}: was prepared from {own_source}", "pass another OUT or remove it"
        )
    for folder, pattern in (("images", ".*.npy.*"), ("labels", ".*.txt.*")):
        for temporary in (out / folder).rglob(pattern):  # left by a killed run
            temporary.unlink()
    entries = {}
    for line in rest:
        try:
            entry = LedgerEntry(*json.loads(line))
        except (ValueError, TypeError):  # a partial line of a killed run
            continue
        entries[entry.stem] = entry
    return entries


def _write_ledger(out: Path, source: Path, entries: Mapping[str, LedgerEntry]) -> None:
    lines = [json.dumps(line) for line in ({"source": str(source.resolve())}, *entries.values())]
    write_text(out / LEDGER, "\n".join(lines) + "\n")


def _stamp(folders: PairedFolders, frame: Frame, is_16bit: bool) -> list[Any]:
    stamp: list[Any] = [is_16bit]
    for path in folders.files(folders.frame_of(frame.image)).values():
        stat = path.stat()
        stamp.append([path.relative_to(folders.source).as_posix(), *file_stamp(stat)])
    return stamp


def _array_path(out: Path, stem: str) -> Path:
    return out / "images" / f"{stem}.npy"


def _label_path(out: Path, stem: str) -> Path:
    return out / "labels" / f"{stem}.txt"


def _write_label(out: Path, stem: str, frame: Frame) -> None:
    _write_if_changed(_label_path(out, stem), _yolo_rows(frame))


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _remove_others(out: Path, stems: Set[str]) -> None:
    """Remove the arrays, then the labels, of all other frames, in the ledger or not."""
    for folder, suffix, to_path in (
        ("images", ".npy", _array_path),
        ("labels", ".txt", _label_path),
    ):
        finished = {to_path(out, stem) for stem in stems}
        for path in list((out / folder).rglob(f"*{suffix}")):
            if path not in finished:
                path.unlink()


def _save(temporary: Path, array: Pixels) -> None:
    with temporary.open("wb") as file:  # np.save would append .npy to a path
        np.save(file, array)


def _write_if_changed(path: Path, text: str) -> None:
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, ValueError):
        pass
    write_text(path, text)
