"""The sweep's own run: one in every tracker, however many processes bring it up to date."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from research.sweeps import parent
from research.tracking.mlflow import MLflowTracker
from research.tracking.tensorboard import TensorBoardTracker
from research.tracking.tracker import Run, Status, Tracker
from tests.conftest import histories
from tests.sweeps.test_plots import LATENCY, LOG, TOP1, summary, trial

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def at(stage: int) -> dict[str, Any]:
    """A sweep of three trials after so many have ended; the second one was pruned."""
    trials = [
        trial(0, params={"lr": 0.01, "seed": 0}, values={"val/top1": 0.5}, epochs={"1": 0.5}),
        trial(1, "PRUNED", params={"lr": 0.1, "seed": 1}, epochs={"1": 0.25}),
        trial(2, params={"lr": 0.02, "seed": 0}, values={"val/top1": 0.75}, epochs={"1": 0.75}),
    ]
    best = {0: None, 1: 0, 2: 0, 3: 2}[stage]
    return summary(trials[:stage], {"lr": LOG, "seed": "0,1"}, best=best)


def store_of(uri: str) -> Callable[[], Sequence[Tracker]]:
    return lambda: [MLflowTracker(uri, "ours", system_metrics=True)]


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str, query: str = "") -> list[Any]:
    found = client(uri).get_experiment_by_name("ours")
    return list(client(uri).search_runs([found.experiment_id], query)) if found else []


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time, and are looked at elsewhere."""
    monkeypatch.setattr(parent.plots, "pictures", lambda summary: {})


