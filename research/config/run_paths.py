"""Where runs are, and which there are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path("runs")
LISTED: Final = 3
"""Runs that a message names."""


def instead_of(missing: Path) -> str:
    """What to pass in place of a run or checkpoint that does not exist, in words.

    Args:
        missing: its path.
    """
    folder = missing.parent
    if folder.name == "checkpoints" and (names := sorted(p.name for p in folder.glob("*.pt"))):
        return f"in {folder} there are {', '.join(names)}"
    runs = [file.parent for root in {folder, ROOT} for file in root.glob("*/config.yaml")]
    if not runs:
        return "pass a run folder or a checkpoint in it"
    newest = sorted(runs, key=lambda run: (run.stat().st_mtime, run))[-LISTED:]
    return (
        f"pass a run folder or a checkpoint in it; the newest: {', '.join(map(str, newest[::-1]))}"
    )
