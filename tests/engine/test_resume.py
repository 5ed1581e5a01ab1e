"""Runs that are resumed by ``resume=RUN`` alone, with other settings, and from earlier epochs."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from research.config import compose_config
from research.engine import build, checkpoint, resume
from research.utils.files import write_text
from tests.conftest import SMALL, TINY, Train, data_overrides, run, user_error
from tests.test_train import assert_same, rows, without_times

Compose = Callable[..., dict[str, Any]]
PARTS = ("model", "optimizer", "scheduler", "scaler", "transform", "rng", "state")


@pytest.fixture
def started(small: Compose, folders: Path) -> Callable[..., Path]:
    """Trains a run with a command line that its folder records."""

    def begin(*words: str) -> Path:
        every = [*SMALL, *data_overrides(folders), *TINY, *words]
        return run(compose_config(every).config, "test", every)

    return begin


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def assert_same_runs(one: Path, two: Path) -> None:
    """Weights, state and tables, to the last bit."""
    first, second = last(one), last(two)
    for content in (first, second):
        for row in content["state"]["history"]:
            for name in ("epoch_time_sec", "timestamp"):
                del row[name]
    for part in PARTS:
        assert_same(first[part], second[part])
    for table in ("epoch_metrics.csv", "batch_metrics.csv"):
        assert without_times(one / table) == without_times(two / table)


def checkpoint_of(folder: Path, epoch: int) -> Path:
    (path,) = (folder / "checkpoints").glob(f"epoch_{epoch:03d}_*.pt")
    return path


def test_the_run_alone_is_enough(started: Callable[..., Path], train: Train) -> None:
    """And its rates are those of its new length: at the end of the old one they were 0."""
    folder = started("optimizer.lr=0.03", "scheduler.warmup_epochs=0", "save_every=2")
    train(f"resume={folder}", "epochs=3", "save_every=1")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["epochs"], config["optimizer"]["lr"], config["save_every"]) == (3, 0.03, 1)
    assert summary(folder)["configuration"]["epochs"] == 3
    assert summary(folder)["name"] == "test"
    assert (summary(folder)["status"], summary(folder)["epochs_done"]) == ("FINISHED", 3)
    words = yaml.safe_load((folder / "overrides.yaml").read_text())
    again = compose_config(words).config
    assert {**again, "resume": str(folder)} == config
    fresh = build.experiment(again).state
    rates = []
    for _ in range(9):
        rates.append(fresh.optimizer.param_groups[0]["lr"])
        fresh.optimizer.step()
        fresh.scheduler.step()
    found = [float(row["learning_rate"]) for row in rows(folder / "epoch_metrics.csv")]
    assert found[1:] == [rates[5], rates[8]]
    assert found[1] > 0


def test_set_back_to_an_epoch(
    started: Callable[..., Path], train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the epochs after it had not been; and what was, is kept as a run."""
    caplog.set_level(logging.INFO, "research")
    whole = started("epochs=3", "run_dir=runs/whole")
    folder = started("epochs=3", "run_dir=runs/a")
    before = last(folder)
    write_text(folder / "evaluations" / "test.json", "{}")
    train(f"resume={checkpoint_of(folder, 1)}")
    aside = folder / "set_aside" / "1"
    assert (aside / "evaluations" / "test.json").exists()
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    shutil.rmtree(aside / "evaluations")
    assert f"resume: set back to epoch 1; the run as it was is kept in {aside}" in caplog.messages
    assert_same_runs(folder, whole)
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    for kept in (folder, aside):
        assert {path.name for path in (kept / "checkpoints").iterdir()} == names
        assert summary(kept)["epochs_done"] == 3
    assert_same(last(aside)["model"], before["model"])
    caplog.clear()
    train(f"resume={aside}", "epochs=4")
    assert len(rows(aside / "epoch_metrics.csv")) == 4
    # The last epoch is not set back to.
    train(f"resume={checkpoint_of(folder, 3)}", "epochs=4")
    assert "set back" not in caplog.text
    assert not (folder / "set_aside" / "2").exists()


