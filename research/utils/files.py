"""Atomic writing of files."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from research.utils.conditions import naming

TEMPORARY: Final = re.compile(r"\.(.+\.\w+|mlflow_run_id)\.[a-z0-9_]{8}")
"""Names of the temporary files of ``write_atomic``, of files with a suffix."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary file in the folder of ``path``, then rename it to ``path``.

    The file is synced to disk before it is renamed, so a reader sees the old content or the new,
    never a part, even after a power failure.

    Raises:
        OSError: if the file cannot be written; it names ``path``. Also raised for exceptions in
            which libraries hide it.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            _write_with(write, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


MAX_STEM: Final = 200
"""Bytes; file systems take 255 with what is added to a stem."""
PROBE = 2**16
"""Bytes; writers of libraries stop at a full disk with less than this left."""


def _write_with(write: Callable[[Path], None], temporary: Path) -> None:
    """Call ``write``; if it fails and the disk accepts no more, raise the ``OSError`` for that.

    Writers in other languages raise exceptions of their own: those in Rust (safetensors) have the
    number of the system's error in the text, those in C++ (torch, onnx) have no reason.
    """
    try:
        write(temporary)
    except OSError:
        raise
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        try:
            with temporary.open("ab") as file:
                file.write(bytes(PROBE))
        except OSError as reason:
            raise reason from error
        raise


def remove_leftovers(*folders: Path, name: str = "*") -> None:
    """Remove the temporary files that killed processes left.

    Args:
        folders: folders, not those below them. The caller holds the lock under which files of this
            name are written there, so that no living process needs them.
        name: glob pattern of the files that were written.
    """
    for folder in folders:
        for path in folder.glob(f".{name}.*"):
            if TEMPORARY.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()


def short_stem(stem: str) -> str:
    """The name of an output that is made from names of inputs: its end, ``MAX_STEM`` bytes."""
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= MAX_STEM else encoded[-MAX_STEM:].decode(errors="ignore")


def to_json(content: Any) -> str:
    """Indented JSON with a final newline; NaN and infinity become null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
