"""MLflow's UI in a real browser: a sweep is one tree, and its trials can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.sweeps import parent
from research.tracking.mlflow import MLflowTracker
from research.tracking.tracker import Run, Status
from tests.browser import Page, needs_browser
from tests.mlflow_ui import compare_page, mlflow_ui, names, run_page, runs_page, unfold
from tests.sweeps.test_parent import at, client, store_of

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@needs_browser
@pytest.mark.whole
def test_a_sweep_is_one_tree_and_its_trials_are_compared(store: str, tmp_path: Path) -> None:
    above = parent.update(tmp_path, at(0), store_of(store), "RUNNING")
    ids = []
    endings: tuple[Status, ...] = ("FINISHED", "PRUNED", "FINISHED")
    for trial, status in zip(at(3)["trials"], endings, strict=True):
        tracker = MLflowTracker(store, "ours", system_metrics=False)
        folder = tmp_path / str(trial["trial"])
        folder.mkdir()
        tags = {"mlflow.parentRunId": str(above)}
        name = f"trial_{trial['trial']}"
        tracker.start(Run(folder, name, trial["params"], tags, ("scenes", "1")))
        for epoch, value in trial["epochs"].items():
            tracker.log("epoch", int(epoch), {"epoch": int(epoch), "val/top1": value})
        tracker.finish(status)
        ids.append(tracker.run_id)
    parent.update(tmp_path, at(3), store_of(store), "FINISHED")
    number = client(store).get_experiment_by_name("ours").experiment_id

    with mlflow_ui(store, tmp_path / "ui.log") as address, Page(f"{address}/health") as page:
        page.go(runs_page(address, number), "a_study")
        # Folded: the sweep stands for its trials.
        page.says("4 matching runs")
        assert names(page) == ["a_study"]
        unfold(page, "a_study")
        page.says("trial_0")
        assert names(page) == ["a_study", "trial_2", "trial_1", "trial_0"]

        page.go(run_page(address, number, str(above)), "About this run")
        for words in ("best trial", "trial_0", "trial_1", "trial_2", "best/val/top1", "0.75"):
            page.says(words)

        page.go(compare_page(address, number, ids[:2]), "Comparing 2 Runs from 1 Experiment")
        for words in ("trial_0", "trial_1", "lr", "0.01", "val/top1", "0.5", "0.25", "PRUNED"):
            page.says(words)
