"""MLflow: a real server shows a real run; an unavailable store loses and stops nothing."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import signal
import sqlite3
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from research.engine import run as engine_run
from research.tracking import mlflow as ours
from research.tracking.files import FileTracker
from research.tracking.mlflow import MLflowTracker
from research.tracking.tracker import Position, Run, Tracker
from tests.conftest import TINY, FirstUse, histories, result_of, run
from tests.mlflow_ui import mlflow_ui

Compose = Callable[..., dict[str, Any]]
# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
SPOOL = "mlflow_spool.jsonl"


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str, experiment: str = "backbone-lab") -> list[Any]:
    found = client(uri).get_experiment_by_name(experiment)
    return list(client(uri).search_runs([found.experiment_id])) if found else []


def on_store(uri: str) -> tuple[str, ...]:
    return (
        *TINY,
        "logging=mlflow",
        f"logging.mlflow.uri={uri}",
        "logging.mlflow.system_metrics=false",
    )


# -- a real server ------------------------------------------------------------------------------


@contextmanager
def server(uri: str, log: Path) -> Iterator[Callable[..., Any]]:
    """A function that requests an endpoint of a real ``mlflow ui``."""
    with mlflow_ui(uri, log) as address:

        def ask(endpoint: str, body: dict[str, Any] | None = None, /, **query: str) -> Any:
            url = f"{address}{endpoint}?{urllib.parse.urlencode(query)}"
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
                plain = answer.headers.get_content_type() == "application/json"
                return json.loads(content) if plain else content

        yield ask


def test_a_real_server_shows_a_real_run(
    small: Compose, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    api = "/api/2.0/mlflow"
    with server(store, tmp_path / "ui.log") as ask:
        settings = ("epochs=3", "log_every=1", "tags.paper=mine", "batch_size=4")
        folder = run(small(*on_store(store), "logging.mlflow.system_metrics=true", *settings))

        experiments = ask(f"{api}/experiments/search", {"max_results": 100})["experiments"]
        (experiment,) = (e for e in experiments if e["name"] == "backbone-lab")
        identifier = experiment["experiment_id"]
        own = {entry["key"]: entry["value"] for entry in experiment["tags"]}
        assert own["mlflow.experimentKind"] == "custom_model_development"
        assert own["mlflow.experiment.primaryMetric.name"] == "val/top1"
        (shown,) = ask(f"{api}/runs/search", {"experiment_ids": [identifier]})["runs"]
        run_id = shown["info"]["run_id"]
        assert shown["info"]["status"] == "FINISHED"
        assert shown["info"]["run_name"] == "test"
        assert shown["info"]["end_time"] >= shown["info"]["start_time"]

        params = {entry["key"]: entry["value"] for entry in shown["data"]["params"]}
        assert params["epochs"] == "3"
        assert params["optimizer.lr"] == "0.02"
        assert params["compression.variant"] == "luma_fusion_pruned"
        assert params["model.pretrained"] == "null"

        tags = {entry["key"]: entry["value"] for entry in shown["data"]["tags"]}
        environment = json.loads((folder / "environment.json").read_text())
        assert tags["paper"] == "mine"
        assert tags["git_commit"] == environment["git"].get("commit", "")
        assert tags["git_changed"] in ("True", "False", "")
        assert tags["mlflow.source.name"] == environment["command"][0]
        about, best = tags["mlflow.note.content"].split("\n\n")
        assert about.startswith("resnet18: ")
        assert "24 train, 12 val images" in about
        summary = json.loads((folder / "summary.json").read_text())
        assert f"{summary['best_value']:.4f}** (n=12 images) at epoch" in best
        (output,) = shown["outputs"]["model_outputs"]
        assert int(output["step"]) == summary["best_epoch"]
        model = ask(f"/api/2.0/mlflow/logged-models/{output['model_id']}")["model"]
        assert model["info"]["status"] == "LOGGED_MODEL_READY"
        assert {each["key"] for each in model["data"]["metrics"]} == {
            "val/loss", "val/top1", "val/ece", "val/n",
        }  # fmt: skip
        assert tags["version.torch"] == environment["packages"]["torch"]
        (data,) = shown["inputs"]["dataset_inputs"]
        assert data["dataset"]["name"] == "imagefolder"
        assert data["dataset"]["digest"] == tags["data_hash"] != ""

        def history(key: str) -> list[tuple[int, float]]:
            answer = ask(f"{api}/metrics/get-history", run_id=run_id, metric_key=key)
            return [(int(entry["step"]), entry["value"]) for entry in answer["metrics"]]

        with (folder / "epoch_metrics.csv").open(newline="") as file:
            epochs = list(csv.DictReader(file))
        for key in ("train/loss", "val/loss", "val/top1", "learning_rate"):
            assert history(key) == [(int(row["epoch"]), float(row[key])) for row in epochs]
        with (folder / "batch_metrics.csv").open(newline="") as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        assert history("batch/loss") == list(enumerate(losses, start=1))
        assert len(losses) == 18
        metrics = {entry["key"] for entry in shown["data"]["metrics"]}
        assert "system/cpu_utilization_percentage" in metrics
        assert not {"epoch", "batch/epoch", "batch/batch"} & metrics

        def listed(path: str = "") -> set[str]:
            answer = ask(f"{api}/artifacts/list", run_id=run_id, path=path)
            return {entry["path"] for entry in answer["files"]}

        pictures = (
            "confident_mistakes",
            "confusion_matrix",
            "learning_curves",
            "reliability",
            "sample_predictions",
            "training_samples",
        )
        assert listed("pictures") == {f"pictures/{name}.png" for name in pictures}
        assert listed("checkpoints") == {"checkpoints/best.pt"}
        assert {"config.yaml", "model_summary.txt", "environment.json"} < listed()
        for name in pictures:
            sent = ask("/get-artifact", path=f"pictures/{name}.png", run_uuid=run_id)
            assert sent.startswith(b"\x89PNG\r\n\x1a\n")
            assert sent == (folder / "pictures" / f"{name}.png").read_bytes()
        best = ask("/get-artifact", path="checkpoints/best.pt", run_uuid=run_id)
        assert best == (folder / "checkpoints" / "best.pt").read_bytes()
    assert not (folder / SPOOL).exists()


def test_first_use_by_two_processes_at_once(first_use: FirstUse) -> None:
    for status, _, errors in first_use.outcomes:
        assert (status, errors) == (0, "")  # not even a delay
    found = runs_of(f"sqlite:///{first_use.database}", "first use")
    ids = {printed.strip() for _, printed, _ in first_use.outcomes}
    assert {entry.info.run_id for entry in found} == ids
    assert len(ids) == 2
    assert [entry.info.status for entry in found] == ["FINISHED", "FINISHED"]


# -- how a run ends -----------------------------------------------------------------------------


def test_a_crash_is_shown_as_failed(
    small: Compose, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine_run, "_finish_files", crash)
    with pytest.raises(ZeroDivisionError):
        run(small(*on_store(store), "run_dir=bad"))
    (shown,) = runs_of(store)
    assert shown.info.status == "FAILED"
    assert shown.data.metrics["val/top1"] >= 0
    assert json.loads(Path("bad/summary.json").read_text())["status"] == "FAILED"


def test_an_interruption_while_the_store_is_opened_is_shown_as_killed(
    small: Compose, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run = MLflowTracker._open_run

    def interrupted(self: MLflowTracker, *words: Any) -> None:
        open_run(self, *words)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MLflowTracker, "_open_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(*on_store(store), "run_dir=stopped"))
    (shown,) = runs_of(store)
    assert shown.info.status == "KILLED"
    assert json.loads(Path("stopped/summary.json").read_text())["status"] == "KILLED"


# -- unavailable stores -------------------------------------------------------------------------


@pytest.fixture
def lock(store: str) -> Iterator[sqlite3.Connection]:
    """Locks the store with ``begin exclusive``, until ``rollback``."""
    database = store.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


def record(tracker: Tracker, epoch: int, batches: int = 2) -> None:
    """Log the rows of an epoch as the loop does; values depend on epoch and batch."""
    for batch in range(1, batches + 1):
        step = (epoch - 1) * batches + batch
        row = {"epoch": epoch, "batch": batch, "loss": step / 8, "timestamp": "now"}
        tracker.log("batch", step, row)
    tracker.log("epoch", epoch, {"epoch": epoch, "val/top1": epoch / 4, "checkpoint_path": "x"})
    tracker.flush()


def expected(epochs: int, batches: int = 2) -> dict[str, list[tuple[int, float]]]:
    return {
        "batch/loss": [(step, step / 8) for step in range(1, epochs * batches + 1)],
        "val/top1": [(epoch, epoch / 4) for epoch in range(1, epochs + 1)],
    }


def spooled(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SPOOL).read_text().splitlines()]


def start(
    uri: str, folder: Path, resumed: int = 0, state: Any = None, epochs: int = 4
) -> MLflowTracker:
    tracker = MLflowTracker(uri, "ours", system_metrics=False)
    config = {"epochs": epochs, "a": {"b": 1}}
    tracker.start(
        Run(
            folder,
            "run",
            config,
            {"t": "1"},
            ("d", "1"),
            Position(resumed, step=2 * resumed),
            state or {},
        )
    )
    tracker.flush()
    return tracker


def test_a_run_on_a_dead_server_finishes_and_is_delivered_when_resumed(
    small: Compose, store: str, dead: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(small(*on_store(dead), "epochs=2"))
    assert json.loads((folder / "summary.json").read_text())["status"] == "FINISHED"
    waiting = spooled(folder)
    assert [entry["step"] for entry in waiting if "batch/loss" in entry.get("metrics", {})] == [
        1, 2, 3, 4, 5, 6,
    ]  # fmt: skip
    assert "does not answer" in caplog.text
    assert f"{len(waiting)} records left in {folder / SPOOL}" in caplog.text
    again = run(small(*on_store(store), "epochs=2", f"resume={folder}"))
    assert again == folder
    assert not (folder / SPOOL).exists()
    (shown,) = runs_of(store)
    assert shown.info.status == "FINISHED"
    metrics = histories(client(store), shown.info.run_id)
    assert [step for step, _ in metrics["batch/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in metrics["val/top1"]] == [1, 2]
    names = [entry.path for entry in client(store).list_artifacts(shown.info.run_id, "pictures")]
    assert "pictures/confusion_matrix.png" in names


def test_a_run_on_a_locked_store_is_delivered_at_its_end(
    small: Compose, store: str, lock: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.execute("begin exclusive")
    finish = engine_run._finish_files
    waiting: list[dict[str, Any]] = []

    def unlock(folder: Path, *rest: Any) -> None:
        waiting.extend(spooled(folder))
        lock.execute("rollback")
        finish(folder, *rest)

    monkeypatch.setattr(engine_run, "_finish_files", unlock)
    folder = run(small(*on_store(store), "epochs=2"))
    assert sum("metrics" in entry for entry in waiting) == 8
    assert not (folder / SPOOL).exists()
    (shown,) = runs_of(store)
    assert shown.info.status == "FINISHED"
    metrics = histories(client(store), shown.info.run_id)
    assert [step for step, _ in metrics["batch/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in metrics["val/top1"]] == [1, 2]


def test_a_store_that_was_locked_gets_everything_once(
    store: str, tmp_path: Path, lock: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(store, tmp_path)
    record(tracker, 1)
    lock.execute("begin exclusive")

    def blocking(*_: Any, **__: Any) -> None:
        pytest.fail("MLflow's own retries started, which take 20 s")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", blocking)
        tracker.next_delivery = 0.0
        record(tracker, 2)
    assert tracker.next_delivery > 0
    assert spooled(tmp_path)
    lock.execute("rollback")
    record(tracker, 3)
    tracker.finish("FINISHED")
    assert histories(client(store), tracker.run_id) == expected(3)
    assert not (tmp_path / SPOOL).exists()


def test_an_unavailable_store_is_tried_rarely(
    dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    connect = MLflowTracker._connect

    def counted(self: MLflowTracker) -> None:
        nonlocal attempts
        attempts += 1
        connect(self)

    now = 1000.0
    monkeypatch.setattr(MLflowTracker, "_connect", counted)
    monkeypatch.setattr(ours.time, "monotonic", lambda: now)
    tracker = start(dead, tmp_path)
    assert attempts == 1
    for epoch in range(1, 30):
        record(tracker, epoch)
    assert attempts == 1
    now += ours.SECONDS_AFTER_FAILURE
    record(tracker, 30)
    assert attempts == 2
    # One request without retries, with this timeout.
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    tracker.finish("FINISHED")
    assert attempts == 3
    assert len(spooled(tmp_path)) == 30 * 3


@pytest.mark.parametrize("kind", ["a folder", "no database", "a file above"])
def test_an_invalid_database_fails_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def blocking(*_: Any) -> None:
        pytest.fail("MLflow's own retries started, which take minutes")

    monkeypatch.setattr("mlflow.store.db.utils.create_sqlalchemy_engine_with_retry", blocking)
    path = tmp_path / "store.db"
    if kind == "a folder":
        path.mkdir()
    elif kind == "no database":
        path.write_text("not a database, but a text of some length\n" * 100)
    else:
        path.write_text("")
        path = path / "below.db"
    tracker = start(f"sqlite:///{path}", tmp_path)
    record(tracker, 1)
    tracker.finish("FINISHED")
    assert len(spooled(tmp_path)) == 3
    assert "does not answer" in caplog.text


def test_a_request_executed_without_an_answer_is_stored_once(store: str, tmp_path: Path) -> None:
    tracker = start(store, tmp_path)
    send = tracker.client.log_batch
    errors = iter([TimeoutError("no answer"), ConnectionResetError("no answer")])

    def without_answer(*words: Any, **more: Any) -> None:
        send(*words, **more)
        for error in errors:
            raise error

    tracker.client.log_batch = without_answer
    tracker.next_delivery = 0.0
    record(tracker, 1)
    tracker.next_delivery = 0.0
    record(tracker, 2)
    tracker.finish("KILLED")
    assert histories(client(store), tracker.run_id) == expected(2)
    assert client(store).get_run(tracker.run_id).info.status == "KILLED"


def test_an_interrupted_connect_is_completed(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:

        def broken(*_: Any, **__: Any) -> None:
            raise OSError("disk full")

        patch.setattr(MlflowClient, "log_inputs", broken)
        tracker = start(store, tmp_path)
        assert not tracker.connected
    record(tracker, 1)
    tracker.finish("FINISHED")
    (shown,) = runs_of(store, "ours")
    assert shown.info.status == "FINISHED"
    assert shown.data.params == {"epochs": "4", "a.b": "1"}
    assert [entry.dataset.name for entry in shown.inputs.dataset_inputs] == ["d"]
    assert histories(client(store), shown.info.run_id) == expected(1)


# -- resume -------------------------------------------------------------------------------------


def test_a_killed_run_resumes_in_the_same_mlflow_run(store: str, tmp_path: Path) -> None:
    first = start(store, tmp_path)
    record(first, 1)
    state = first.state()
    record(first, 2)
    # Part of the unfinished epoch is in the store, part in the spool.
    first.log("batch", 5, {"epoch": 3, "batch": 1, "loss": 5 / 8})
    first._deliver()
    first.log("batch", 6, {"epoch": 3, "batch": 2, "loss": 6 / 8})
    with (tmp_path / SPOOL).open("a") as file:
        file.write('{"epoch": 3, "step": 7, "metr')  # killed while it wrote

    # `epochs` may be raised on resume; MLflow's parameters cannot change, tags can.
    second = start(store, tmp_path, resumed=2, state=state, epochs=8)
    assert second.run_id == first.run_id
    assert len(second.spool) == 0
    for epoch in (3, 4):
        record(second, epoch)
    second.finish("FINISHED")
    (shown,) = runs_of(store, "ours")
    assert shown.info.status == "FINISHED"
    assert histories(client(store), shown.info.run_id) == expected(4)
    assert (shown.data.params["epochs"], shown.data.tags["resumed.epochs"]) == ("4", "8")
    start(store, tmp_path, resumed=4, state=state, epochs=4).finish("FINISHED")
    (shown,) = runs_of(store, "ours")
    assert shown.data.tags["resumed.epochs"] == "4"
    assert [key for key in shown.data.tags if key.startswith("resumed.")] == ["resumed.epochs"]


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_is_set_back_is_a_new_mlflow_run(
    store: str, dead: str, tmp_path: Path, waiting: bool, killed: bool
) -> None:
    """With all rows up to there, from the tables or from the spool: points cannot be deleted."""
    first = start(dead if waiting else store, tmp_path)
    tables = FileTracker(tmp_path)
    for epoch in (1, 2, 3):
        for tracker in (first, tables):
            record(tracker, epoch)
    if killed:
        first._deliver()
    else:
        first.finish("FINISHED")
    tables.start(Run(tmp_path, "run", {}, resumed=Position(2, step=4)))
    first.set_back(tmp_path)
    second = start(store, tmp_path, resumed=2)
    record(second, 3)
    second.finish("FINISHED")
    assert second.run_id != first.run_id
    assert histories(client(store), second.run_id) == expected(3)
    if not waiting:
        assert histories(client(store), first.run_id) == expected(3)
        status = client(store).get_run(first.run_id).info.status
        assert status == ("KILLED" if killed else "FINISHED")


def test_pending_records_are_delivered_by_the_resumed_run(
    store: str, dead: str, tmp_path: Path
) -> None:
    first = start(dead, tmp_path)
    for epoch in (1, 2, 3):
        record(first, epoch)
    assert first.state() == {}
    # The run resumes after epoch 2: records of epoch 3 are dropped.
    second = start(store, tmp_path, resumed=2)
    for epoch in (3, 4):
        record(second, epoch)
    second.finish("FINISHED")
    assert histories(client(store), second.run_id) == expected(4)


VALUES = {"top1": 0.25, "loss": 1e-9, "ece": math.nan, "nll": math.inf}


def of_store(value: float) -> Any:
    """A metric as MLflow gives it back."""
    within = value if math.isnan(value) else min(value, sys.float_info.max)
    return pytest.approx(within, rel=1e-5, nan_ok=True)


def test_an_evaluation_is_recorded_once_by_whoever_delivers_it(
    store: str, dead: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the run, after an outage, and by another process; not if only rounding differs."""
    caplog.set_level(logging.INFO)
    result = result_of(epoch=2, metrics=VALUES)
    (tmp_path / "evaluations").mkdir()
    file = tmp_path / "evaluations" / "test.json"
    file.write_text("{}")
    first = start(dead, tmp_path)
    record(first, 1)
    record(first, 2)
    first.evaluation(result, [file])
    first.finish("FINISHED")
    assert (tmp_path / SPOOL).exists()
    second = start(store, tmp_path, resumed=2)
    second.evaluation(result, [file])
    second.finish("FINISHED")
    other = MLflowTracker(store, "ours", system_metrics=False)
    for factor in (1, 1 + 1e-9):
        near = {name: factor * value for name, value in VALUES.items()}
        found = result_of(epoch=2, metrics=near)
        assert other.deliver_evaluation(tmp_path, found, file.parent, [file]) == ""
    once = {f"test/{name}": [(2, of_store(v))] for name, v in {**VALUES, "n": 8}.items()}
    assert histories(client(store), second.run_id) == {**expected(2), **once}
    paths = [entry.path for entry in client(store).list_artifacts(second.run_id, "evaluations")]
    assert paths == ["evaluations/test.json"]
    assert "beside it" not in caplog.text
    again = result_of(epoch=2, metrics={**VALUES, "top1": 0.5})
    assert other.deliver_evaluation(tmp_path, again, file.parent, []) == ""
    once["test/top1"].append((2, 0.5))
    assert histories(client(store), second.run_id) == {**expected(2), **once}
    assert "test/top1 of epoch 2 was 0.25; 0.5 is logged beside it" in caplog.text
    assert not (tmp_path / SPOOL).exists()


