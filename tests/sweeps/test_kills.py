"""Sweeps whose process is killed, and that are begun by several processes at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.sweeps.conftest import summaries
from tests.test_train import rows

RANDOM = (
    "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=12",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))",
)  # fmt: skip
GRID = ("seed=0,1,2,3", "optimizer.lr=0.01,0.02,0.03")


def started(folder: Path, words: list[str], *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *words, *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_trial(folder: Path, number: int) -> None:
    """Until a trial of this number has begun its first epoch."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        if any(folder.glob(f"runs/sweeps/*/trial_{number:04d}*/batch_metrics.csv")):
            return
        time.sleep(0.01)


def killed(folder: Path, words: list[str], *more: str, at: int, after: float) -> None:
    process = started(folder, words, *more)
    wait_for_trial(folder, at)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check(folder: Path, trials: int) -> list[dict[str, Any]]:
    """Every point finished once, each run complete and of its own."""
    (summary,) = summaries(folder)
    assert summary["counts"] == {"FINISHED": trials}
    points = [json.dumps(trial["params"]) for trial in summary["trials"]]
    assert len(set(points)) == trials
    folders = [trial["paths"]["run"] for trial in summary["trials"]]
    assert len(set(folders)) == trials
    for run in folders:
        epochs = [row["epoch"] for row in rows(folder / run / "epoch_metrics.csv")]
        assert epochs == ["1", "2", "3"]
    finished = list(folder.glob("runs/sweeps/*/trial_*/checkpoints/final.safetensors"))
    assert len(finished) == trials  # nothing was run to its end twice
    found: list[dict[str, Any]] = summary["trials"]
    return found


@pytest.mark.long
def test_a_killed_grid_goes_on(study_folder: Path, words: list[str]) -> None:
    more = ("epochs=3", "seed=0,1", "optimizer.lr=0.01,0.02")
    killed(study_folder, words, *more, at=1, after=0.05)
    again = started(study_folder, words, *more)
    told, _ = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert "trials are done" in told
    check(study_folder, 4)


@pytest.mark.whole
@pytest.mark.parametrize("more", [RANDOM, GRID], ids=["random", "grid"])
def test_three_kills_and_twelve_trials(
    study_folder: Path, words: list[str], more: tuple[str, ...]
) -> None:
    chance = random.Random(0)
    for at in (1, 4, 8):
        killed(study_folder, words, "epochs=3", *more, at=at, after=chance.uniform(0, 0.8))
    last = started(study_folder, words, "epochs=3", *more)
    told, _ = last.communicate(timeout=300)
    assert last.returncode == 0, told
    trials = check(study_folder, 12)
    assert max(trial["attempts"] for trial in trials) >= 1
    again = started(study_folder, words, "epochs=3", *more)
    told, _ = again.communicate(timeout=120)
    assert "nothing is left to do" in told
    check(study_folder, 12)


@pytest.mark.long
def test_two_processes_share_a_study(study_folder: Path, words: list[str]) -> None:
    more = ("epochs=3", "seed=range(0,10)", "logging=mlflow", "logging.mlflow.system_metrics=false")
    both = [started(study_folder, words, *more) for _ in range(2)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    check(study_folder, 10)
