"""What happens to sweeps when storages, folders and settings fail; docs/reliability.md."""

from __future__ import annotations

import json
import logging
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper import config as sampler_configs
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.samplers import RandomSampler

from research.config import CONF
from research.config.checks import check_value
from research.config.group_rules import group_rules
from research.sweeps import job, storage
from research.sweeps.opening import restore_trials
from research.sweeps.record import _entry
from research.sweeps.space import Space
from research.sweeps.storage import STORE
from research.sweeps.study import Study
from research.sweeps.sweeper import SAMPLERS, _refused
from research.utils.errors import UserError
from tests.conftest import one_line_of, user_error
from tests.sweeps.conftest import Sweep, summaries
from tests.test_train import rows

pytestmark = pytest.mark.filterwarnings(
    "ignore::sqlalchemy.exc.SADeprecationWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)

SPACE = Space.parse({}, ["a=1,2,3", "b=x,'y z'"])


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("hydra/sweeper/sampler=motpe", "Optuna 4 removed it; choose hydra/sweeper/sampler=tpe"),
        (
            "hydra/sweeper/sampler=bayes",
            "Options: cmaes, gp, grid, nsgaii, nsgaiii, qmc",
        ),
        ("hydra/sweeper/pruner=mean", "Options: hyperband, median, none, successive_halving"),
        (
            "hydra/sweeper/pruner=hyperband hydra.sweeper.pruner.min_resource=0",
            "min_resource=0: ex",
        ),
        ("hydra/launcher=joblib", "pip install -e '.[parallel]'"),
        ("hydra/launcher=submitit_local", "pip install 'hydra-submitit-launcher"),
        ("hydra/launcher=other", "Options: basic, ray, slurm"),
        ("hydra/launcher=slurm hydra.launcher.timeout_min=0", "timeout_min=0: expected a whole"),
        ("hydra/launcher=slurm hydra.launcher.setup=ls", "setup=ls: expected a list"),
        ("hydra/launcher=slurm hydra.launcher.gpus=1", "no key 'hydra.launcher.gpus'"),
        ("hydra/launcher=ray hydra.launcher.num_gpus=-1", "num_gpus=-1: expected a number"),
        ("hydra/launcher=ray hydra.launcher.n_jobs=null", "n_jobs=null: expected a whole"),
        ("hydra/sweeper=basic hydra/sweeper/sampler=tpe", "hydra/sweeper=basic has no sampler"),
        ("hydra/sweeper=optuna hydra.sweeper.n_jobs=0", "hydra.sweeper.n_jobs=0: expected a whole"),
        ("hydra/sweeper=optuna hydra.sweeper.direction=up", "one of minimize, maximize"),
        ("hydra.sweeper.timeout=3", "Keys of hydra.sweeper: sampler, pruner, study_name"),
        ("hydra.sweeper.sampler=3", "choose hydra/sweeper/sampler=NAME"),
        ("hydra.sweeper.pruner=null", "choose hydra/sweeper/pruner=NAME"),
        ("hydra.sweeper.params=3", "hydra.sweeper.params=3: expected a mapping"),
    ],
)
def test_settings_are_refused_before_anything_is_made(
    study_folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    from research.config import command_line, register

    register()
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "seed=0,1", *words.split(" ")])
    assert said in one_line_of(lambda: command_line(lambda: pytest.fail("it began")))
    assert not list(study_folder.iterdir())


POOL = (
    None, True, False, 0, 1, 2, 3, -1, 50, 10**6, 2**40, 0.0, 0.5, 1.5, -0.5, 1e300, float("nan"),
    float("inf"), "abc", "auto", "halton", "", [], [1], [[0.5, 0.5]], [[0.1]], {}, {"lr": 0.1},
)  # fmt: skip
SAMPLER_CONFIGS = ("TPE", "Random", "NSGAII", "NSGAIII", "QMC", "GP", "CmaEs")
FIELDS = [
    (name, field.name)
    for name in SAMPLER_CONFIGS
    for field in fields(getattr(sampler_configs, f"{name}SamplerConfig"))
    if field.name[0] != "_"
]