def test_an_evaluation_that_waits_is_no_row_of_an_epoch(store: str, tmp_path: Path) -> None:
    """A new MLflow run gets every row from the tables, also that of the evaluated epoch."""
    first, tables = start(store, tmp_path), FileTracker(tmp_path)
    for epoch in (1, 2):
        for tracker in (first, tables):
            record(tracker, epoch)
    first.finish("FINISHED")
    first.evaluation(result_of(epoch=2), [])
    first.set_back(tmp_path)
    second = start(store, tmp_path, resumed=2)
    second.finish("FINISHED")
    once = {"test/top1": [(2, 0.5)], "test/n": [(2, 8)]}
    assert histories(client(store), second.run_id) == {**expected(2), **once}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no run", "has no run there"),
        ("deleted", "mlflow runs restore --run-id"),
        ("gone", "no longer in the store"),
        ("no store", "no "),
        ("dead", "MLflow at http://127.0.0.1"),
    ],
)
def test_why_an_evaluation_is_not_recorded(
    what: str, words: str, store: str, dead: str, tmp_path: Path
) -> None:
    if what != "no run":
        tracker = start(store, tmp_path)
        record(tracker, 1)
        tracker.finish("FINISHED")
    if what == "deleted":
        client(store).delete_run(tracker.run_id)
    if what == "gone":
        (tmp_path / "mlflow_run_id").write_text("0" * 32)
    address = {"no store": f"sqlite:///{tmp_path}/none.db", "dead": dead}.get(what, store)
    other = MLflowTracker(address, "ours", system_metrics=False)
    problem = other.deliver_evaluation(tmp_path, result_of(), tmp_path, [])
    assert words in problem
    assert "\n" not in problem
    assert not (tmp_path / "none.db").exists()


