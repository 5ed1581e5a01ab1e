"""What an MLflow store refuses for good is set aside and holds nothing else up."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import types
import urllib.request
from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2

from research.config import compose_config
from research.tracking import mlflow_models, mlflow_store
from research.tracking.mlflow import MLflowTracker
from research.tracking.spool import NAME, REFUSED
from research.tracking.tracker import Position, Run
from tests.conftest import histories, user_error
from tests.mlflow_ui import mlflow_ui

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def begun(
    uri: str,
    folder: Path,
    *,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    resumed: int = 0,
    system_metrics: bool = False,
    register: str | None = None,
) -> MLflowTracker:
    tracker = MLflowTracker(uri, "ours", system_metrics, register)
    position = Position(resumed, step=resumed)
    tracker.start(Run(folder, "run", config or {"epochs": 4}, tags or {}, ("data", "1"), position))
    tracker.flush()
    return tracker


def epoch(tracker: MLflowTracker, number: int, **more: float) -> None:
    tracker.log("epoch", number, {"epoch": number, "val/loss": number / 4, **more})
    tracker.next_delivery = 0.0
    tracker.flush()


def refused(folder: Path) -> list[dict[str, Any]]:
    path = folder / REFUSED
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(uri: str, run_id: str) -> list[tuple[int, float]]:
    return histories(client(uri), run_id).get("val/loss", [])


# -- the table of errors --------------------------------------------------------------------------


def of_code(name: str) -> MlflowException:
    return MlflowException("x", getattr(databricks_pb2, name))


def of_status(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("x", response=response)


REFUSALS = [
    *map(of_code, ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")),
    of_code("ENDPOINT_NOT_FOUND"),
    RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "x"}),
    *map(of_status, (400, 404, 413)),
    ImportError("x", name="boto3"),
    OverflowError("x"),
]
TEMPORARY = [
    *map(of_code, ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")),
    *map(of_code, ("PERMISSION_DENIED", "UNAUTHENTICATED", "DEADLINE_EXCEEDED")),
    RestException({"error_code": "RESOURCE_EXHAUSTED", "message": "x"}),
    RestException({"error_code": "a proxy's", "message": "x"}),
    *map(of_status, (401, 403, 408, 429, 500, 502, 503)),
    requests.ConnectionError("x"),
    requests.Timeout("x"),
    requests.exceptions.JSONDecodeError("x", "", 0),
    sqlite3.OperationalError("database is locked"),
    OSError(28, "no space"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_an_error_that_stays(error: Exception) -> None:
    assert mlflow_store.is_refusal(error)


@pytest.mark.parametrize("error", TEMPORARY, ids=repr)
def test_an_error_that_may_pass(error: Exception) -> None:
    assert not mlflow_store.is_refusal(error)


def test_what_helps() -> None:
    assert mlflow_store.remedy(ImportError("x", name="boto3")) == "pip install boto3"
    assert mlflow_store.remedy(ImportError("x", name="google.cloud")).endswith("cloud-storage")
    assert "MLFLOW_TRACKING_PASSWORD" in mlflow_store.remedy(of_status(401))
    assert mlflow_store.remedy(of_status(500)) == ""


# -- records --------------------------------------------------------------------------------------


def test_bad_names_do_not_sink_the_good_ones(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = {f"class {number}": float(number) for number in range(120)}
    tags, config = {"recall@1": "x", **dict.fromkeys(map(str, range(130)), "y")}, {"a@b": 1, "c": 2}
    tracker = begun(store, tmp_path, tags=tags, config=config)
    for number in (1, 2, 3):
        epoch(tracker, number, **many, **{"recall@1": 0.5, "x!": math.nan})
    tracker.finish("FINISHED")
    shown = client(store).get_run(tracker.run_id)
    assert shown.info.status == "FINISHED"
    assert shown.data.params == {"c": "2"}
    assert set(shown.data.metrics) == {*many, "val/loss"}
    assert set(map(str, range(130))) < set(shown.data.tags)
    assert losses(store, tracker.run_id) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    entries = refused(tmp_path)
    assert len(entries) == 2 + 3 * 2
    assert all("Names may only contain" in entry["reason"] for entry in entries)
    records = [entry["record"] for entry in entries]
    steps = [record["step"] for record in records if "recall@1" in record.get("metrics", ())]
    assert steps == [1, 2, 3]
    # Each name is said once, and how many there were.
    for what in ("tag 'recall@1'", "param 'a@b'", "metric 'recall@1'", "metric 'x!'"):
        assert caplog.text.count(f"refused {what}") == 1
    assert "rename it" in caplog.text
    assert "refused 8 records" in caplog.text
    assert not (tmp_path / NAME).exists()
    # A resumed run tries the rows up to its checkpoint again.
    again = begun(store, tmp_path, tags=tags, config=config, resumed=2)
    again.finish("FINISHED")
    assert len(refused(tmp_path)) == 2 + 2 * 2


def test_files_that_need_a_missing_package_hold_no_metrics_up(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(store).create_experiment("ours", artifact_location="s3://bucket/x")
    monkeypatch.setitem(sys.modules, "boto3", None)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    tracker = begun(store, tmp_path)
    for name in ("a.txt", "b.txt"):
        tracker.artifact(tmp_path / name)
    epoch(tracker, 1)
    tracker.finish("FINISHED")
    shown = client(store).get_run(tracker.run_id)
    assert shown.info.status == "FINISHED"
    assert losses(store, tracker.run_id) == [(1, 0.25)]
    assert [entry["record"]["file"] for entry in refused(tmp_path)] == ["a.txt", "b.txt"]
    assert caplog.text.count("pip install boto3") == 1
    # With the package, the resumed run delivers them.
    sent: list[str] = []

    def upload(_: Any, file: str, folder: str | None = None) -> None:
        sent.append(Path(file).name)

    monkeypatch.setattr(
        "mlflow.store.artifact.s3_artifact_repo.S3ArtifactRepository.log_artifact", upload
    )
    begun(store, tmp_path, resumed=1).finish("FINISHED")
    assert sent == ["a.txt", "b.txt"]
    assert refused(tmp_path) == []


def test_an_artifact_store_that_is_down_holds_no_metrics_up(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")
    tracker = begun(store, tmp_path)

    def down(*_: Any) -> None:
        raise requests.ConnectionError("down")

    monkeypatch.setattr(tracker.client, "log_artifact", down)
    tracker.artifact(tmp_path / "a.txt")
    for number in (1, 2):
        epoch(tracker, number)
    tracker.finish("FINISHED")
    assert losses(store, tracker.run_id) == [(1, 0.25), (2, 0.5)]
    assert client(store).get_run(tracker.run_id).info.status == "FINISHED"
    assert [json.loads(line)["file"] for line in (tmp_path / NAME).read_text().splitlines()] == [
        "a.txt"
    ]


def test_a_changed_parameter_is_a_tag(store: str, tmp_path: Path) -> None:
    first = begun(store, tmp_path, config={"epochs": 4, "seed": 1})
    epoch(first, 1)
    begun(store, tmp_path, config={"epochs": 8, "seed": 1}, resumed=1).finish("FINISHED")
    shown = client(store).get_run(first.run_id)
    assert shown.data.params == {"epochs": "4", "seed": "1"}
    assert shown.data.tags["resumed.epochs"] == "8"
    assert refused(tmp_path) == []


@pytest.mark.parametrize("address", ["sqlite:///my runs/m.db", "http://me:secret@host:5000"])
def test_advice_about_a_store_can_be_typed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = MLflowTracker(address, "ours", system_metrics=False)
    shown = tracker.store.shown
    assert "secret" not in shown
    assert shlex.split(tracker.store.command("gc")) == [
        f"MLFLOW_TRACKING_URI={shown}",
        "mlflow",
        "gc",
    ]
    if address.startswith("sqlite"):
        words = shlex.split(tracker.locations()[0], comments=True)
        assert words == ["mlflow", "ui", "--backend-store-uri", shown]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracker.store.command("gc") == "mlflow gc"


# -- runs and experiments -------------------------------------------------------------------------


def follow(command: str) -> None:
    """Type a command line of MLflow, as a shell reads it."""
    from click.testing import CliRunner
    from mlflow import experiments, runs

    setting, program, group, *words = shlex.split(command)
    groups = {"runs": runs.commands, "experiments": experiments.commands}
    assert program == "mlflow"
    result = CliRunner().invoke(groups[group], words, env=dict([setting.split("=", 1)]))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_deleted_run_is_kept_in_files_until_it_is_restored(
    what: str, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begun(store, tmp_path)
    epoch(tracker, 1)
    number = client(store).get_run(tracker.run_id).info.experiment_id
    remove = {"run": (client(store).delete_run, tracker.run_id)}.get(
        what, (client(store).delete_experiment, number)
    )
    remove[0](remove[1])
    for later in (2, 3):
        epoch(tracker, later)
    assert [entry["record"]["step"] for entry in refused(tmp_path)] == [2, 3]
    assert all("was deleted" in entry["reason"] for entry in refused(tmp_path))
    assert caplog.text.count("was deleted") == 1
    advice = re.search(rf"; (\S+ mlflow {what}s restore --{what}-id \w+), ", caplog.text)
    assert advice is not None
    # Restored while the run goes on: nothing is missing, nothing is there twice.
    follow(advice[1])
    epoch(tracker, 4)
    tracker.finish("FINISHED")
    assert losses(store, tracker.run_id) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert client(store).get_run(tracker.run_id).info.status == "FINISHED"
    assert refused(tmp_path) == []


def test_a_deleted_run_is_delivered_when_it_is_restored_and_resumed(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begun(store, tmp_path)
    epoch(tracker, 1)
    client(store).delete_run(tracker.run_id)
    epoch(tracker, 2)
    tracker.finish("FINISHED")
    assert "refused 1 record," in caplog.text
    still = begun(store, tmp_path, resumed=2)  # it is still deleted
    still.finish("FINISHED")
    assert len(refused(tmp_path)) == 1
    client(store).restore_run(tracker.run_id)
    again = begun(store, tmp_path, resumed=2)
    again.finish("FINISHED")
    assert again.run_id == tracker.run_id
    assert losses(store, tracker.run_id) == [(1, 0.25), (2, 0.5)]
    assert client(store).get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.long
def test_a_run_that_is_deleted_for_good_becomes_a_new_one_when_it_is_resumed(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begun(store, tmp_path)
    epoch(tracker, 1)
    client(store).delete_run(tracker.run_id)
    gc = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    subprocess.run(gc, check=True, capture_output=True, env=environment)
    for later in (2, 3):
        epoch(tracker, later)
    tracker.finish("FINISHED")
    assert "is no longer in the store" in caplog.text
    assert [entry["record"]["step"] for entry in refused(tmp_path)] == [2, 3]
    again = begun(store, tmp_path, resumed=3)
    again.finish("FINISHED")
    assert again.run_id != tracker.run_id
    assert losses(store, again.run_id) == [(2, 0.5), (3, 0.75)]
    assert refused(tmp_path) == []


def test_a_deleted_experiment_takes_no_new_run(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = client(store).create_experiment("ours")
    client(store).delete_experiment(number)
    tracker = begun(store, tmp_path)
    epoch(tracker, 1)
    tracker.finish("FINISHED")
    assert f"mlflow experiments restore --experiment-id {number}" in caplog.text
    assert "logging.mlflow.experiment" in caplog.text
    assert len(refused(tmp_path)) == 1
    client(store).restore_experiment(number)
    again = begun(store, tmp_path, resumed=1)
    again.finish("FINISHED")
    assert losses(store, again.run_id) == [(1, 0.25)]


# -- the address ----------------------------------------------------------------------------------


def test_the_environment_names_store_and_experiment(
    store: str, dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    tracker = MLflowTracker(None, None, False)
    assert (tracker.store.shown, tracker.experiment) == (store, "theirs")
    assert MLflowTracker(dead, "ours", False).store.shown == dead
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
    tracker = MLflowTracker(None, None, False)
    assert tracker.store.shown == "sqlite:///runs/mlflow.db"
    assert tracker.experiment == "backbone-lab"


def test_an_address_without_its_password_is_refused_before_training() -> None:
    with user_error("logging.mlflow.uri", "http://me:***@nowhere", "MLFLOW_TRACKING_URI"):
        compose_config(["logging.mlflow.uri=http://me:***@nowhere"])


# -- a project that is moved ----------------------------------------------------------------------


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process there: MLflow remembers databases and artifacts by their names."""
    from mlflow.store.model_registry import sqlalchemy_store as registry
    from mlflow.store.tracking import sqlalchemy_store as tracking
    from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry
    from mlflow.tracking._tracking_service import utils

    monkeypatch.chdir(folder)
    for module in (tracking, registry):
        monkeypatch.setattr(module.SqlAlchemyStore, "_engine_map", {})
    ModelRegistryStoreRegistry._get_store_with_resolved_uri.cache_clear()
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())
    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()


