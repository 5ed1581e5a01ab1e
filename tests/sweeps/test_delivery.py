"""Records that a store did not accept before their trials had ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from research.sweeps import delivery, record
from research.tracking.mlflow_store import MLflowStore
from research.tracking.spool import NAME
from tests.conftest import histories
from tests.sweeps.conftest import Sweep

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
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


@pytest.mark.parametrize(
    "returns",
    [
        pytest.param("before the sweep ends", marks=pytest.mark.whole),
        "before the command is repeated",
    ],
)
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
