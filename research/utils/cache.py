"""Small results on disk, keyed by everything that they depend on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from research.utils.files import remove_leftovers, write_text

SETTLED: Final = 20_000_000
"""Nanoseconds after which a change of a file gives it another time: more than a tick of the clock
that file systems use."""


def file_stamp(stat: os.stat_result) -> list[int]:
    """What changes with the content of a file: size, and time of modification and of change.

    Programs can set the time of modification, as copies do, but not the time of change. A file that
    was changed just now could be changed again at the same time of the clock: its stamp equals no
    other, so that it is read again the next time.
    """
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    now = time.time_ns()
    return stamp if abs(now - stat.st_ctime_ns) > SETTLED else [*stamp, now]


def cached(folder: Path, key: object, make: Callable[[], Any]) -> Any:
    """The value of ``key``: read from its file, or made and written there.

    Processes that ask at the same time wait for the first one. A damaged file, or one of another
    key, is replaced.

    Args:
        folder: where the values are, one file ``DIGEST_OF_KEY.json`` for each key.
        key: everything that the value depends on, as JSON.
        make: gives the value, as JSON but not ``None``.
    """
    file = _file(folder, key)
    value = _read(file, key)
    if value is None:
        with _lock(file):
            value = _read(file, key)
            if value is None:
                value = _write(file, key, make())
    return value


def cached_by_file(
    folder: Path,
    key: object,
    stamps: Mapping[str, Sequence[Any]],
    make: Callable[[list[str]], Iterable[Any]],
) -> dict[str, Any]:
    """A value for each file; only those of new and changed files are made.

    All values are in one file, see ``cached``. Values of files that are not asked for stay there.

    Args:
        folder: where the values are.
        key: what the values depend on beside the file, as JSON.
        stamps: by file what changes with its content, see ``file_stamp``, as JSON.
        make: gives the values of these files in the same order, as JSON.
    """
    file = _file(folder, key)
    known = _by_file(file, key)
    if _stale(known, stamps):
        with _lock(file):
            known = _by_file(file, key)
            stale = _stale(known, stamps)
            made = zip(stale, make(stale), strict=True) if stale else ()
            known |= {name: [stamps[name], value] for name, value in made}
            known = _write(file, key, known)
    return {name: known[name][1] for name in stamps}


def _file(folder: Path, key: object) -> Path:
    return folder / f"{sha256(_canonical(key).encode()).hexdigest()[:16]}.json"


def _canonical(key: object) -> str:
    return json.dumps(key, sort_keys=True)


def _lock(file: Path) -> FileLock:
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")


def _read(file: Path, key: object) -> Any:
    """The value in a file, or ``None`` if there is none of this key."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content["value"] if _canonical(content["key"]) == _canonical(key) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(file: Path, key: object, value: Any) -> Any:
    """Write a value and return it as it will be read; the caller holds the lock of the file."""
    remove_leftovers(file.parent, name=file.name)
    text = json.dumps({"key": key, "value": value})
    write_text(file, text)
    return json.loads(text)["value"]


def _by_file(file: Path, key: object) -> dict[str, Any]:
    known = _read(file, key)
    return known if isinstance(known, dict) else {}


def _stale(known: Mapping[str, Any], stamps: Mapping[str, Sequence[Any]]) -> list[str]:
    return [name for name, stamp in stamps.items() if known.get(name, [None])[0] != list(stamp)]
