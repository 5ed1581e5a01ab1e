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

TEMPORARY: Final = re.compile(r"\.(.+\.\w+|mlflow_run_id)\.[a-z0-9_]{8}")
"""Names of the temporary files of ``write_atomic``, of files with a suffix."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary file in the folder of ``path``, then rename it to ``path``.

    The file is synced to disk before it is renamed, so a reader sees the old content or the new,
    never a part, even after a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