def test_a_run_created_after_the_checkpoint_is_resumed(
    store: str, tmp_path: Path, lock: sqlite3.Connection
) -> None:
    lock.execute("begin exclusive")
    first = start(store, tmp_path)
    record(first, 1)
    state = first.state()
    assert state == {}
    lock.execute("rollback")
    first.next_delivery = 0.0
    record(first, 2)
    second = start(store, tmp_path, resumed=1, state=state)
    assert second.run_id == first.run_id
    record(second, 2)
    second.finish("FINISHED")
    (shown,) = runs_of(store, "ours")
    assert histories(client(store), shown.info.run_id) == expected(2)


def test_a_run_missing_in_the_store_is_created_again(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(store, tmp_path, resumed=1, state={"mlflow_run_id": "0" * 32})
    record(tracker, 2)
    tracker.finish("FINISHED")
    assert "is not in" in caplog.text
    (shown,) = runs_of(store, "ours")
    assert [step for step, _ in histories(client(store), shown.info.run_id)["val/top1"]] == [2]


def test_a_fresh_run_in_an_old_folder_is_a_new_mlflow_run(store: str, tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        tracker = start(store, tmp_path)
        record(tracker, 1)
        tracker.finish("FINISHED")
        ids.add(tracker.run_id)
        assert histories(client(store), tracker.run_id) == expected(1)
    assert len(ids) == 2


def test_a_run_that_starts_again_ends_the_abandoned_mlflow_run(store: str, tmp_path: Path) -> None:
    """As a kill before the first checkpoint leaves it; a run that was deleted is no obstacle."""
    run_ids = []
    for _ in range(3):
        tracker = MLflowTracker(store, "again", False)
        tracker.start(Run(tmp_path, "run", {"epochs": 1}))
        tracker.flush()
        run_ids.append(tracker.run_id)
        if len(run_ids) == 2:
            client(store).delete_run(tracker.run_id)
    tracker.finish("FINISHED")
    statuses = [client(store).get_run(run_id).info.status for run_id in run_ids]
    assert statuses == ["KILLED", "RUNNING", "FINISHED"]
    assert len(set(run_ids)) == 3


@pytest.mark.parametrize("resumed", [0, 2])
def test_a_kill_before_the_id_of_a_run_is_written(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: int
) -> None:
    killed = MLflowTracker(store, "ours", False)

    def interrupted(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(ours, "write_text", interrupted)
        killed._read(Run(tmp_path, "run", {}))
        with pytest.raises(KeyboardInterrupt):
            killed._deliver()
    again = start(store, tmp_path, resumed=resumed)
    again.finish("FINISHED")
    found = {shown.info.run_id: shown.info.status for shown in runs_of(store, "ours")}
    assert found == {killed.run_id: "KILLED", again.run_id: "FINISHED"}


def test_many_metrics_are_split_into_requests(store: str, tmp_path: Path) -> None:
    tracker = start(store, tmp_path)
    tracker.next_delivery = float("inf")
    wide = {f"class_{number}": float(number) for number in range(2500)}
    for epoch in (1, 2):
        tracker.log("epoch", epoch, {"epoch": epoch, **wide})
    tracker.finish("FINISHED")
    found = client(store).get_run(tracker.run_id).data.metrics
    assert found == wide
    assert histories_of(store, tracker.run_id, "class_7") == [(1, 7.0), (2, 7.0)]


def test_batch_times_are_sent_as_means_and_losses_at_their_own_times(
    store: str, tmp_path: Path
) -> None:
    tracker = MLflowTracker(store, "ours", system_metrics=False)
    tracker.start(Run(tmp_path, "run", {"log_every": 2}))
    first = datetime(2026, 1, 1, tzinfo=UTC)
    for step, seconds in enumerate((0.5, 0.25, 0.75, 1.0, 2.0), start=1):
        time = first + timedelta(seconds=step)
        row = {"epoch": 1, "batch": step, "loss": 1.0, "batch_time_sec": seconds}
        tracker.log("batch", step, {**row, "timestamp": time.isoformat()})
    tracker.finish("FINISHED")
    means = histories_of(store, tracker.run_id, "batch/batch_time_sec")
    assert means == [(1, 0.5), (3, 0.5), (5, 1.5)]
    losses = client(store).get_metric_history(tracker.run_id, "batch/loss")
    start = round(1000 * first.timestamp())
    assert [(m.step, m.timestamp) for m in losses] == [(n, start + 1000 * n) for n in range(1, 6)]


def histories_of(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client(uri).get_metric_history(run_id, key)]
