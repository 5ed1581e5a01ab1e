"""Paired folders written as the arrays that training reads.

``OUT/images/**.npy`` [H, W, 3 + X], each put there after its ``OUT/labels/**.txt`` (YOLO; empty
for a negative), ``OUT/classes.txt`` and, last of all, ``OUT/rgbx.json``, which says what the
channels are; without it an OUT is unfinished and no data set. ``OUT/.prepared.jsonl`` records every
finished array with the size and time of the files that it was made of, so that a stopped or
repeated run makes only what is missing. Every file is put in place whole; arrays and labels that
are of no frame of the source are removed.
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

from research.data.frames.frame import Frame, FrameSet, RunCounts, SkipFrame
from research.data.index import ProgressCallback
from research.data.rgbx.arrays import COLOURS, Pixels
from research.data.rgbx.layout import DESCRIPTION, LEDGER
from research.data.rgbx.pairs import Pairs, places
from research.utils.errors import UserError
from research.utils.files import write_atomic, write_text

AT_ONCE = 64
"""Frames in flight; what Ctrl-C waits for."""


class Line(NamedTuple):
    """A line of the ledger.

    Attributes:
        place: path below ``images``, without suffix.
        stamp: name, size and time of every file that it is made of, and the type.
        bytes: size of the array's file; 0 for a frame that could not be made.
        reason: why not; '' if it could.
    """

    place: str
    stamp: list[Any]
    bytes: int
    reason: str


def pack(
    found: FrameSet,
    pairs: Pairs,
    out: Path,
    judge: Callable[[FrameSet], None],
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Write a source, or what is missing of it.

    Args:
        found: the frames that can be used by their headers.
        pairs: their files.
        out: a new or empty folder, or one that was prepared from the same source.
        judge: told the frames again when some of them could not be decoded; may refuse them.
        workers: threads; null for one a core.
        progress: told of the frames.

    Returns:
        what ``rgbx.json`` says: ``channels``, ``dtype``, ``source``, ``format``, ``classes`` (name
        to boxes) and ``counts``.

    Raises:
        UserError: for a folder with other content or in use, or a disk that is full. What is
            finished stays, and the next run goes on there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            return _pack(found, pairs, out, judge, workers or os.cpu_count() or 1, progress)
    except Timeout:
        raise UserError("out", f"{out}: another process prepares there", "wait for it") from None
    except OSError as error:
        raise UserError(
            "out",
            f"{out}: {error.strerror or error}",
            "see to it and run the same command again, what is finished stays",
        ) from None


def _pack(
    found: FrameSet,
    pairs: Pairs,
    out: Path,
    judge: Callable[[FrameSet], None],
    workers: int,
    progress: ProgressCallback | None,
) -> dict[str, Any]:
    deep = any(pairs.deep[pairs.frame_of(frame.image)] for frame in found.frames)
    place_of = places(found, pairs)
    wanted = {place_of[frame.name]: frame for frame in found.frames}
    known = _known(out, found.root)
    stamps = {place: _stamp(pairs, frame, deep) for place, frame in wanted.items()}
    lines = {
        place: known[place]
        for place in wanted
        if place in known
        and known[place].stamp == stamps[place]
        and known[place].bytes == _bytes(_array(out, place))
    }
    (out / DESCRIPTION).unlink(missing_ok=True)
    _write_ledger(out, found.root, lines)
    for place, line in lines.items():
        if not line.reason:
            _write_label(out, place, wanted[place])

    def make(place: str) -> Line:
        try:
            array = pairs.pixels(pairs.frame_of(wanted[place].image), deep)
        except SkipFrame as reason:
            _remove(out, place)
            return Line(place, stamps[place], 0, str(reason))
        _write_label(out, place, wanted[place])
        write_atomic(_array(out, place), lambda temporary: _save(temporary, array))
        return Line(place, stamps[place], _bytes(_array(out, place)), "")

    missing = [place for place in wanted if place not in lines]
    with (out / LEDGER).open("a", encoding="utf-8") as ledger:
        for line in _in_threads(make, missing, workers):
            lines[line.place] = line
            ledger.write(json.dumps(line) + "\n")
            ledger.flush()
            if progress is not None:
                progress("writing arrays", len(lines), len(wanted))
    _sweep(out, {place for place, line in lines.items() if not line.reason})
    lost = {wanted[place].name: line.reason for place, line in lines.items() if line.reason}
    if lost:
        found = _without(found, lost)
        judge(found)
    return _describe(found, pairs, out, deep)


def _in_threads(make: Callable[[str], Line], missing: list[str], workers: int) -> Iterator[Line]:
    # PIL lets go of the interpreter while it decodes, and files while they are written.
    todo = iter(missing)
    pool = ThreadPoolExecutor(workers)
    try:
        while chunk := list(islice(todo, AT_ONCE)):
            yield from pool.map(make, chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _describe(found: FrameSet, pairs: Pairs, out: Path, deep: bool) -> dict[str, Any]:
    """Class names, and the description."""
    names = [" ".join(name.split()) or str(index) for index, name in enumerate(found.classes)]
    _write_if_new(out / "classes.txt", "".join(f"{name}\n" for name in names))
    boxes = Counter(label for frame in found.frames for label in frame.labels)
    counts = {
        "frames": len(found.frames),
        "negatives": sum(not frame.boxes for frame in found.frames),
        "boxes": boxes.total(),
        "left_out_invalid": sum(run.invalid for run in found.runs),
        "left_out_missing": sum(run.missing_image + run.missing_file for run in found.runs),
    }
    description = {
        "channels": [*COLOURS, *(name for name in pairs.folders if name != "rgb")],
        "dtype": "uint16" if deep else "uint8",
        "source": str(found.root),
        "format": found.format,
        "classes": {name: boxes[index] for index, name in enumerate(names)},
        "counts": counts,
    }
    write_text(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return description


def _rows(frame: Frame) -> str:
    rows = []
    for label, (x0, y0, x1, y1) in zip(frame.labels, frame.boxes, strict=True):
        centre_and_sides = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        rows.append(" ".join([str(label), *(f"{value:.9g}" for value in centre_and_sides)]) + "\n")
    return "".join(rows)


def _without(found: FrameSet, lost: Mapping[str, str]) -> FrameSet:
    """The set after some of its frames could not be decoded; counts are of the whole source."""
    frames = [frame for frame in found.frames if frame.name not in lost]
    if not frames:
        name, reason = next(iter(lost.items()))
        raise UserError("SOURCE", f"{found.root}: no usable frame", f"the first: {name}: {reason}")
    empty = sum(not frame.boxes for frame in frames)
    report = RunCounts(
        "all",
        total=len(frames),
        non_empty=len(frames) - empty,
        empty=empty,
        missing_image=sum(run.missing_image for run in found.runs),
        missing_file=sum(run.missing_file for run in found.runs),
        invalid=sum(run.invalid for run in found.runs) + len(lost),
    )
    problems = [f"{name}: {reason}" for name, reason in lost.items()]
    return replace(found, frames=frames, runs=[report], problems=problems)


def _known(out: Path, source: Path) -> dict[str, Line]:
    """What is finished, by place.

    Raises:
        UserError: when the folder holds anything that was not prepared from this source.
    """
    try:
        first, *rest = (out / LEDGER).read_text(encoding="utf-8").splitlines()
        made_of = json.loads(first)["source"]
    except FileNotFoundError:
        if any(path.name != ".lock" for path in out.iterdir()):
            raise UserError("out", f"{out}: holds other files", "name an empty folder") from None
        return {}
    except (ValueError, KeyError, TypeError):
        made_of, rest = "files that are not known any more", []
    if made_of != str(source.resolve()):
        raise UserError(
            "out", f"{out}: was prepared from {made_of}", "name another OUT or remove it"
        )
    for folder, pattern in (("images", ".*.npy.*"), ("labels", ".*.txt.*")):
        for temporary in (out / folder).rglob(pattern):  # of a run that was killed
            temporary.unlink()
    lines = {}
    for text in rest:
        try:
            line = Line(*json.loads(text))
        except (ValueError, TypeError):  # cut short by a kill
            continue
        lines[line.place] = line
    return lines


def _write_ledger(out: Path, source: Path, lines: Mapping[str, Line]) -> None:
    head = {"source": str(source.resolve())}
    rows = [json.dumps(entry) for entry in (head, *lines.values())]
    write_text(out / LEDGER, "\n".join(rows) + "\n")


def _stamp(pairs: Pairs, frame: Frame, deep: bool) -> list[Any]:
    stamp: list[Any] = [deep]
    for path in pairs.files(pairs.frame_of(frame.image)).values():
        stat = path.stat()
        stamp.append([path.relative_to(pairs.source).as_posix(), stat.st_size, stat.st_mtime_ns])
    return stamp


def _array(out: Path, place: str) -> Path:
    return out / "images" / f"{place}.npy"


def _label(out: Path, place: str) -> Path:
    return out / "labels" / f"{place}.txt"


def _write_label(out: Path, place: str, frame: Frame) -> None:
    _write_if_new(_label(out, place), _rows(frame))


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _remove(out: Path, place: str) -> None:
    _array(out, place).unlink(missing_ok=True)
    _label(out, place).unlink(missing_ok=True)


def _sweep(out: Path, finished: Set[str]) -> None:
    """Removes arrays, then labels, of other places, be they known from an earlier run or not."""
    for folder, suffix, path_of in (("images", ".npy", _array), ("labels", ".txt", _label)):
        kept = {path_of(out, place) for place in finished}
        for path in list((out / folder).rglob(f"*{suffix}")):
            if path not in kept:
                path.unlink()


def _save(temporary: Path, array: Pixels) -> None:
    with temporary.open("wb") as file:  # a name would be given the suffix .npy
        np.save(file, array)


def _write_if_new(path: Path, text: str) -> None:
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, ValueError):
        pass
    write_text(path, text)