def built(node: Any, kind: str, known: tuple[str, ...]) -> Any:
    """The sampler or pruner of a node, or None if its settings are refused as in a sweep."""
    rules = group_rules({})
    try:
        for key, value in OmegaConf.to_container(node).items():
            name = f"hydra.sweeper.{kind}.{key}"
            if name in rules:
                check_value(name, value, False, rules)
            else:
                assert key.startswith("_"), f"{name} has no rule"
        with _refused(f"hydra/sweeper/{kind}"):
            return instantiate(node, _execution_whitelist_=known)
    except UserError:
        return None


@pytest.mark.long
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_sampler_with_accepted_settings_finds_points(name: str, field: str) -> None:
    kind = getattr(sampler_configs, f"{name}SamplerConfig")
    for value in POOL:
        node = OmegaConf.structured(kind)
        try:
            OmegaConf.update(node, field, value)
        except OmegaConfBaseException:
            continue  # Hydra refuses its type
        if "population_size" in node and field != "population_size":
            node.population_size = 4
        sampler = built(node, "sampler", SAMPLERS)
        points = node.get("reference_points") or [[0, 0]]
        if sampler is None or name in ("CmaEs", "GP") or any(len(p) != 2 for p in points):
            continue  # CMA-ES is another package; the sweeper checks the points; GP takes seconds
        study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
        for number in range(10):
            trial = study.ask(Space.parse({}, ["x=interval(0.0,1.0)", "n=1,2"]).axes)
            study.tell(trial, [float(number), 1.0])


PRUNERS = {path.stem: OmegaConf.load(path) for path in (CONF / "hydra/sweeper/pruner").iterdir()}


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_a_pruner_with_accepted_settings_decides(name: str) -> None:
    assert isinstance(PRUNERS[name], DictConfig)
    fields = [str(key) for key in PRUNERS[name] if str(key) != "_target_"]
    for field, value in [(field, value) for field in fields for value in POOL]:
        usual = {"max_resource": 4} if "max_resource" in fields else {}
        pruner = built(OmegaConf.merge(PRUNERS[name], usual, {field: value}), "pruner", job.PRUNERS)
        if pruner is None or (name == "hyperband" and value == "auto"):  # the sweeper refuses it
            continue
        study = optuna.create_study(sampler=RandomSampler(0), pruner=pruner)
        for number in range(3):
            trial = study.ask()
            for epoch in (1, 2):
                trial.report(float(number), epoch)
                assert trial.should_prune() in (True, False)
            study.tell(trial, float(number))


def test_hyperband_needs_a_number(sweep: Sweep) -> None:
    words = "hydra/sweeper/pruner=hyperband hydra.sweeper.pruner.min_resource=auto"
    assert "min_resource=auto: only" in one_line_of(lambda: sweep("seed=0", *words.split()))


def test_reference_points_have_a_value_of_each_objective(sweep: Sweep) -> None:
    words = "hydra/sweeper/sampler=nsgaiii hydra.sweeper.sampler.reference_points=[[0.5,0.5]]"
    assert "each point needs 1 values" in one_line_of(lambda: sweep("seed=0,1", *words.split()))


# -- the storage -----------------------------------------------------------------------------------


def opened(url: str | None = None) -> Study:
    return Study("one", url, RandomSampler, directions=["maximize"])


def finished(study: Study, count: int) -> None:
    for number in range(count):
        claim = study.claim_trial(SPACE, 6, 0, set(), grid=True)
        assert claim is not None
        study.set_attrs(claim.number, run=str(study.run_folder(claim.number, 1)), beginnings=1)
        study.resume_trial(claim.number).report(0.1 * number, 1)
        if number == 1:
            study.fail(claim.number, "an error")
        elif number != 4:
            study.report(claim.number, [0.1 * number])
        claim.lock.release()


def entries(study: Study) -> list[Any]:
    return [
        (
            t.number,
            t.state,
            t.params,
            t.values,
            t.intermediate_values,
            t.user_attrs.get("reason", ""),
        )
        for t in study.trials()
    ]


def summarised(study: Study) -> None:
    """Write what ``final_summary.json`` says of the trials."""
    content = {"trials": [_entry(study, trial, ["val/top1"]) for trial in study.trials()]}
    (study.folder / "final_summary.json").write_text(json.dumps(content))


