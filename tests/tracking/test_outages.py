"""A real server that dies and comes back, and a real lock of another process, during a run."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from research.tracking import mlflow as ours
from research.tracking import mlflow_store
from research.tracking.mlflow import MLflowTracker
from research.tracking.spool import NAME, REFUSED
from research.tracking.tracker import Run
from tests.conftest import histories
from tests.mlflow_ui import free_port, mlflow_ui

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def connect(tracker: MLflowTracker) -> None:
    tracker.flush()
    assert tracker.delivering is not None
    tracker.delivering.join(60)


class Training:
    """Logs the rows of batches; measures the longest of its waits, in seconds."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.folder = folder
        self.tracker = MLflowTracker(uri, "ours", system_metrics=True)
        self.tracker.start(Run(folder, "run", {"epochs": 4, "device": "cpu"}, data=("d", "1")))
        connect(self.tracker)
        self.step = 0
        self.longest = 0.0

    def rows(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step += 1
            start = time.monotonic()
            row = {"epoch": 1, "batch": self.step, "loss": self.step / 8}
            self.tracker.log("batch", self.step, row)
            self.longest = max(self.longest, time.monotonic() - start)
            time.sleep(0.05)

    def check(self, uri: str) -> None:
        """Everything arrived once, and the run is finished."""
        self.tracker.finish("FINISHED")
        shown = client(uri).get_run(self.tracker.run_id)
        assert shown.info.status == "FINISHED"
        wanted = [(step, step / 8) for step in range(1, self.step + 1)]
        assert histories(client(uri), self.tracker.run_id)["batch/loss"] == wanted
        assert not (self.folder / NAME).exists()
        assert not (self.folder / REFUSED).exists()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries as often in seconds as otherwise in minutes, which are waited for as otherwise."""
    monkeypatch.setattr(ours, "SECONDS_FOR_DELIVERY", 0.2)
    monkeypatch.setattr(ours, "SECONDS_BETWEEN_DELIVERIES", 0.3)
    monkeypatch.setattr(ours, "SECONDS_AFTER_FAILURE", 0.5)
    monkeypatch.setattr(ours, "MOST_SECONDS_AFTER_FAILURE", 1.0)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")


@contextmanager
def locked(database: str, seconds: float) -> Iterator[None]:
    """Another process locks the database."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, database, str(seconds)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield
        process.wait()


@pytest.mark.long
def test_a_database_that_another_process_locks(store: str, tmp_path: Path) -> None:
    training = Training(store, tmp_path)
    training.rows(1)
    with locked(store.removeprefix("sqlite:///"), 12):
        training.rows(11)
        waiting = (tmp_path / NAME).read_text().count("\n")
    assert waiting > 10
    assert training.longest < 1
    training.rows(3)
    training.check(store)


@pytest.mark.long
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(signal.SIGKILL, id="dies"),
        pytest.param(signal.SIGSTOP, id="hangs", marks=pytest.mark.whole),
    ],
)
def test_a_server_that_comes_back(
    end: signal.Signals, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    port = free_port()
    monkeypatch.setattr("tests.mlflow_ui.free_port", lambda: port)
    monkeypatch.setattr(ours, "SECONDS_AFTER_FAILURE", 3.0)
    address = f"http://127.0.0.1:{port}"
    before = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    with mlflow_ui(store, tmp_path / "first.log"):
        training = Training(address, tmp_path)
        training.rows(2)
        for number in of_server(port, before):
            os.kill(number, end)
        training.rows(8)
        assert (tmp_path / NAME).read_text().count("\n") > 10
        if end is signal.SIGSTOP:
            for number in of_server(port, before):
                os.kill(number, signal.SIGCONT)
            training.rows(5)
            training.check(address)
    if end is signal.SIGKILL:
        with mlflow_ui(store, tmp_path / "second.log"):
            training.rows(5)
            training.check(address)
    assert training.longest < 1


def of_server(port: int, before: set[int]) -> list[int]:
    """The processes of the server at a port."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in before:
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if b"mlflow" in words and str(port).encode() in words:
                found.append(int(name))
    return found


def test_training_goes_on_beside_a_delivery(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflowTracker(store, "ours", system_metrics=False)
    tracker.start(Run(tmp_path, "run", {"epochs": 4}))
    connect(tracker)
    monkeypatch.setattr(ours, "SECONDS_FOR_DELIVERY", 0.05)
    send, upload = tracker.client.log_batch, tracker.client.log_artifact
    goes_on = threading.Event()
    uploaded = []

    def slowly(*words: Any, **more: Any) -> None:
        assert goes_on.wait(60)
        send(*words, **more)

    def changing(run_id: str, path: str, folder: str) -> None:
        uploaded.append(Path(path).read_text())
        if len(uploaded) == 1:  # another picture of the name, while this one is sent
            Path(path).write_text("second")
            tracker.pictures(2, {"p": Image.new("RGB", (1, 1))})
        upload(run_id, path, folder)

    monkeypatch.setattr(tracker.client, "log_batch", slowly)
    monkeypatch.setattr(tracker.client, "log_artifact", changing)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p.png").write_text("first")
    tracker.pictures(1, {"p": Image.new("RGB", (1, 1))})
    start = time.monotonic()
    tracker.next_delivery = 0.0
    for step in range(1, 2501):
        tracker.log("batch", step, {"epoch": 1, "batch": step, "loss": step / 8})
    assert time.monotonic() - start < 10
    assert (tmp_path / NAME).read_text().count("\n") == 2501
    goes_on.set()
    tracker.finish("FINISHED")
    wanted = [(step, step / 8) for step in range(1, 2501)]
    assert histories(client(store), tracker.run_id)["batch/loss"] == wanted
    assert uploaded == ["first", "second"]
    assert not (tmp_path / NAME).exists()


def test_a_lock_of_the_database_is_met_before_mlflow_meets_it(store: str, tmp_path: Path) -> None:
    tracker = MLflowTracker(store, "ours", system_metrics=False)
    tracker.start(Run(tmp_path, "run", {"epochs": 4}))
    connect(tracker)
    with sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        tracker.log("batch", 1, {"epoch": 1, "batch": 1, "loss": 1.0})
        tracker.finish("FINISHED")
        assert time.monotonic() - start < 3 * mlflow_store.SECONDS_FOR_DATABASE
        connection.execute("ROLLBACK")
    assert (tmp_path / NAME).exists()
