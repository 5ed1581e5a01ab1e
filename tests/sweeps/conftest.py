from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from research.config import command_line
from tests.conftest import SMALL, TINY, data_overrides, make_folders

Sweep = Callable[..., None]


@pytest.fixture
def study_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, in which studies find no other."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run of less than a second, as on the command line."""
    make_folders(tmp_path / "data" / "train", 4)
    make_folders(tmp_path / "data" / "val", 2, seed=1)
    return [*SMALL, *TINY, *data_overrides(tmp_path / "data")]


@pytest.fixture
def sweep(study_folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Runs ``train.py -m`` in this process; drawing its pictures is tested elsewhere."""
    import train

    for module in ("research.viz.charts", "research.viz.curves", "research.sweeps.plots"):
        monkeypatch.setattr(f"{module}.render", lambda figure: Image.new("RGB", (8, 8)))

    def run(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words, *more])
        command_line(train.main)

    return run


def summaries(folder: Path) -> list[Any]:
    """The sweeps below a working directory."""
    import json

    found = sorted(folder.glob("runs/sweeps/*/final_summary.json"))
    return [json.loads(path.read_text()) for path in found]
