"""Launchers of other machines, and studies in a database that does not answer.

The services themselves are in ``tests/services``.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from optuna.exceptions import StorageInternalError
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, ProgrammingError

from research.config.declarations import Declarations
from research.config.group_rules import LAUNCHER, Job, faults
from research.sweeps import job as sweep_job
from research.sweeps import launchers, launchers_rules, storage
from research.sweeps.job import TrialPruner
from research.sweeps.launchers import JobDied
from research.sweeps.launching import launch
from research.sweeps.space import Space
from research.sweeps.storage import GuardedStorage, StorageError
from research.sweeps.study import MAX_ATTEMPTS, Claim, Study
from research.utils.errors import UserError
from research.utils.installation import CONF
from tests.conftest import user_error

pytestmark = pytest.mark.usefixtures("study_folder")
SPACE = Space.parse({}, ["a=1,2,3"])


def opened() -> Study:
    return Study("one", None, RandomSampler, directions=["maximize"])


def claims(study: Study, count: int) -> list[Claim]:
    found = [study.claim_trial(SPACE, 3, 0, set(), grid=True) for _ in range(count)]
    assert all(found)
    return [claim for claim in found if claim is not None]


# -- jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["slurm", "ray"])
def test_every_setting_of_a_launcher_has_a_rule(option: str) -> None:
    settings = yaml.safe_load((CONF / f"hydra/launcher/{option}.yaml").read_text())
    name = settings.pop("_target_").rpartition(".")[2]
    assert settings.keys() <= launchers_rules.RULES.keys()
    for key, value in settings.items():
        assert launchers_rules.RULES[key].is_valid(value), key
    getattr(launchers, name)(**settings)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers_rules, "find_spec", lambda name: None)
    settings = {LAUNCHER: {"_target_": "research.sweeps.launchers.RayLauncher"}}
    (fault,) = faults(Job(settings, {}, None, Declarations({})))
    with user_error("hydra/launcher", "ray is not installed", "pip install -e '.[ray]'"):
        raise fault


class FakeLauncher(Launcher):
    """Returns what a function makes of each job."""

    def __init__(self, run: Callable[[int], JobReturn]) -> None:
        self.run = run

    def setup(self, **settings: Any) -> None: ...

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        return [self.run(initial_job_idx + place) for place in range(len(job_overrides))]


def test_a_job_that_died_is_launched_again() -> None:
    study = opened()

    def run(number: int) -> JobReturn:
        if number == 0:  # after it had counted its attempt
            study.set_attrs(0, attempts=1, reason="")
        if number == 2:
            study.report(2, [1.0])
            result = JobReturn()
            result.status = JobStatus.COMPLETED
            return result
        return launchers._died("killed")

    launch(FakeLauncher(run), study, SPACE, claims(study, 3))
    states = [trial.state for trial in study.trials()]
    assert states == [TrialState.RUNNING, TrialState.RUNNING, TrialState.COMPLETE]
    assert [study.trial(number).user_attrs["attempts"] for number in (0, 1)] == [1, 1]
    # Interrupted: its attempt does not count, and its seconds do.
    attrs = {"attempts": 0, "reason": "interrupted", "seconds": 2.0}
    launch(
        FakeLauncher(lambda number: study.set_attrs(0, **attrs) or launchers._died("status 143")),
        study,
        SPACE,
        claims(study, 1),
    )
    assert study.trial(0).user_attrs["attempts"] == 0


def test_jobs_that_cannot_start_are_given_up() -> None:
    study, launched = opened(), 0

    def run(number: int) -> JobReturn:
        nonlocal launched
        launched += 1
        return launchers._died("Slurm job 7_0 ended without a result, see FILE")

    for _ in range(MAX_ATTEMPTS):
        launch(FakeLauncher(run), study, SPACE, claims(study, 1))
    assert launched == MAX_ATTEMPTS
    assert study.trial(0).state is TrialState.FAIL
    assert "see FILE" in study.trial(0).user_attrs["reason"]


def test_slurm_jobs_are_waited_for_while_they_are_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, dead, requeued = (tmp_path / name for name in ("done", "dead", "requeued"))
    looks = [
        {"7_0", "7_1", "7_2"},
        {"7_1", "7_2"},
        None,  # Slurm does not answer
        {"7_2"},
        set[str](),  # between two states
        {"7_2"},
        set[str](),
    ]
    monkeypatch.setattr(launchers, "SECONDS_FOR_RESULT", 15.0)
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def queued() -> set[str] | None:
        if len(looks) == 6:
            done.touch()
        found = looks.pop(0) if looks else set()
        if not looks and now > 45:
            requeued.touch()
        return found

    monkeypatch.setattr(launchers, "_queued", queued)
    monkeypatch.setattr(launchers.time, "sleep", sleep)
    monkeypatch.setattr(launchers.time, "monotonic", lambda: now)
    launchers._wait([("7_0", done), ("7_1", dead), ("7_2", requeued)])
    assert not looks
    assert 25 < now < 60
    assert done.exists()
    assert not dead.exists()


def test_an_error_is_the_same_in_another_process() -> None:
    for error in (UserError("k", "m", "h"), UserError("k", "m"), JobDied("why")):
        again = pickle.loads(pickle.dumps(error))
        assert vars(again) == vars(error)
        assert again.args == error.args


# -- a database that does not answer ---------------------------------------------------------------


class Broken:
    """A storage whose calls fail a number of times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def get_all_trials(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "trials"

    create_new_trial = get_all_trials


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LOST = caused(
    OperationalError("SELECT", {}, Exception("connection refused")),
    ConnectionError("connection refused"),  # of the driver
)
SERVER = "hydra.sweeper.storage=postgresql://lab@host/studies"


@pytest.mark.parametrize("error", [LOST, caused(StorageInternalError("failed"), LOST)])
def test_a_server_is_waited_for(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    assert GuardedStorage(Broken(error, 3), SERVER).get_all_trials() == "trials"
    # What may have happened in spite of the error is not repeated.
    with user_error("hydra.sweeper.storage", "connection refused", "run the same command again"):
        GuardedStorage(Broken(error, 1), SERVER).create_new_trial()


def test_a_server_that_does_not_answer_when_a_study_is_opened_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = [LOST, caused(StorageInternalError("failed"), LOST)]

    def connect(url: str, engine_kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return InMemoryStorage()

    monkeypatch.setattr(storage.optuna.storages, "RDBStorage", connect)
    monkeypatch.setattr(storage.optuna.storages, "get_storage", lambda database: database)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    url = SERVER.removeprefix(storage.SETTING)
    opened = storage.outlast(lambda: storage.open_storage(url, repair=False))
    assert opened.in_database
    assert not errors


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ProgrammingError("SELECT", {}, Exception("no such table")), SERVER),
        (OSError("disk"), SERVER),
        (LOST, "hydra.sweeper.storage=sqlite:///studies.db"),
        (LOST, "runs/studies.journal"),
    ],
)
def test_other_failures_are_not_waited_for(error: Exception, name: str) -> None:
    broken = Broken(error, 1)
    with pytest.raises(StorageError):
        GuardedStorage(broken, name).get_all_trials()
    assert broken.calls == 1


