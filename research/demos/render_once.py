"""Creates the folder of a demo data set on first use, atomically; other processes wait."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from research.utils.errors import UserError


def render_once(
    root: Path,
    key: str,
    record_name: str,
    record: Mapping[str, object],
    may_replace: Callable[[Path], bool],
    create: Callable[[Path], None],
) -> Path:
    """Create ``root`` unless it exists with this record.

    Other processes wait until it is complete. A killed process leaves an existing folder unchanged.

    Args:
        root: the folder; need not exist.
        key: the configuration key that names the folder.
        record_name: name of the JSON file in it that stores ``record``.
        record: describes the content; a folder with another record is replaced.
        may_replace: whether an existing folder may be replaced.
        create: creates the content in a folder that does not exist yet.

    Raises:
        UserError: if ``root`` has content that must not be replaced.
    """
    if _has_record(root / record_name, record):
        return root
    real = root.resolve()  # a link stays one, such as one to another disk
    real.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(real.parent / f".{real.name}.lock"):
        if _has_record(real / record_name, record):  # created by another process in the meantime
            return root
        if real.exists() and not (real.is_dir() and may_replace(real)):
            raise UserError(
                key, f"{root} contains other files than the demo data", f"set {key} to a new folder"
            )
        with tempfile.TemporaryDirectory(dir=real.parent, prefix=f".{real.name}.") as scratch:
            new = Path(scratch) / real.name
            create(new)
            (new / record_name).write_text(json.dumps(record, indent=2) + "\n")
            if real.exists():
                shutil.rmtree(real)
            os.replace(new, real)
    return root


def _has_record(file: Path, record: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads(file.read_text()) == record)
    except (OSError, ValueError):
        return False
