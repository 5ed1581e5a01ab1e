from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from research.engine import build, run
from research.engine.state import TrainState
from research.sweeps import parent
from research.sweeps.devices import exclusive_device
from research.tracking.tracker import Status
from tests.sweeps.conftest import Sweep, summaries
from tests.test_train import rows

GRID = ("seed=0,1", "optimizer.lr=0.01,0.02")


def test_a_grid_is_recorded_and_is_not_run_twice(
    sweep: Sweep, study_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep(*GRID)
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FINISHED": 4}
    assert summary["space"] == {"seed": "0,1", "optimizer.lr": "0.01,0.02"}
    assert summary["objectives"] == [{"name": "val/top1", "direction": "maximize"}]
    assert summary["configuration"]["model"]["name"] == "resnet18"
    points = [
        (trial["params"]["seed"], trial["params"]["optimizer.lr"]) for trial in summary["trials"]
    ]
    assert points == [(0, 0.01), (0, 0.02), (1, 0.01), (1, 0.02)]
    for trial in summary["trials"]:
        own = json.loads((Path(trial["paths"]["run"]) / "summary.json").read_text())
        assert own["status"] == trial["status"] == "FINISHED"
        seed, lr = trial["params"]["seed"], trial["params"]["optimizer.lr"]
        assert own["configuration"]["seed"] == seed
        base = "imagefolder_resnet18_compressed_luma_fusion_pruned"
        assert own["name"] == f"{base}_{trial['trial']:04d}_seed{seed}_lr{lr}"
        assert trial["values"] == {"val/top1": own["best_value"]}
        assert trial["epochs"] == {"1": own["best_value"]}
        assert trial["attempts"] == 1
        assert trial["seconds"] >= own["total_time_sec"]
    best = max(trial["values"]["val/top1"] for trial in summary["trials"])
    assert summary["best"]["values"] == {"val/top1": best}
    before = {
        path: path.stat().st_mtime_ns for path in study_folder.glob("runs/sweeps/*/trial_*/**/*")
    }
    with caplog.at_level(logging.INFO):
        sweep(*GRID)
    assert "4 of 4 trials done" in caplog.text
    assert "nothing left to do" in caplog.text
    after = {
        path: path.stat().st_mtime_ns for path in study_folder.glob("runs/sweeps/*/trial_*/**/*")
    }
    assert before == after


def test_failures_are_logged_with_their_reasons_and_the_others_finish(
    sweep: Sweep,
    study_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build.model

    def sometimes(config: Any, facts: Any) -> Any:
        if config["seed"] == 1:
            raise RuntimeError("a bug of the model's")
        if config["seed"] == 2:
            torch.empty(1 << 60)
        return model(config, facts)

    monkeypatch.setattr(build, "model", sometimes)
    logged_before = []

    def watched(*arguments: Any, **more: Any) -> Any:
        logged_before.append(Counter(caplog.text.split())["failed:"])
        return session_train(*arguments, **more)

    session_train = run.train
    monkeypatch.setattr(run, "train", watched)
    words = ("seed=0,1,2,3", "optimizer.lr=0.01", "hydra.sweeper.max_failure_rate=0.8")
    sweep(*words)
    sweep(*words[:2], "hydra.sweeper.study_name=other", "optimizer.lr=1e30,0.01", "seed=0")
    first, other = summaries(study_folder)
    assert first["counts"] == {"FAILED": 2, "FINISHED": 2}
    assert [trial["status"] for trial in first["trials"]] == [
        "FINISHED", "FAILED", "FAILED", "FINISHED",
    ]  # fmt: skip
    assert first["trials"][1]["reason"] == "RuntimeError: a bug of the model's"
    assert "out of memory" in first["trials"][2]["reason"]
    assert [trial["status"] for trial in other["trials"]] == ["FAILED", "FINISHED"]
    assert "loss" in other["trials"][0]["reason"]
    assert logged_before[:4] == [0, 0, 1, 2]
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("metric", ["val/loss", "val/top1"])
def test_a_trial_without_a_value_in_its_last_epoch_fails(
    metric: str, sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"train/loss": 1.0, "val/loss": 1.0, "val/top1": 0.5, metric: math.nan}
    ended = SimpleNamespace(history=[row], best=None)
    monkeypatch.setattr(run, "train", lambda *_: ended)
    sweep("seed=0", "hydra.sweeper.max_failure_rate=1")
    [[trial]] = (each["trials"] for each in summaries(study_folder))
    assert trial["status"] == "FAILED"
    assert f"{metric} is nan in the last epoch" in trial["reason"]


@pytest.fixture
def parent_statuses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Statuses of the sweep's own run, one after the other."""
    statuses: list[str] = []
    update = parent.update

    def spy(folder: Path, summary: Any, trackers: Any, status: Status) -> str | None:
        statuses.append(status)
        return update(folder, summary, trackers, status)

    monkeypatch.setattr(parent, "update", spy)
    monkeypatch.setattr(parent, "SECONDS_BETWEEN_UPDATES", 0)
    monkeypatch.setattr("research.sweeps.record.FRACTION", math.inf)
    return statuses


def test_too_many_failures_end_the_sweep(
    sweep: Sweep,
    study_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    parent_statuses: list[str],
) -> None:
    def never(config: Any, facts: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(build, "model", never)
    with pytest.raises(SystemExit) as stop:
        sweep("seed=0,1,2,3,4,5", "hydra.sweeper.max_failure_rate=0.34")
    assert stop.value.code == 2
    assert "3 of 6 trials failed" in capsys.readouterr().err
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FAILED": 3}
    assert parent_statuses == ["RUNNING"] * 4 + ["FAILED"]


def test_a_sweep_with_too_many_failures_needs_retry_failed(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def never(config: Any, facts: Any) -> Any:
        raise RuntimeError("no")

    words = ("seed=0,1,2,3", "hydra.sweeper.max_failure_rate=0.25")
    with monkeypatch.context() as patch:
        patch.setattr(build, "model", never)
        with pytest.raises(SystemExit):
            sweep(*words)
    with pytest.raises(SystemExit):
        sweep(*words)
    assert "retry_failed=true" in capsys.readouterr().err
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FAILED": 2}  # nothing more was tried
    sweep(*words, "hydra.sweeper.retry_failed=true")
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FINISHED": 4}


def test_failures_are_retried_on_request(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: Any, facts: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(build, "model", never)
        sweep("seed=0", "hydra.sweeper.max_failure_rate=1")
    sweep("seed=0", "hydra.sweeper.max_failure_rate=1")
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FAILED": 1}
    sweep("seed=0", "hydra.sweeper.retry_failed=true")
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FINISHED": 1}


def test_a_hopeless_trial_is_pruned(sweep: Sweep, study_folder: Path) -> None:
    sweep(
        "optimizer.lr=0.02,0.03,1e-12", "monitor=train/loss:min", "epochs=4",
        "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2",
    )  # fmt: skip
    (summary,) = summaries(study_folder)
    last = summary["trials"][-1]
    assert summary["counts"] == {"FINISHED": 2, "PRUNED": 1}
    assert last["status"] == "PRUNED"
    assert last["reason"].startswith("MedianPruner at epoch")
    folder = Path(last["paths"]["run"])
    assert json.loads((folder / "summary.json").read_text())["status"] == "PRUNED"
    assert len(rows(folder / "epoch_metrics.csv")) == len(last["epochs"]) < 4


def test_an_interrupted_trial_is_resumed(
    sweep: Sweep,
    study_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    parent_statuses: list[str],
) -> None:
    class Impatient:
        stopped = False

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def epoch(self, epoch: int, value: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("research.sweeps.job.TrialPruner", Impatient)
        with pytest.raises(SystemExit) as stop:
            sweep("seed=0,1", "epochs=3")
        assert stop.value.code == 130
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"KILLED": 1}
    assert parent_statuses[-1] == "KILLED"
    sweep("seed=0,1", "epochs=3")
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FINISHED": 2}
    assert parent_statuses[-1] == "FINISHED"
    first = summary["trials"][0]
    assert first["paths"]["run"].endswith("trial_0000")
    assert [row["epoch"] for row in rows(Path(first["paths"]["run"]) / "epoch_metrics.csv")] == [
        "1", "2", "3",
    ]  # fmt: skip
    assert list(first["epochs"]) == ["1", "2", "3"]
    log = (Path(first["paths"]["run"]) / "train.log").read_text()
    assert "continuing after epoch 2" in log


def interrupt_before_an_epoch(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a batch, so that something is left, and before the first checkpoint."""

    def interrupted(state: TrainState, *_: Any, **__: Any) -> Any:
        state.samples = 4
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", interrupted)
        with pytest.raises(SystemExit):
            sweep("seed=0")


def test_a_trial_without_a_checkpoint_begins_anew_beside_what_it_left(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before_an_epoch(sweep, monkeypatch)
    left = study_folder / summaries(study_folder)[0]["trials"][0]["paths"]["run"]
    (left / "mlflow_folder_id").write_text("abc")  # by which the MLflow run is found and ended
    files = {path: path.read_bytes() for path in left.glob("*") if path.is_file()}
    sweep("seed=0")
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FINISHED": 1}
    new = Path(summary["trials"][0]["paths"]["run"])
    assert new.name == "trial_0000_2"
    assert (new / "mlflow_folder_id").read_text() == "abc"
    assert files == {path: path.read_bytes() for path in left.glob("*") if path.is_file()}


def test_a_job_that_cannot_even_begin_is_not_launched_for_ever(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before_an_epoch(sweep, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("research.engine.run_folder.create", lambda *_: 1 / 0)
        with pytest.raises(SystemExit):
            sweep("seed=0")
    (summary,) = summaries(study_folder)
    assert summary["counts"] == {"FAILED": 1}
    assert "ZeroDivisionError" in summary["trials"][0]["reason"]


def test_the_seed_of_a_sampler_draws_its_points(sweep: Sweep, study_folder: Path) -> None:
    space = ("optimizer.lr=interval(0.01,0.1)", "hydra/sweeper/sampler=random")
    for seed in ("seed=1", "sampler.seed=1"):
        sweep(*space, "epochs=1", "hydra.sweeper.n_trials=1", f"hydra.sweeper.{seed}")
    first, second = (each["trials"][0]["params"] for each in summaries(study_folder))
    assert first == second


def test_pictures_cost_no_trial(
    sweep: Sweep, study_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("research.sweeps.plots.pictures", lambda summary: 1 / 0)
    sweep("seed=0")
    assert summaries(study_folder)[0]["counts"] == {"FINISHED": 1}
    assert "parent run could not be updated" in caplog.text


def test_a_trial_with_another_monitor_fails(sweep: Sweep, study_folder: Path) -> None:
    sweep("monitor=val/top1:max,val/loss:min", "seed=0")
    first, other = summaries(study_folder)[0]["trials"]
    assert (first["status"], other["status"]) == ("FINISHED", "FAILED")
    assert "val/loss:min" in other["reason"]


def test_where_the_words_stand_does_not_matter(sweep: Sweep, study_folder: Path) -> None:
    sweep("patience=5", "keep=1", "seed=0")
    sweep("keep=1", "log_every=3", "patience=5", "seed=0")
    assert len(summaries(study_folder)) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer.lr=interval(0.1,1.0)"], "hydra/sweeper/sampler=random"),
        (["hydra.sweeper.objectives=[speed]"], "monitor, latency_ms, bytes_per_image"),
        (["hydra.sweeper.objectives=[monitor,monitor]"], "hydra.sweeper.objectives="),
        (["hydra.sweeper.study_name=../x"], "hydra.sweeper.study_name=../x: expected a name"),
        (["seed=range(0,101)", "keep=range(0,100)"], "more than 10,000 points"),
        (["seed=shuffle(1,2,3)"], "seed=shuffle(1,2,3): "),
        (["hydra.sweeper.n_trials=-4"], "hydra.sweeper.n_trials=-4: expected"),
        (["seed=0", "hydra.sweeper.storage=foo"], "hydra.sweeper.storage=foo: "),
        (["optimizer.lr=interval(0.1,0.01)"], "optimizer.lr=interval(0.1,0.01): "),
        (["epochs=range(3,1)"], "epochs=range(3,1): "),
        (
            [
                *("seed=0", "hydra/sweeper/pruner=median"),
                "hydra.sweeper.pruner.n_startup_trials=-1",
            ],
            "hydra.sweeper.pruner.n_startup_trials=-1: expected",
        ),
        (["hydra/sweeper/sampler=cmaes", "optimizer.lr=interval(0.1,1.0)"], "pip install cmaes"),
        (["hydra.sweeper.max_failure_rate=2"], "hydra.sweeper.max_failure_rate=2: expected"),
        (
            ["hydra.sweeper.objectives=[monitor,latency_ms]", "hydra/sweeper/pruner=median"],
            "hydra/sweeper/pruner=none",
        ),
        (
            ["hydra.sweeper.objectives=[latency_ms]", "hydra/sweeper/pruner=median"],
            "objectives=[latency_ms] asks for alone; choose hydra/sweeper/pruner=none",
        ),
    ],
)
def test_mistakes(
    sweep: Sweep, capsys: Any, words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research.sweeps.sweeper.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        sweep(*words)
    assert expected in capsys.readouterr().err


def test_a_study_of_another_search_is_not_mixed_in(sweep: Sweep, capsys: Any) -> None:
    sweep("seed=0", "hydra.sweeper.study_name=mine")
    with pytest.raises(SystemExit):
        sweep("seed=1,2", "hydra.sweeper.study_name=mine")
    assert "runs/sweeps/mine belongs to another search" in capsys.readouterr().err


def test_several_objectives_make_a_front(sweep: Sweep, study_folder: Path) -> None:
    sweep("compression.window=1,2", "hydra.sweeper.objectives=[monitor,latency_ms,bytes_per_image]")
    (summary,) = summaries(study_folder)
    assert summary["best"] is None
    assert summary["pareto"]
    small, large = (trial["values"] for trial in summary["trials"])
    # 32 px: 16 blocks of luma, 4 of each chroma, of two bytes a coefficient.
    assert small["bytes_per_image"] == 2 * 24
    assert large["bytes_per_image"] == 2 * 4 * 24
    assert 0 < small["latency_ms"] < 1000


def test_each_trial_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visible = ["a", "b"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible))
    uuids = lambda number: SimpleNamespace(uuid=visible[number])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", uuids)
    with (
        exclusive_device("auto", tmp_path) as first,
        exclusive_device("auto", tmp_path) as second,
        exclusive_device("auto", tmp_path) as third,
        exclusive_device("cpu", tmp_path) as cpu,
    ):
        assert (first, second, third, cpu) == ("cuda:0", "cuda:1", "cuda:0", "cpu")
    with exclusive_device("auto", tmp_path) as again:
        assert again == "cuda:0"
        # Another process sees other GPUs, or the same under other numbers.
        visible[:] = ["c", "a"]
        with (
            exclusive_device("auto", tmp_path) as first,
            exclusive_device("auto", tmp_path) as shared,
        ):
            assert (first, shared) == ("cuda:0", "cuda:0")
        visible[:] = ["a", "c"]
        with exclusive_device("auto", tmp_path) as free:
            assert free == "cuda:1"
