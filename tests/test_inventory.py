"""What users have only grows; see tests/inventory.py and CONTRIBUTING.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from research import compare, leaderboard, lr_find, reproduce
from research import inspect as inspect_images
from research.engine import run_folder
from tests import inventory
from tests.conftest import Golden, Train, unlike, verb
from tests.golden.configurations import DATA, FRAMES, PHOTOS, PICTURES

SHORT = ("device=cpu", "epochs=2", "keep=1", "batch_size=4", "max_train_batches=2")
SHORT += ("evaluate_at_end=val",)
TASKS = {
    "classification": ("model=fastnet", "model.widths=[4,8,8]", *PICTURES),
    "single_object": ("model=tinydet", "model.width=4", *FRAMES),
    "detection": ("model=bigdet", "model.width=4", *FRAMES),
    "multiclass_detection": (
        "model=rgbx_mit_b0", "model.fpn_channels=16", "model.representation_size=16",
        "dataset=rgbx", "dataset.root=data/rgbx", "dataset.image_size=64", "epochs=1",
        "dataset.group_by='seq(\\d+)_'",
    ),
    "ranking": ("model=siamese_frozen", *PHOTOS, "dataset.features=[quality]"),
    "ranking_of_images": (
        "model=siamese_e2e", "model.backbone=test_resnet", *PHOTOS, "dataset.image_size=32",
    ),
}  # fmt: skip
SOURCES = {
    "classification": "data/pictures/test/bars",
    "single_object": "data/frames",
    "detection": "data/frames",
    "multiclass_detection": "data/rgbx/images",
    "ranking": "data/photos/train_val/train_val_imgs",
    "ranking_of_images": "data/photos/train_val/train_val_imgs",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with small data of every kind."""
    for name in ("data", "stores"):
        (tmp_path / name).symlink_to(DATA / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "changes", lambda: b"changed since the commit")
    return tmp_path


def test_settings(golden: Golden) -> None:
    """Of every option that is recorded; a new option of a group needs no entry to pass."""
    golden("inventory/settings", inventory.settings(), new_options=True)


def test_commands(golden: Golden) -> None:
    golden("inventory/commands", inventory.commands())


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("task", TASKS)
def test_run(task: str, project: Path, train: Train, store: str, golden: Golden) -> None:
    """A finished run, and what evaluation and prediction add to it."""
    logging = ["logging=csv"]
    if task == "classification":
        logging = ["logging=[mlflow,tensorboard]", f"logging.mlflow.uri={store}"]
    folder = project / "runs" / task
    train(*SHORT, *logging, *TASKS[task], f"run_dir=runs/{task}")
    found = inventory.of_run(folder)
    at_end = json.loads((folder / "evaluations" / "val.json").read_text())
    verb("evaluate").main([str(folder), "split=val"])
    again = json.loads((folder / "evaluations" / "val.json").read_text())
    assert not list(unlike(at_end["metrics"], again["metrics"], 1e-5, abs_=1e-7))
    verb("predict").main([str(folder), SOURCES[task], "max_frames=2", "out=seen", "device=cpu"])
    found |= {
        "evaluate": inventory.files(folder / "evaluations" / "val"),
        "evaluations": inventory.files(folder / "evaluations"),
        "evaluations/val.json": inventory.keys(folder / "evaluations" / "val.json"),
        "predict": inventory.files(project / "seen"),
        "summary.json of predict": inventory.keys(project / "seen" / "summary.json"),
    }
    if task == "classification":
        from mlflow import MlflowClient

        run_id = (folder / "mlflow_run_id").read_text()
        found["mlflow"] = inventory.of_mlflow(MlflowClient(store), run_id)
    golden(f"inventory/run_{task}", found)


def test_sweep_and_reports(project: Path, train: Train, golden: Golden) -> None:
    """A sweep, and the files of the commands that look at several runs, or at none."""
    words = [*SHORT, "logging=csv", *TASKS["classification"]]
    train("-m", *words, "seed=0,1", "hydra.sweeper.study_name=seeds")
    study = project / "runs/sweeps/seeds"
    summary = json.loads((study / "final_summary.json").read_text())
    sweep = {
        "files": [name for name in inventory.files(study) if not name.startswith("trial_")],
        "study.json": inventory.keys(study / "study.json"),
        "final_summary.json": sorted(summary),
        "trials": sorted(summary["trials"][0]),
        "columns of epoch_metrics.csv": inventory.columns(study / "epoch_metrics.csv"),
        "columns of tables/trials.csv": inventory.columns(study / "tables/trials.csv"),
    }
    golden("inventory/sweep", sweep)
    trials = [str(study / f"trial_000{number}") for number in (0, 1)]
    commands: dict[str, Callable[[], None]] = {
        "judge": lambda: leaderboard.main([*trials, "rounds=1", "batch=1", "out=out"]),
        "compare": lambda: compare.main([*trials, "out=out"]),
        "reproduce": lambda: reproduce.main([trials[0], "out=out"]),
        "inspect": lambda: inspect_images.main(["data/pictures/test/bars/000.jpg", "out=out"]),
        "lr_find": lambda: lr_find.main(["steps=10", "out=out", *words]),
    }
    found = {}
    for name, command in commands.items():
        command()
        found[name] = {
            "files": inventory.files(project / "out"),
            **{
                f"columns of {path.name}": inventory.columns(path)
                for path in sorted((project / "out").glob("*.csv"))
            },
        }
        shutil.rmtree(project / "out")
    golden("inventory/reports", found)
