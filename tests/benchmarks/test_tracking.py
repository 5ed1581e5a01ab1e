"""What tracking costs: the candidates, and how their costs are summarized."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.benchmarks import tracking
from research.benchmarks.tracking import Cost
from research.engine import build
from research.tracking.tracker import Row, Run, Status, Table, Tracker
from tests.conftest import SMALL, TINY, data_overrides


def test_every_candidate_trains_the_same_steps_and_one_of_them_is_tracked(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reported: list[str] = []

    class Spy(Tracker):
        def start(self, run: Run) -> None:
            assert (run.folder / "batch_metrics.csv").parent.is_dir()
            reported.append("start")

        def log(self, table: Table, step: int, row: Row) -> None:
            reported.append(f"{table} {step}")

        def flush(self) -> None:
            reported.append("flush")

        def finish(self, status: Status) -> None:
            reported.append(status)

    def spies(config: build.Config) -> list[Tracker]:
        assert config["logging"]["mlflow"]["system_metrics"] is True
        return [Spy()]

    monkeypatch.setattr(build, "trackers", spies)
    costs = tracking.costs([*SMALL, *TINY, *data_overrides(folders)], steps=2, rounds=1)
    one_run = ["start", "flush"]  # it connects
    one_run += ["batch 1", "batch 2", "epoch 1", "flush", "FINISHED"]
    assert reported == 2 * one_run  # the first is not counted
    assert {name: len(found) for name, found in costs.items()} == {
        "without": 1,
        "without (control)": 1,
        "with": 1,
    }
    (on,) = costs["with"]
    assert 0 < on.tracker_wall < on.wall
    assert 0 < on.tracker_processor <= on.processor
    assert costs["without"][0].tracker_wall < on.tracker_wall


def test_the_cost_of_tracking_in_ratios_and_as_a_share() -> None:
    off = [Cost(0.1, 0.08, 0, 0, 0), Cost(0.2, 0.08, 0, 0, 0), Cost(0.1, 0.08, 0, 0, 0)]
    on = [
        Cost(0.11, 0.088, 0.002, 0.001, 0.0006),
        Cost(0.202, 0.084, 0.002, 0.001, 0.0006),
        Cost(0.102, 0.08, 0.002, 0.001, 0.0006),
    ]
    wall, processor = tracking.results({"without": off, "with": on})
    assert [row.median for row in wall.rows] == pytest.approx([0.1, 0.11])
    found = wall.row("with").speed
    assert (1 / found.median, 1 / found.highest, 1 / found.lowest) == pytest.approx(
        (1.02, 1.01, 1.1)
    )
    assert [row.median for row in processor.rows] == pytest.approx([0.08, 0.084])
    assert 1 / processor.row("with").speed.lowest == pytest.approx(1.1)
    assert wall.row("with").columns == {"ms in trackers": pytest.approx(2)}
    assert processor.row("with").columns == {
        "ms in trackers": pytest.approx(1),
        "ms in other threads": pytest.approx(0.6),
        "share of a step without": "2.00%",
    }
