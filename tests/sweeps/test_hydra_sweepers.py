"""Hydra's own sweepers, with their jobs recorded as trials of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from research.engine import run
from tests.conftest import one_line_of
from tests.sweeps.conftest import Sweep, summaries

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that train."""
    names: list[str] = []
    train = run.train

    def counted(config: Any, name: str, *rest: Any) -> Any:
        names.append(name)
        return train(config, name, *rest)

    monkeypatch.setattr(run, "train", counted)
    return names


def test_the_basic_sweeper_runs_every_combination_once(
    sweep: Sweep, study_folder: Path, started: list[str]
) -> None:
    words = ["hydra/sweeper=basic", "seed=0,1", "optimizer.lr=0.01,0.02"]
    sweep(*words)
    (first,) = summaries(study_folder)
    assert first["counts"] == {"FINISHED": 4}
    points = [
        (trial["params"]["seed"], trial["params"]["optimizer.lr"]) for trial in first["trials"]
    ]
    assert sorted(points) == [(0, 0.01), (0, 0.02), (1, 0.01), (1, 0.02)]
    assert len(started) == 4
    study = study_folder / "runs/sweeps" / first["study"]
    assert (study / "tables/trials.csv").exists()
    assert (study / "trial_0003/checkpoints/best.pt").exists()
    sweep(*words)
    assert len(started) == 4  # the second time everything is there
    assert summaries(study_folder)[0]["trials"] == first["trials"]


def test_the_basic_sweeper_is_resumed(
    sweep: Sweep, study_folder: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["hydra/sweeper=basic", "seed=0,1,2", "epochs=2"]
    train = run.train

    def stopped(config: Any, name: str, *rest: Any) -> Any:
        if len(started) == 1:
            raise KeyboardInterrupt
        return train(config, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "train", stopped)
        with pytest.raises(SystemExit):
            sweep(*words)
    assert summaries(study_folder)[0]["counts"] == {"FINISHED": 1, "KILLED": 2}
    sweep(*words)
    assert summaries(study_folder)[0]["counts"] == {"FINISHED": 3}
    assert len(started) == 3


def test_the_optuna_sweeper_gets_the_monitored_value(
    sweep: Sweep, study_folder: Path, started: list[str]
) -> None:
    words = [
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.study_name=theirs",
        "hydra.sweeper.storage=sqlite:///theirs.db", "hydra.sweeper.sampler.seed=3",
        "optimizer.lr=tag(log, interval(1e-4, 1e-1))", "seed=0,1",
    ]  # fmt: skip
    sweep(*words)
    (summary,) = summaries(study_folder)
    assert summary["study"] == "theirs"
    assert summary["counts"] == {"FINISHED": 4}
    assert len(started) == 4
    import optuna

    theirs = optuna.load_study(study_name="theirs", storage="sqlite:///theirs.db")
    assert theirs.direction.name == "MAXIMIZE"
    assert [trial.value for trial in theirs.trials] == [
        trial["values"]["val/top1"] for trial in summary["trials"]
    ]
    sweep(*words)  # goes on in their storage, by other points
    assert len(theirs.trials) == 8


@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_a_failure_reaches_the_sweeper(
    sweep: Sweep, study_folder: Path, sweeper: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = {"basic": [], "optuna": ["hydra.sweeper.n_trials=2"]}[sweeper]
    with pytest.raises(SystemExit):
        sweep(f"hydra/sweeper={sweeper}", *trials, "optimizer.lr=1e30,2e30")
    errors = capsys.readouterr().err
    assert "loss" in errors.splitlines()[-1]
    assert "Error executing job" not in errors
    (summary,) = summaries(study_folder)
    assert {trial["status"] for trial in summary["trials"]} == {"FAILED"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hydra/sweeper=basic", "optimizer.lr=interval(0.1,0.2)"], "every combination"),
        (["hydra/sweeper=optuna", "hydra.sweeper.direction=minimize", "seed=0,1"], "maximize"),
        (["hydra/sweeper=basic", "seed=0,1", "resume=auto"], "is resumed by"),
        (["hydra/sweeper=basc", "seed=0,1"], "basic"),
    ],
)
def test_mistakes(sweep: Sweep, study_folder: Path, words: list[str], expected: str) -> None:
    assert expected in one_line_of(lambda: sweep(*words))
    assert not list(study_folder.glob("runs/sweeps/*/trial_*"))
