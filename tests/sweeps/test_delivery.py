"""Records that a store did not accept before their trials had ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from research.engine import run_folder
from research.sweeps import delivery, record
from research.sweeps.delivery import EndedRun, deliver
from research.tracking.mlflow_store import MLflowStore
from research.tracking.spool import NAME
from research.tracking.tracker import Run, Status, Tracker
from tests.conftest import histories
from tests.sweeps.conftest import Sweep

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
Compose = Callable[..., dict[str, Any]]
WORDS = ("seed=0,1", "logging=mlflow", "logging.mlflow.system_metrics=false")


def stored(uri: str) -> dict[str, Any]:
    """What a store has of each run, by its name; of a trial all but clocks."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("backbone-lab")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    found = {}
    for run_id, run in runs.items():
        tags = {name: value for name, value in run.data.tags.items() if "mlflow" not in name}
        parent = runs.get(run.data.tags.get("mlflow.parentRunId", ""))
        is_trial = parent is not None
        found[f"trial {tags['trial']}" if is_trial else "parent"] = {
            "parent": is_trial,
            "status": run.info.status,
            "tags": tags,
            "params": run.data.params,
            "data": [
                (each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs
            ],
            "files": {file.path for file in client.list_artifacts(run_id)},
            "pictures": {file.path for file in client.list_artifacts(run_id, "pictures")},
            "metrics": histories(client, run_id) if is_trial else {},
        }
    return found


class Store(Tracker):
    """Accepts records at the third attempt."""

    def __init__(self) -> None:
        self.attempts: list[Run] = []

    def waits(self, folder: Path) -> bool:
        return folder.name == "trial_0001"

    def deliver(self, run: Run, status: Status) -> bool:
        assert status == "PRUNED"
        self.attempts.append(run)
        return len(self.attempts) == 3


@pytest.mark.parametrize(("patience", "attempts", "says"), [(0, 1, "wait"), (99, 3, "delivered")])
def test_a_store_is_waited_for(
    small: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patience: float,
    attempts: int,
    says: str,
) -> None:
    config = {**small("+tags.paper=a"), "trust": []}
    runs = []
    for number in (0, 1):
        folder = tmp_path / f"trial_{number:04d}"
        folder.mkdir()
        run_folder.describe(folder, config, [], ("data", "abc"), {"global_batch": 8})
        runs.append(EndedRun(folder, number, "PRUNED"))
    store, pauses = Store(), []
    monkeypatch.setattr(delivery.build, "trackers", lambda config: [store])
    monkeypatch.setattr(delivery.time, "sleep", pauses.append)
    parent = tmp_path / "mlflow_run_id"
    with caplog.at_level("INFO"):
        deliver(runs, config, lambda: parent.write_text("0123456789abcdef"), patience)
    assert [run.folder.name for run in store.attempts] == ["trial_0001"] * attempts
    assert pauses == [5, 10][: attempts - 1]
    assert says in caplog.messages[-1]
    (tags,) = {tuple(sorted(run.tags.items())) for run in store.attempts}
    expected = {"paper": "a", "trial": "1", "mlflow.parentRunId": "0123456789abcdef"}
    assert expected.items() <= dict(tags).items()
    assert store.attempts[0].data == ("data", "abc")
    assert store.attempts[0].config["seed"] == config["seed"]


@pytest.mark.parametrize("damage", ["locked", "config.yaml", "environment.json"])
def test_a_run_that_cannot_be_delivered_is_left_out(
    small: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    config = {**small(), "trust": []}
    folder = tmp_path / "trial_0001"
    folder.mkdir()
    run_folder.describe(folder, config, [], ("data", "abc"), {"global_batch": 8})
    store = Store()
    monkeypatch.setattr(delivery.build, "trackers", lambda config: [store])
    with ExitStack() as stack:
        if damage == "locked":
            stack.enter_context(run_folder.run_lock(folder))
        else:
            (folder / damage).write_text('{"git": ""}')
        deliver([EndedRun(folder, 1, "PRUNED")], config, lambda: None, 99)
    assert not store.attempts
    assert "are not delivered" in caplog.text


@pytest.mark.whole
@pytest.mark.parametrize("returns", ["before the sweep ends", "before the command is repeated"])
def test_records_of_finished_trials_are_delivered(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch, returns: str
) -> None:
    def at(name: str) -> str:
        uri = f"sqlite:///{study_folder}/{name}.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return uri

    expected = at("expected")
    sweep(*WORDS)
    Path("runs").rename("before")
    late, connect, pauses = at("late"), MLflowStore.client, []

    def refused(self: MLflowStore) -> Any:
        raise ConnectionError("connection refused")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if returns == "before the sweep ends":
            monkeypatch.setattr(MLflowStore, "client", connect)

    monkeypatch.setattr(MLflowStore, "client", refused)
    monkeypatch.setattr(delivery.time, "sleep", sleep)
    monkeypatch.setattr(record, "PATIENCE", 1.5 * delivery.FIRST_PAUSE)
    sweep(*WORDS)
    assert pauses[:1] == [delivery.FIRST_PAUSE]
    if returns == "before the command is repeated":
        assert len(list(Path("runs").rglob(NAME))) == 3
        monkeypatch.setattr(MLflowStore, "client", connect)
        sweep(*WORDS)
    assert not list(Path("runs").rglob(NAME))
    assert stored(late) == stored(expected)
