"""Run folders: never shared, never overwritten, described, and found again."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from research.config import compose_config
from research.engine import checkpoint, run_folder
from research.engine import run as engine_run
from tests.conftest import ROOT, TINY, run, user_error

Compose = Callable[..., dict[str, Any]]


def test_runs_of_the_same_second_have_folders_of_their_own(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Stopped:
            return cls(2024, 5, 6, 7, 8, 9)

    monkeypatch.setattr(run_folder, "datetime", Stopped)
    folders = [run_folder.create(small(), "net").path for _ in range(3)]
    assert [str(folder) for folder in folders] == [
        "runs/2024-05-06_07-08-09_net",
        "runs/2024-05-06_07-08-09_net_2",
        "runs/2024-05-06_07-08-09_net_3",
    ]
    assert all(folder.is_dir() for folder in folders)


def test_a_folder_that_holds_a_run_is_refused(small: Compose) -> None:
    folder = run(small(*TINY, "run_dir=mine"))
    assert folder == Path("mine")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with user_error("run_dir", "mine already contains a run; ", "resume=mine") as caught:
        run(small(*TINY, "run_dir=mine"))
    _, _, *advised = shlex.split(str(caught.value).partition("this run: ")[2])
    assert compose_config(advised).config["resume"] == "mine"  # it works when typed
    with user_error("run_dir", "a run, with other settings: seed, optimizer.lr; "):
        run(small(*TINY, "run_dir=mine", "resume=auto", "seed=1", "optimizer.lr=3"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with run_folder.run_lock(folder), user_error("run_dir", "mine: another process is training"):
        run(small(*TINY, "run_dir=mine", "resume=auto", "epochs=2"))
    # An empty folder, or one with other things in it, is taken.
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    assert run_folder.create(small("run_dir=other"), "net").path == Path("other")


def test_a_run_is_described_so_that_it_can_be_repeated(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("seed=3", "tags.paper=a")
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=3", "tags.paper=a"])
    returned = run_folder.describe(tmp_path, config, ["seed=3", "tags.paper=a"])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    assert yaml.safe_load((tmp_path / "overrides.yaml").read_text()) == ["seed=3", "tags.paper=a"]
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment == returned
    assert environment["command"] == ["train.py", "seed=3", "tags.paper=a"]
    assert {"torch", "timm", "mlflow", "hydra-core"} <= environment["packages"].keys()
    assert environment["packages"]["torch"]
    assert environment["hardware"]["cores"] >= 1
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert environment["git"].get("commit", "") == head.stdout.strip()


def test_without_a_checkout_the_commit_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "runs.py"))
    assert run_folder._git() == {}
    monkeypatch.setenv("PATH", "")
    assert run_folder._git() == {}


def test_the_summary_of_a_run(small: Compose) -> None:
    config = small(*TINY, "epochs=2", "seed=4")
    folder = run(config, "mine")
    summary = json.loads((folder / "summary.json").read_text())
    saved = checkpoint.load(folder / "checkpoints" / "last.pt")
    assert summary["status"] == "FINISHED"
    assert summary["name"] == "mine"
    assert summary["model"] == "resnet18"
    assert summary["classes"] == ["bars", "field", "spots"]
    assert summary["configuration"] == config
    assert summary["monitor"] == ["val/top1", "max"]
    history = saved["state"]["history"]
    best = max(history, key=lambda row: row["val/top1"])
    assert (summary["best_epoch"], summary["best_value"]) == (best["epoch"], best["val/top1"])
    assert [row["train/loss"] for row in summary["epochs"]] == [r["train/loss"] for r in history]
    assert summary["total_time_sec"] == sum(row["epoch_time_sec"] for row in history)
    for path in summary["paths"].values():
        assert Path(path).exists()


# -- going on -----------------------------------------------------------------------------------


def test_an_explicit_run_goes_on(small: Compose, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "research")
    folder = run(small(*TINY))
    again = run(small(*TINY, "epochs=2", f"resume={folder}"))
    assert again == folder
    assert f"resume: continuing after epoch 1 in {folder}" in caplog.messages
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs_done"] == 2
    assert [row["epoch"] for row in summary["epochs"]] == [1, 2]


def test_a_run_resumes_only_with_its_own_settings(small: Compose) -> None:
    folder = run(small(*TINY))
    before = (folder / "config.yaml").read_text()
    for changes, said in (
        (["optimizer.lr=0.5"], "optimizer.lr is 0.02 in the run, 0.5 here"),
        (["seed=1", "batch_size=4"], "batch_size is 8 in the run, 4 here"),
        (["optimizer=adamw"], "optimizer._target_ is torch.optim.SGD in the run"),
        (["compression=block_stem"], "compression.variant is luma_fusion_pruned in the run"),
    ):
        with user_error("resume", said):
            run(small(*TINY, "epochs=2", f"resume={folder}", *changes))
    assert (folder / "config.yaml").read_text() == before


def test_nothing_to_resume(small: Compose, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "research")
    folder = run(small(*TINY, "resume=auto"))
    assert (
        "resume=auto: no unfinished run of this configuration; starting a new one"
        in caplog.messages
    )
    assert json.loads((folder / "summary.json").read_text())["epochs_done"] == 1
    Path("empty").mkdir()
    with user_error("checkpoint", "no checkpoint in empty", "checkpoints/last.pt"):
        engine_run.start(small(*TINY, "resume=empty"), "net")


def test_the_newest_of_several_is_resumed(small: Compose) -> None:
    config = small(*TINY)
    old, new, other = (run(config, name) for name in ("old", "new", "other"))
    for age, folder in enumerate((other, new, old)):
        stamp = time.time() - 100 * (age + 1)
        os.utime(folder / "config.yaml", (stamp, stamp))
    longer = small(*TINY, "epochs=2")
    assert run_folder.find_unfinished(longer, 2) == other
    with run_folder.run_lock(other):
        assert run_folder.find_unfinished(longer, 2) == new
    shutil.rmtree(new / "checkpoints")
    with run_folder.run_lock(other):
        assert run_folder.find_unfinished(longer, 2) == old
    # Paths of outputs and the device do not make another run; anything else does.
    assert run_folder.find_unfinished(small(*TINY, "epochs=2", "logging=mlflow"), 2) == other
    assert run_folder.find_unfinished(small(*TINY, "epochs=2", "tags.a=b"), 2) is None


def test_a_run_that_stopped_early_is_finished(small: Compose) -> None:
    settings = (*TINY, "patience=1", "optimizer.lr=1e-12", "monitor=train/loss:max")
    folder = run(small(*settings, "epochs=9"))
    assert json.loads((folder / "summary.json").read_text())["stopped_early"]
    assert run_folder.find_unfinished(small(*settings, "epochs=9"), 9) is None


def test_a_run_in_training_is_not_resumed_by_another_process(small: Compose) -> None:
    folder = run(small(*TINY))
    script = (
        "import sys; from pathlib import Path; from filelock import FileLock\n"
        "with FileLock(Path(sys.argv[1], '.lock')): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        try:
            with user_error("run_dir", f"{folder}: another process is training"):
                run(small(*TINY, "epochs=2", f"resume={folder}"))
            assert run_folder.find_unfinished(small(*TINY, "epochs=2"), 2) is None
        finally:
            holder.stdin.close()
    assert run_folder.find_unfinished(small(*TINY, "epochs=2"), 2) == folder


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(small: Compose) -> None:
    config = small(*TINY, "run_dir=r", "resume=auto")
    folder = run_folder.create(config, "test").path
    run_folder.describe(folder, config, [])
    assert run(config) == folder
    assert (folder / "checkpoints" / "final.safetensors").exists()


def test_a_name_is_compared_only_if_it_was_typed(small: Compose) -> None:
    """Recipes once had a name each, which their runs have; today it follows from the choices."""
    folder = run_folder.create(small("run_dir=r"), "test").path
    run_folder.describe(folder, {**small(), "name": "of_its_recipe"}, [])
    assert run_folder.changed(small(), folder) == []
    assert run_folder.changed(small("name=of_its_recipe"), folder) == []
    assert run_folder.changed(small("name=another"), folder) == ["name"]


def test_a_finished_run_is_nothing_to_do(small: Compose) -> None:
    config = small(*TINY, "run_dir=r", "resume=auto")
    run(config)
    assert engine_run.start(config, "test") is None
    with user_error("run_dir", "r already contains a run"):
        engine_run.start({**config, "seed": 1}, "test")
    again = engine_run.start({**config, "epochs": 2}, "test")
    assert again is not None
    assert again.last is not None


def test_a_run_that_ended_after_its_last_checkpoint_is_finished(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(*TINY, "run_dir=r", "resume=auto")
    with monkeypatch.context() as patch:
        patch.setattr("research.engine.run._finish_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    summary = json.loads(Path("r/summary.json").read_text())
    assert (summary["status"], summary["epochs_done"]) == ("KILLED", 1)
    run(config)
    summary = json.loads(Path("r/summary.json").read_text())
    assert (summary["status"], summary["epochs_done"]) == ("FINISHED", 1)
    assert Path("r/checkpoints/final.safetensors").exists()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