LOSSES: dict[str, Callable[[bytes], bytes]] = {
    "deleted": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "a damaged record": lambda content: content.replace(b'"op_code":4', b'"op_code":\xff', 1),
    "not a record": lambda content: content.replace(b'"op_code":4', b'"op_cade":4', 1),
    "not a mapping": lambda content: b"3\n" + content,
    "zeros at the end": lambda content: content + b"\0" * 100,
    "a damaged last record": lambda content: content[:-9] + b"\xff\xff\n",
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_what_the_journal_loses_is_restored(
    study_folder: Path, loss: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    study = opened()
    finished(study, 5)
    before = entries(study)
    assert [state.name for _, state, *_ in before] == [
        "COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "RUNNING",
    ]  # fmt: skip
    summarised(study)
    content = STORE.read_bytes()
    STORE.write_bytes(loss(content))
    again = opened()
    restore_trials(again, SPACE, ["val/top1"])
    # A trial whose record was cut off in the middle is resumed.
    assert [e[:3] for e in entries(again)] == [e[:3] for e in before] or "half" in str(loss)
    assert {e[0] for e in entries(again)} == set(range(5))
    claim = again.claim_trial(SPACE, 6, 0, set(), grid=True)
    assert claim is not None
    assert claim.number in (2, 3, 4)
    aside = list(STORE.parent.glob("studies.journal.damaged_*"))
    assert [path.read_bytes() for path in aside] in ([], [loss(content)])
    assert bool(aside) == ("was damaged" in caplog.text)


def test_retried_trials_keep_their_numbers(study_folder: Path) -> None:
    study = opened()
    finished(study, 3)
    claim = study.claim_trial(SPACE, 6, 0, {1}, grid=True)
    assert claim is not None
    study.report(claim.number, [0.9])
    claim.lock.release()
    before = entries(study)
    assert [number for number, *_ in before] == [0, 2, 3]
    summarised(study)
    STORE.unlink()
    again = opened()
    restore_trials(again, SPACE, ["val/top1"])
    assert entries(again) == before


def test_a_journal_that_loses_records_while_it_is_used(study_folder: Path) -> None:
    study = opened()
    finished(study, 1)
    STORE.write_bytes(b"")
    with user_error("hydra.sweeper.storage", "has become shorter", "run the same command again"):
        study.trials()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("run", 3), ("run", "/etc"), ("run", "../trial"), ("attempts", "x"), ("beginnings", -1)],
)
def test_records_that_no_trial_writes(study_folder: Path, attribute: str, value: Any) -> None:
    study = opened()
    finished(study, 5)
    study.set_attrs(4, **{attribute: value})
    with user_error("hydra.sweeper.storage", "trial 4 of one", attribute, "move the"):
        study.claim_trial(SPACE, 6, 0, set(), grid=True)


@pytest.mark.parametrize(
    "content", [b"no database at all, but a text\n" * 99, b"SQLite format 3\0x"]
)
def test_a_file_that_is_no_database(sweep: Sweep, study_folder: Path, content: bytes) -> None:
    Path("studies.db").write_bytes(content)
    line = one_line_of(lambda: sweep("seed=0", "hydra.sweeper.storage=sqlite:///studies.db"))
    assert "not a database" in line
    assert "move the file away and run the same command again" in line
    assert not list(study_folder.glob("runs/sweeps/*/"))
    assert Path("studies.db").read_bytes() == content


