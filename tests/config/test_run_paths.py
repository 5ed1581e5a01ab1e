from __future__ import annotations

import os
from pathlib import Path

import pytest

from research.config.run_paths import LISTED, instead_of


def run(folder: Path, time: int, *checkpoints: str) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0")
    for name in checkpoints:
        (folder / "checkpoints" / name).touch()
    os.utime(folder, (time, time))


def test_the_newest_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = Path("runs/missing")
    assert instead_of(missing) == "pass a run folder or a checkpoint in it"
    for number in (3, 5, 1, 4, 2):
        run(Path(f"runs/r{number}"), number)
    Path("runs/cache").mkdir()
    newest = [f"runs/r{number}" for number in (5, 4, 3)][:LISTED]
    assert instead_of(missing).endswith(f"the newest: {', '.join(newest)}")
    run(Path("elsewhere/s0"), 9)
    named = instead_of(Path("elsewhere/missing")).rpartition(": ")[2].split(", ")
    assert named == ["elsewhere/s0", "runs/r5", "runs/r4"]
    assert all(Path(each).is_dir() for each in named)


def test_of_a_run_its_checkpoints_are_named(tmp_path: Path) -> None:
    run(tmp_path / "r", 1, "last.pt", "best.pt", "best.safetensors")
    missing = tmp_path / "r" / "checkpoints" / "epoch_001.pt"
    assert instead_of(missing) == f"in {missing.parent} there are best.pt, last.pt"
