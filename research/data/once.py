"""A folder that is made once, whole, however many processes ask for it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from research.utils.errors import UserError


def made_once(
    root: Path,
    record_name: str,
    record: Mapping[str, object],
    ours: Callable[[Path], bool],
    make: Callable[[Path], None],
) -> Path:
    """Make sure that ``root`` holds what ``record`` describes.

    Processes that ask at the same time wait for the first; one that is killed leaves the old folder
    as it was.

    Args:
        root: the folder; may not exist yet.
        record_name: file in it that says what it holds.
        record: what it is to hold, for JSON; a folder with another record is replaced.
        ours: whether an existing folder may be replaced.
        make: fills the (not yet existing) folder that it is given.

    Raises:
        UserError: when ``root`` holds something that is not ours.
    """
    if _holds(root / record_name, record):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if _holds(root / record_name, record):  # another process made it while this one waited
            return root
        if root.exists() and not ours(root):
            raise UserError(
                "dataset.demo.root",
                f"{root} holds other files than the demo's: name another folder",
            )
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as scratch:
            fresh = Path(scratch) / root.name
            make(fresh)
            (fresh / record_name).write_text(json.dumps(record, indent=2) + "\n")
            if root.exists():
                shutil.rmtree(root)
            os.replace(fresh, root)
    return root


def _holds(file: Path, record: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads(file.read_text()) == record)
    except (OSError, ValueError):
        return False