@pytest.fixture
def project(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a store in ``runs/``; the working directory."""
    (tmp_path / "old" / "runs").mkdir(parents=True)
    Path(store.removeprefix("sqlite:///")).rename(tmp_path / "old/runs/mlflow.db")
    work_in(tmp_path / "old", monkeypatch)
    return tmp_path / "old"


def record_files(uri: str, folder: Path, *names: str, resumed: int = 0) -> MLflowTracker:
    folder.mkdir(parents=True, exist_ok=True)
    tracker = begun(uri, folder, resumed=resumed, register="net")
    for name in names:
        (folder / name).write_text(name)
        tracker.artifact(folder / name)
    (folder / mlflow_models.FILE).write_text(folder.name)
    tracker.model(folder / mlflow_models.FILE, 1)
    tracker.finish("FINISHED")
    return tracker


def listed(uri: str, run_id: str) -> list[str]:
    return sorted(entry.path for entry in client(uri).list_artifacts(run_id))


@pytest.mark.parametrize("stored", ["as now", "by an earlier version"])
@pytest.mark.parametrize("how", ["moved", "copied"])
def test_artifacts_move_with_the_project(
    stored: str, how: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, new = "sqlite:///runs/mlflow.db", project.with_name("new place")
    first = record_files(uri, Path("runs/one"), "a.txt")
    if stored == "by an earlier version":
        root = (project / "runs/mlflow-artifacts").as_uri()
        with closing(sqlite3.connect("runs/mlflow.db")) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE name='ours'", (root,)
            )
            database.execute(
                "UPDATE runs SET artifact_uri = ?", (f"{root}/{first.run_id}/artifacts",)
            )
            for table, column in (
                ("logged_models", "artifact_location"),
                ("model_versions", "source"),
                ("model_versions", "storage_location"),
            ):
                old = "runs/mlflow-artifacts"
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"  # noqa: S608
                database.execute(change, (old, root))
    if how == "moved":
        project.rename(new)
    else:
        subprocess.run(["cp", "-r", project, new], check=True)
    work_in(new, monkeypatch)
    if stored == "as now":
        assert listed(uri, first.run_id) == ["a.txt"]  # without any run
        assert mlflow_models.fetch("models:/net/1").read_text() == "one"
    again = record_files(uri, Path("runs/one"), "b.txt", resumed=1)
    other = record_files(uri, Path("runs/two"), "c.txt")
    assert again.run_id == first.run_id
    assert listed(uri, first.run_id) == ["a.txt", "b.txt"]
    assert listed(uri, other.run_id) == ["c.txt"]
    assert len(list((new / "runs/mlflow-artifacts").iterdir())) == 3  # of models as well
    for version, folder in enumerate(("one", "two"), 1):
        assert mlflow_models.fetch(f"models:/net/{version}").read_text() == folder
    if how == "copied":
        work_in(project, monkeypatch)
        assert listed(uri, first.run_id) == ["a.txt"]


@pytest.mark.long
def test_the_ui_of_a_moved_project_shows_its_artifacts(project: Path, tmp_path: Path) -> None:
    uri = "sqlite:///runs/mlflow.db"
    run_id = record_files(uri, Path("runs/one"), "a.txt").run_id
    new = project.rename(project.with_name("new"))
    with mlflow_ui(uri, tmp_path / "ui.log", new) as address:
        listing = f"{address}/api/2.0/mlflow/artifacts/list?run_id={run_id}"
        with urllib.request.urlopen(listing) as answer:
            assert [file["path"] for file in json.load(answer)["files"]] == ["a.txt"]
        content = f"{address}/get-artifact?path=a.txt&run_uuid={run_id}"
        with urllib.request.urlopen(content) as answer:
            assert answer.read() == b"a.txt"


def test_artifacts_of_another_place_stay_there(project: Path) -> None:
    uri, elsewhere = "sqlite:///runs/mlflow.db", project.with_name("other") / "mlflow-artifacts"
    client(uri).create_experiment("ours", artifact_location=str(elsewhere))
    first = record_files(uri, Path("runs/one"), "a.txt")
    assert listed(uri, first.run_id) == ["a.txt"]
    assert (elsewhere / first.run_id / "artifacts/a.txt").exists()


# -- the load of a GPU ----------------------------------------------------------------------------


class NvmlError(Exception):
    pass


def fake_nvml() -> types.ModuleType:
    module = types.ModuleType("pynvml")
    values: dict[str, Any] = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: types.SimpleNamespace(total=2e9, used=1e9),
        "nvmlDeviceGetUtilizationRates": lambda _: types.SimpleNamespace(gpu=50),
        "nvmlDeviceGetPowerUsage": lambda _: 100_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 200_000,
    }
    vars(module).update(values)
    return module


@pytest.mark.parametrize("installed", [True, False])
def test_the_load_of_a_gpu_is_recorded_or_its_lack_is_said(
    installed: bool, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import torch
    from mlflow.system_metrics.metrics import gpu_monitor

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if installed:
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
        monkeypatch.setattr(gpu_monitor, "pynvml", fake_nvml(), raising=False)
    else:
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)
        monkeypatch.setattr("research.tracking.mlflow_load.find_spec", lambda _: None)
    tracker = begun(store, tmp_path, config={"device": "auto"}, system_metrics=True)
    while not any(
        key.startswith("system/") for key in client(store).get_run(tracker.run_id).data.metrics
    ):
        pass
    tracker.finish("FINISHED")
    metrics = client(store).get_run(tracker.run_id).data.metrics
    assert ("system/gpu_0_utilization_percentage" in metrics) == installed
    assert ("pip install nvidia-ml-py" in caplog.text) != installed