def test_a_server_that_stays_away_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    with pytest.raises(StorageError):
        GuardedStorage(Broken(LOST, 9), SERVER).get_all_trials()


def test_training_does_not_wait_for_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened()
    (claim,) = claims(study, 1)
    pruner = TrialPruner(study, claim.number, epochs=5)
    monkeypatch.setattr(sweep_job, "SECONDS_FOR_STORAGE", 0.05)
    study.store.in_database = True
    answers = threading.Event()
    read = study.trial

    def wait(number: int) -> Any:
        answers.wait(20)
        return read(number)

    monkeypatch.setattr(study, "trial", wait)
    begin = time.monotonic()
    for epoch in range(1, 5):
        pruner.epoch(epoch, 0.1 * epoch)
    assert time.monotonic() - begin < 2
    assert not read(0).intermediate_values
    answers.set()
    pruner.epoch(5, 0.5)
    pruner.finish()
    assert read(0).intermediate_values == {e: 0.1 * e for e in range(1, 5)} | {5: 0.5}
    assert not pruner.stopped


def test_an_error_of_a_database_does_not_end_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = opened()
    (claim,) = claims(study, 1)
    pruner = TrialPruner(study, claim.number, epochs=2)
    study.store.in_database = True
    read = study.trial

    def fail(number: int) -> Any:
        raise StorageError("database", "connection refused")

    monkeypatch.setattr(study, "trial", fail)
    pruner.epoch(1, 0.5)
    assert "connection refused" in caplog.text
    monkeypatch.setattr(study, "trial", read)
    pruner.epoch(2, 0.6)
    pruner.finish()
    assert read(0).intermediate_values == {1: 0.5, 2: 0.6}
