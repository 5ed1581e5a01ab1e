"""``summary.json``: up to date from the start of a run to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research.tracking.summary import SummaryTracker, best_n
from research.tracking.tracker import Run, Status, Tracker, Trackers
from tests.conftest import train_state

INFO = {
    "model": "resnet34",
    "parameters": 7,
    "classes": ["a", "b"],
    "monitor": ["val/top1", "max"],
}


def row(epoch: int, top1: float, seconds: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train/loss": 1 / epoch,
        "val/loss": 2 / epoch,
        "val/top1": top1,
        "val/n": 100 + epoch,
        "epoch_time_sec": seconds,
        "checkpoint_path": f"checkpoints/epoch_{epoch:03d}.pt",
    }


def test_it_follows_the_run(tmp_path: Path) -> None:
    def read() -> dict[str, Any]:
        return json.loads((tmp_path / "summary.json").read_text())

    state = train_state()
    tracker = SummaryTracker(INFO, state, patience=2)
    tracker.start(Run(tmp_path, "mine", {"optimizer": {"lr": 0.1}}))
    # There is a summary even after a crash in the first epoch.
    assert read()["status"] == "RUNNING"
    assert read()["epochs_done"] == 0
    assert (read()["best_value"], read()["best_n"]) == (None, None)
    assert not read()["stopped_early"]

    for epoch, top1 in ((1, 0.5), (2, 0.75), (3, 0.75), (4, 0.25)):
        state.epoch, state.step = epoch, 10 * epoch
        state.history.append(row(epoch, top1, seconds=epoch / 4))
        if state.best is None or top1 > state.best:
            state.best, state.best_epoch = top1, epoch
        tracker.flush()
        assert read()["status"] == "RUNNING"
        assert read()["epochs_done"] == epoch
    tracker.finish("FINISHED")

    summary = read()
    assert summary["status"] == "FINISHED"
    assert summary["name"] == "mine"
    assert {key: summary[key] for key in INFO} == INFO
    assert (summary["best_epoch"], summary["best_value"], summary["best_n"]) == (2, 0.75, 102)
    assert [entry["val/n"] for entry in summary["epochs"]] == [101, 102, 103, 104]
    assert summary["stopped_early"]
    assert summary["total_time_sec"] == 2.5
    assert summary["configuration"] == {"optimizer": {"lr": 0.1}}
    assert [entry["train/loss"] for entry in summary["epochs"]] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert [entry["val/loss"] for entry in summary["epochs"]] == [2, 1, 2 / 3, 1 / 2]
    assert [entry["epoch_time_sec"] for entry in summary["epochs"]] == [0.25, 0.5, 0.75, 1]
    assert summary["epochs"][1]["checkpoint_path"] == "checkpoints/epoch_002.pt"
    assert summary["paths"] == {
        "run": str(tmp_path),
        "best": str(tmp_path / "checkpoints" / "best.pt"),
        "last": str(tmp_path / "checkpoints" / "last.pt"),
        "weights": str(tmp_path / "checkpoints" / "final.safetensors"),
        "best_weights": str(tmp_path / "checkpoints" / "best.safetensors"),
        "pictures": str(tmp_path / "pictures"),
    }


def test_of_an_epoch_that_did_not_count_its_samples() -> None:
    state = train_state(history=[{"epoch": 1, "val/top1": 0.5}], best_epoch=1)
    assert best_n(state, "val/top1") is None


def test_the_final_status(tmp_path: Path) -> None:
    for status in ("FAILED", "KILLED"):
        tracker = SummaryTracker(INFO, train_state(), patience=None)
        tracker.start(Run(tmp_path, "mine", {}))
        tracker.finish(status)
        assert json.loads((tmp_path / "summary.json").read_text())["status"] == status


def test_the_other_trackers_finish_first(tmp_path: Path) -> None:
    """A run whose summary says FINISHED is not resumed, so its records must be delivered before."""

    class Failing(Tracker):
        def finish(self, status: Status) -> None:
            reported.append(json.loads((tmp_path / "summary.json").read_text())["status"])
            raise OSError("disk full")

    reported: list[str] = []
    trackers = Trackers([SummaryTracker(INFO, train_state(), patience=None), Failing()])
    trackers.start(Run(tmp_path, "mine", {}))
    with pytest.raises(OSError, match="disk full"):
        trackers.finish("FINISHED")
    assert reported == ["RUNNING"]
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "FINISHED"