def test_an_error_of_a_job_comes_back_from_another_process() -> None:
    for error in (UserError("key", "message", "hint"), storage.StorageError("x.db", "locked")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (again.key, str(again)) == (error.key, str(error))


@contextmanager
def locked(database: str) -> Iterator[None]:
    with sqlite3.connect(database, check_same_thread=False) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.rollback()


@pytest.mark.long
def test_a_locked_database_is_waited_for(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("seed=0", "hydra.sweeper.storage=sqlite:///studies.db")
    sweep(*words, "hydra.sweeper.study_name=first")
    held = threading.Event()

    def hold() -> None:
        with locked("studies.db"):
            held.set()
            time.sleep(8)  # longer than the 5 s of Python's sqlite3

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    sweep(*words, "hydra.sweeper.study_name=second")
    holder.join()
    assert [each["counts"] for each in summaries(study_folder)] == [{"FINISHED": 1}] * 2


@pytest.mark.long
def test_a_trial_whose_storage_fails_is_resumed(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("seed=0,1", "epochs=3", "hydra.sweeper.storage=sqlite:///studies.db")
    monkeypatch.setattr(storage, "LOCKED_SECONDS", 0.1)
    report = job.TrialPruner.finish

    def locked_out(self: job.TrialPruner) -> None:  # training itself does not wait for the storage
        with locked("studies.db"):
            report(self)

    with monkeypatch.context() as patch:
        patch.setattr(job.TrialPruner, "finish", locked_out)
        line = one_line_of(lambda: sweep(*words))
    assert "database is locked" in line
    assert "run the same command again" in line
    sweep(*words)
    (found,) = summaries(study_folder)
    assert found["counts"] == {"FINISHED": 2}
    first = found["trials"][0]
    assert first["paths"]["run"].endswith("trial_0000")
    assert list(first["epochs"]) == ["1", "2", "3"]
    assert "continuing after epoch 3" in (Path(first["paths"]["run"]) / "train.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize("lost", ["journal", "journal and summary", "sqlite"])
def test_nothing_is_trained_again_when_the_storage_is_lost(
    sweep: Sweep, study_folder: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["seed=0,1", "optimizer.lr=0.01,0.02"]
    words += ["hydra.sweeper.storage=sqlite:///studies.db"] if lost == "sqlite" else []
    sweep(*words)
    (before,) = summaries(study_folder)
    (Path("studies.db") if lost == "sqlite" else STORE).write_bytes(b"")
    if lost == "journal and summary":
        (study_folder / "runs/sweeps" / before["study"] / "final_summary.json").unlink()
    trained: list[Any] = []
    monkeypatch.setattr("research.engine.loop.train_epoch", trained.append)
    sweep(*words)
    (after,) = summaries(study_folder)
    assert not trained
    kept = ("trial", "params", "status", "values", "epochs", "paths", "best_value")
    assert [[t[k] for k in kept] for t in after["trials"]] == [
        [t[k] for k in kept] for t in before["trials"]
    ]


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_fewer_trials_than_before_are_nothing_to_do(
    sweep: Sweep, study_folder: Path, caplog: pytest.LogCaptureFixture, fails: list[int]
) -> None:
    """One of three has failed, which one alone must not."""
    words = ("hydra/sweeper/sampler=random", "optimizer.lr=interval(0.01,0.1)")
    caplog.set_level(logging.INFO)
    fails.append(0)
    sweep(*words, "hydra.sweeper.n_trials=3")
    sweep(*words, "hydra.sweeper.n_trials=1")
    assert "n_trials=1 is less than the trials of earlier commands" in caplog.text
    assert "3 of 3 trials done" in caplog.text
    assert "nothing left to do" in caplog.text
    (found,) = summaries(study_folder)
    assert (found["n_trials"], len(found["trials"])) == (3, 3)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of trials that fail; the others finish without training."""
    numbers: list[int] = []

    def outcome(study: Study, number: int, *_: Any) -> job.Outcome:
        if number in numbers:
            raise UserError("epochs", "no")
        return job.Outcome("FINISHED", values={"val/top1": 0.5})

    monkeypatch.setattr(job, "_train", outcome)
    return numbers


def test_the_table_after_a_retry_has_each_point_once(
    sweep: Sweep, study_folder: Path, caplog: pytest.LogCaptureFixture, fails: list[int]
) -> None:
    words = ("seed=0,1", "hydra.sweeper.max_failure_rate=1")
    caplog.set_level(logging.INFO)
    fails += [0, 2]
    sweep(*words)
    (study,) = study_folder.glob("runs/sweeps/*/")
    assert "trial 0:  UserError: no  (it has no run folder)" in caplog.text

    def table() -> list[tuple[str, str, str]]:
        return [(r["trial"], r["status"], r["seed"]) for r in rows(study / "tables/trials.csv")]

    assert table() == [("0", "FAILED", "0"), ("1", "FINISHED", "1")]
    sweep(*words, "hydra.sweeper.retry_failed=true")
    assert table() == [("1", "FINISHED", "1"), ("2", "FAILED", "0")]
    sweep(*words, "hydra.sweeper.retry_failed=true")
    assert table() == [("1", "FINISHED", "1"), ("3", "FINISHED", "0")]
    recorded = [row["trials/ended"] for row in rows(study / "epoch_metrics.csv")]
    assert recorded[-1] == "2"
