"""Sweeps whose process is killed, and that are started by several processes at once."""

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

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

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
    """Until a trial of this number has started its first epoch."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        if any(folder.glob(f"runs/sweeps/*/trial_{number:04d}*/batch_metrics.csv")):
            return
        time.sleep(0.01)
    pytest.fail(f"trial {number} did not begin")


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


@pytest.mark.whole
def test_a_killed_grid_goes_on(study_folder: Path, words: list[str]) -> None:
    more = ("epochs=3", "seed=0,1", "optimizer.lr=0.01,0.02")
    killed(study_folder, words, *more, at=1, after=0.05)
    again = started(study_folder, words, *more)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert "trials done" in output
    check(study_folder, 4)


@pytest.mark.whole
@pytest.mark.parametrize("more", [RANDOM, GRID], ids=["random", "grid"])
def test_three_kills_and_twelve_trials(
    study_folder: Path, words: list[str], more: tuple[str, ...]
) -> None:
    chance = random.Random(0)
    # The first in a trial's first epoch, wherever it runs; the others anywhere.
    for at, after in ((1, 0.0), (4, chance.uniform(0, 0.8)), (8, chance.uniform(0, 0.8))):
        killed(study_folder, words, "epochs=3", *more, at=at, after=after)
    last = started(study_folder, words, "epochs=3", *more)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    trials = check(study_folder, 12)
    assert max(trial["attempts"] for trial in trials) >= 2
    again = started(study_folder, words, "epochs=3", *more)
    output, _ = again.communicate(timeout=120)
    assert "nothing left to do" in output
    check(study_folder, 12)


@pytest.mark.whole
def test_two_processes_share_a_study(study_folder: Path, words: list[str]) -> None:
    more = ("epochs=3", "seed=range(0,10)", "logging=mlflow", "logging.mlflow.system_metrics=false")
    both = [started(study_folder, words, *more) for _ in range(2)]
    output = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    check(study_folder, 10)


AT_ONCE = 8
USERS = """
import os, sys, time, traceback
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from optuna.samplers import RandomSampler
from research.sweeps.space import Space
from research.sweeps.study import Study
from research.tracking.mlflow import MLflowTracker
from research.tracking.tracker import Run
from sqlalchemy.orm import configure_mappers
configure_mappers()
base, users, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def use(folder, me):
    (folder / "ready").mkdir(parents=True, exist_ok=True)
    (folder / "ready" / str(me)).touch()
    while len(list((folder / "ready").iterdir())) < users:
        time.sleep(0.002)
    os.chdir(folder)
    study = Study("one", None, RandomSampler, directions=["maximize"])
    claim = study.claim_trial(Space.parse({}, ["seed=range(0,8)"]), 8, 0, set(), grid=True)
    run = study.run_folder(claim.number, 1)
    run.mkdir()
    tracker = MLflowTracker(f"sqlite:///{folder}/runs/mlflow.db", "one", False)
    tracker.start(Run(run, f"trial {claim.number}", {"seed": claim.point["seed"]}))
    tracker.log("epoch", 1, {"epoch": 1, "val/top1": 0.5})
    tracker.finish("FINISHED")
    study.report(claim.number, [0.5])
    claim.lock.release()

failed = 0
for time_ in range(times):
    children = []
    for me in range(users):  # libraries are loaded once; nothing of a store is open yet
        child = os.fork()
        if child == 0:
            try:
                use(base / str(time_), me)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
sys.exit(failed)
"""


@pytest.mark.parametrize(
    "times", [pytest.param(3, marks=pytest.mark.long), pytest.param(20, marks=pytest.mark.whole)]
)
def test_eight_processes_begin_at_once_on_nothing(tmp_path: Path, times: int) -> None:
    from mlflow import MlflowClient

    ended = subprocess.run(
        [sys.executable, "-c", USERS, str(tmp_path), str(AT_ONCE), str(times)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert "spooling" not in output
    for time_ in range(times):
        folder = tmp_path / str(time_)
        client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
        experiment = client.get_experiment_by_name("one").experiment_id
        runs = client.search_runs([experiment])
        assert sorted(run.data.params["seed"] for run in runs) == [str(n) for n in range(AT_ONCE)]
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert all(run.data.metrics["val/top1"] == 0.5 for run in runs)
        assert [path.name for path in (folder / "runs").glob("*.journal")] == ["studies.journal"]
        numbers = sorted(path.name for path in (folder / "runs/sweeps/one").glob("trial_*"))
        assert numbers == [f"trial_{n:04d}" for n in range(AT_ONCE)]