@pytest.mark.long
def test_a_kill_while_a_run_is_set_back(
    started: Callable[..., Path], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is then what it was, or set back; the same command goes on."""
    folder = started("epochs=2", "run_dir=runs/a")
    shutil.copytree(folder, "kept")
    expected = last(folder)

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    for name in ("_keep", "_best", "Checkpoints.save", "log.info"):
        shutil.rmtree(folder)
        shutil.copytree("kept", folder)
        with monkeypatch.context() as patch:
            patch.setattr(f"research.engine.resume.{name}", killed)
            command = f"resume={checkpoint_of(folder, 1)}"
            try:
                train(command)
            except Killed:
                was = 1 if name == "log.info" else 2  # said after it was done
                assert last(folder)["state"]["epoch"] == was
                assert len(rows(folder / "epoch_metrics.csv")) == 2
        train(command)
        assert_same(last(folder)["model"], expected["model"])
        assert [row["epoch"] for row in rows(folder / "epoch_metrics.csv")] == ["1", "2"]


@pytest.mark.long
def test_the_best_of_what_remains(started: Callable[..., Path]) -> None:
    """``best.pt`` is never of an epoch after that to which the run is set back."""
    folder = started("epochs=4", "keep=2", "monitor=train/loss:min", "run_dir=runs/a")
    history = last(folder)["state"]["history"]
    assert last(folder)["state"]["best_epoch"] == 4
    third = checkpoint_of(folder, 3)
    for best, kept, expected in ((1, False, 3), (1, True, 1), (3, False, 3)):
        state = build.experiment(compose_config([*SMALL, f"resume={third}"]).config).state
        state.history, state.epoch, state.best_epoch = history[:3], 3, best
        state.best = history[best - 1]["train/loss"]
        first = folder / "checkpoints" / "epoch_001_loss_1.pt"
        if kept:
            shutil.copy(third, first)
        monitor = build.monitor(state.config, None)  # type: ignore[arg-type]
        found = resume._best(third, state, monitor)
        assert found == (first if kept else third)
        assert state.best_epoch == expected
        assert state.best == history[expected - 1]["train/loss"]
        first.unlink(missing_ok=True)


def test_data_that_have_changed_where_they_are(started: Callable[..., Path], folders: Path) -> None:
    folder = started()
    next((folders / "train").rglob("*.jpg")).unlink()
    with user_error("resume", f"resume={folder}: its data have changed", f"init_from={folder}"):
        run(compose_config([f"resume={folder}", "epochs=2"]).config)


@pytest.mark.long
def test_data_elsewhere(started: Callable[..., Path], folders: Path, train: Train) -> None:
    folder = started()
    moved = folders.rename(folders.parent / "moved")
    paths = [f"dataset.train_dirs=[{moved / 'train'}]", f"dataset.val_dir={moved / 'val'}"]
    train(f"resume={folder}", "epochs=2", *paths)
    assert summary(folder)["epochs_done"] == 2
    next((moved / "val").rglob("*.jpg")).unlink()
    moved.rename(folders)
    with user_error("dataset.train_dirs", "not the data of the run", f"init_from={folder}"):
        run(compose_config([f"resume={folder}", "epochs=3", *data_overrides(folders)]).config)


def test_what_cannot_be_resumed(started: Callable[..., Path]) -> None:
    folder = started("epochs=2")
    with user_error("epochs", "epochs=1: ", "is after epoch 2"):
        run(compose_config([f"resume={folder}", "epochs=1"]).config)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["optimizer"]["lr"] = 3.0
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with user_error("resume", "last.pt was trained with other settings (optimizer.lr)"):
        run(compose_config([f"resume={folder}", "epochs=3"]).config)


@pytest.mark.long
def test_later_checkpoints_are_dropped(started: Callable[..., Path], train: Train) -> None:
    """Of a kill between an epoch's checkpoint and ``last.pt``: they would be two of one epoch."""
    folder = started("epochs=2", "keep=9")
    second = checkpoint_of(folder, 2)
    stale = second.with_name("epoch_002_loss_9.0000.pt")
    first = checkpoint_of(folder, 1)
    shutil.copy(first, folder / "checkpoints" / "last.pt")
    second.rename(stale)
    train(f"resume={folder}")
    assert checkpoint_of(folder, 2) == second
    assert torch.load(second, weights_only=True)["state"]["epoch"] == 2
