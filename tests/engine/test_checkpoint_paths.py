"""What the tables of a run say of its checkpoints is true, whichever of them are kept."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research.engine.checkpoint import Checkpoints, epoch_of
from research.engine.epoch_end import EpochEnd
from research.engine.interrupts import Interrupts
from research.tracking.files import FileTracker, read_rows
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Position, Run, Trackers
from tests.conftest import train_state

NOTHING: Any = None


class Rehearsal:
    """Epochs without training: their rows, checkpoints and summary."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, train_state()
        self.go_on(keep=3, save_every=1)

    def go_on(self, keep: int | None, save_every: int) -> None:
        """As a process that resumes the run, with other settings perhaps."""
        info = {"monitor": ["val/top1", "max"]}
        tracker = Trackers([FileTracker(), SummaryTracker(info, self.state, None)])
        position = Position(self.state.epoch, 0, self.state.epoch)
        tracker.start(Run(self.folder, "rehearsal", {}, resumed=position))
        checkpoints = Checkpoints(self.folder / "checkpoints", save_every, keep)
        self.end = EpochEnd(
            NOTHING, "val/top1", checkpoints, tracker, None, Interrupts(), minutes=None
        )
        self.end.correct_paths(self.state, all_rows=True)

    def epoch(self, *, is_best: bool) -> None:
        state = self.state
        epoch = state.epoch + 1
        state.best_epoch = epoch if is_best else state.best_epoch
        path = self.end.checkpoint_path(epoch, 1 / epoch, is_best=is_best)
        row = {"epoch": epoch, "is_best": is_best, "checkpoint_path": path, "epoch_time_sec": 1.0}
        state.step += 1
        state.end_epoch()
        state.history.append({**row, "val/top1": 0.5})
        self.end.tracker.log("epoch", epoch, state.history[-1])
        with patch("research.engine.evaluation.draw"):
            self.end(state, state.history[-1], NOTHING)

    def save_within_an_epoch(self) -> None:
        self.state.samples = 4
        self.end._save(self.end._content(self.state))

    def check(self) -> None:
        """Every path leads to the weights of its epoch, and every checkpoint has a path."""
        table = read_rows(self.folder / "epoch_metrics.csv")
        summary = json.loads((self.folder / "summary.json").read_text())
        in_state = {row["epoch"]: row["checkpoint_path"] for row in self.state.history}
        assert {int(row["epoch"]): row["checkpoint_path"] for row in table} == in_state
        assert {row["epoch"]: row["checkpoint_path"] for row in summary["epochs"]} == in_state
        for epoch, path in in_state.items():
            if path:
                saved = torch.load(self.folder / path, weights_only=True)["state"]
                assert (saved["epoch"], saved["samples"]) == (epoch, 0)
        files = {epoch_of(path) for path in (self.folder / "checkpoints").glob("epoch_*.pt")}
        ends = {self.state.best_epoch, self.state.epoch if self.state.samples == 0 else 0}
        assert {epoch for epoch, path in in_state.items() if path} == (files | ends) - {0}


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["epoch", "best", "save"]),
        st.tuples(st.sampled_from([None, 0, 1, 2, 3]), st.integers(1, 3)),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(EVENTS)
def test_every_path_leads_to_the_weights_of_its_epoch(events: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        run = Rehearsal(Path(folder))
        run.epoch(is_best=True)
        for event in events:
            if event == "save":
                run.save_within_an_epoch()
            elif isinstance(event, str):
                run.epoch(is_best=event == "best")
            else:
                run.go_on(*event)
            run.check()


@pytest.mark.parametrize("keep", [None, 2])
def test_all_or_the_newest_are_kept(tmp_path: Path, keep: int | None) -> None:
    run = Rehearsal(tmp_path)
    run.go_on(keep=keep, save_every=1)
    for epoch in range(1, 6):
        run.epoch(is_best=epoch == 1)
    run.check()
    kept = [row["checkpoint_path"] for row in read_rows(tmp_path / "epoch_metrics.csv")]
    every = [f"checkpoints/epoch_{epoch:03d}_loss_{1 / epoch:.4f}.pt" for epoch in range(1, 6)]
    assert kept == (every if keep is None else ["checkpoints/best.pt", "", "", *every[3:]])


def test_a_kill_between_table_and_checkpoint_is_made_up_for(tmp_path: Path) -> None:
    run = Rehearsal(tmp_path)
    for _ in range(2):
        run.epoch(is_best=True)
    table = tmp_path / "epoch_metrics.csv"
    table.write_text(table.read_text().replace("checkpoints/epoch_001_loss_1.0000.pt", ""))
    run.go_on(keep=3, save_every=1)
    run.check()