def test_one_run_from_the_first_trial_to_the_last(store: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    # Two workers begin, and are interrupted; one of them goes on the next day.
    stages: list[tuple[int, Status]] = [
        (0, "RUNNING"), (0, "RUNNING"), (1, "RUNNING"), (2, "KILLED"), (2, "RUNNING"),
        (3, "RUNNING"),
    ]  # fmt: skip
    ids = [parent.update(folder, at(stage), store_of(store), status) for stage, status in stages]
    (shown,) = runs_of(store)
    assert ids == [shown.info.run_id] * 6
    assert shown.info.run_name == "a_study"
    assert shown.info.status == "RUNNING"
    assert shown.inputs.dataset_inputs == []
    assert not any(name.startswith("system/") for name in shown.data.metrics)

    parent.update(folder, at(3), store_of(store), "FINISHED")
    (shown,) = runs_of(store)
    assert shown.info.status == "FINISHED"
    assert shown.data.params == {
        "study": "a_study",
        "storage": "runs/studies.journal",
        "sampler": "RandomSampler",
        "pruner": "null",
        "objectives": "maximize val/top1",
        "space.lr": LOG,
        "space.seed": "0,1",
    }
    assert histories(client(store), shown.info.run_id) == {
        "trials/ended": [(0, 0), (1, 1), (2, 2), (3, 3)],
        "trials/finished": [(0, 0), (1, 1), (2, 1), (3, 2)],
        "trials/pruned": [(0, 0), (1, 0), (2, 1), (3, 1)],
        "trials/failed": [(0, 0), (1, 0), (2, 0), (3, 0)],
        "trials/killed": [(0, 0), (1, 0), (2, 0), (3, 0)],
        "best/val/top1": [(1, 0.5), (2, 0.5), (3, 0.75)],
    }
    tags = shown.data.tags
    assert (tags["study"], tags["n_trials"], tags["best_trial"]) == ("a_study", "20", "2")
    assert (tags["best.lr"], tags["best.seed"]) == ("0.02", "0")
    assert tags["mlflow.note.content"] == (
        "**best trial**\n\n| trial | val/top1 | lr | seed |\n| --- | --- | --- | --- |\n"
        "| 2 | 0.75 | 0.02 | 0 |"
    )

    drawn = {"history", "learning_curves", "slices"}
    listed = client(store).list_artifacts(shown.info.run_id, "pictures")
    assert {entry.path for entry in listed} == {f"pictures/{name}.png" for name in drawn}
    for name in drawn:
        with Image.open(folder / "pictures" / f"{name}.png") as image:
            assert image.format == "PNG"
    (listed,) = client(store).list_artifacts(shown.info.run_id, "tables")
    assert listed.path == "tables/trials.csv"
    table = rows(folder / "tables" / "trials.csv")
    assert [row["status"] for row in table] == ["FINISHED", "PRUNED", "FINISHED"]
    assert [row["epoch"] for row in rows(folder / "epoch_metrics.csv")] == ["0", "1", "2", "3"]


def test_trials_are_nested_and_pruned_ones_tagged(store: str, tmp_path: Path) -> None:
    above = parent.update(tmp_path, at(0), store_of(store), "RUNNING")
    assert above is not None
    for number, status in enumerate(("FINISHED", "PRUNED", "FAILED", "KILLED")):
        tracker = MLflowTracker(store, "ours", system_metrics=False)
        folder = tmp_path / f"trial_{number:04d}"
        folder.mkdir()
        tags = {"mlflow.parentRunId": above, "trial": str(number)}
        tracker.start(Run(folder, f"trial {number}", {"lr": 0.1}, tags, ("d", "1")))
        tracker.finish(status)  # type: ignore[arg-type]
    found = runs_of(store, f"tags.`mlflow.parentRunId` = '{above}'")
    assert {entry.data.tags["trial"]: entry.info.status for entry in found} == {
        "0": "FINISHED",
        "1": "KILLED",
        "2": "FAILED",
        "3": "KILLED",
    }
    (pruned,) = runs_of(store, "tags.status = 'PRUNED'")
    assert pruned.data.tags["trial"] == "1"


def test_a_retried_trial_counts_once_and_is_recorded(
    store: str, tmp_path: Path, undrawn: None
) -> None:
    found = at(3)
    # Trial 1 has failed and is tried again, while others end.
    for status, values, best in (
        ("FAILED", {}, 2),
        ("RUNNING", {}, 2),
        ("FINISHED", {"val/top1": 0.875}, 1),
    ):
        found["trials"][1] |= {"status": status, "values": values}
        found["best"] = found["trials"][best]
        parent.update(tmp_path, found, store_of(store), "RUNNING")
    (shown,) = runs_of(store)
    recorded = histories(client(store), shown.info.run_id)
    assert recorded["trials/ended"] == [(3, 3), (4, 2), (5, 3)]
    assert recorded["best/val/top1"] == [(3, 0.75), (4, 0.75), (5, 0.875)]
    assert shown.data.tags["best_trial"] == "1"


def test_an_unreachable_store_gets_everything_later_and_once(
    store: str, dead: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in (0, 1, 1, 2):
        assert parent.update(tmp_path, at(stage), store_of(dead), "RUNNING") is None
    assert "does not answer" in caplog.text
    assert (tmp_path / "pictures" / "history.png").exists()
    assert len(rows(tmp_path / "tables" / "trials.csv")) == 2

    above = parent.update(tmp_path, at(3), store_of(store), "FINISHED")
    (shown,) = runs_of(store)
    assert shown.info.run_id == above
    recorded = histories(client(store), shown.info.run_id)
    assert recorded["trials/ended"] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    listed = client(store).list_artifacts(shown.info.run_id, "pictures")
    assert "pictures/history.png" in {entry.path for entry in listed}


def test_tensorboard_goes_on_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stage in (0, 1, 1, 2, 3):
        status: Status = "RUNNING" if stage < 2 else "FINISHED"
        parent.update(tmp_path, at(stage), lambda: [TensorBoardTracker()], status)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "epoch"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("best/val/top1")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.75),
    ]
    assert "pictures/history" in events.Tags()["images"]


def test_a_front_instead_of_a_best_trial(tmp_path: Path, undrawn: None) -> None:
    started: list[Run] = []

    class Spy(Tracker):
        def start(self, run: Run) -> None:
            started.append(run)

    trials = [
        trial(n, params={"lr": lr}, values={"val/top1": top1, "latency_ms": ms})
        for n, (lr, top1, ms) in enumerate(((0.1, 0.5, 10.0), (0.2, 0.75, 20.0), (0.3, 0.5, 30.0)))
    ]
    found = summary(trials, {"lr": LOG}, (TOP1, LATENCY), pareto=(0, 1))
    assert parent.update(tmp_path, found, lambda: [Spy()], "FINISHED") is None
    assert started[0].config["objectives"] == "maximize val/top1, minimize latency_ms"
    assert started[0].tags["pareto"] == "0, 1"
    assert "best_trial" not in started[0].tags
    assert started[0].tags["mlflow.note.content"].splitlines()[4:] == [
        "| 0 | 0.5 | 10 | 0.1 |",
        "| 1 | 0.75 | 20 | 0.2 |",
    ]
    (row,) = rows(tmp_path / "epoch_metrics.csv")
    assert (row["best/val/top1"], row["best/latency_ms"]) == ("0.75", "10.0")
