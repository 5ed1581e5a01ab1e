"""Every preset on demo data, as a user types it, in a process of its own."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from research.config.options import options
from tests.conftest import ROOT
from tests.sweeps.conftest import summaries

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

SHORT = (
    "epochs=2", "max_train_batches=3", "max_val_batches=2", "batch_size=16",
    "dataset.image_size=32", "logging.mlflow.system_metrics=false", "device=cpu",
    "dataset.demo.train_images=64", "dataset.demo.val_images=32",
)  # fmt: skip
DENSENET = (
    "model=densenet_bc_40_12", "model.block_layers=[2,2,2]", "dataset=demo", "precision=fp32",
)  # fmt: skip
RGBX = (
    "experiment=demo_rgbx", "layer_decay=null",
    "model.rois=16", "model.rpn_samples=16", "model.proposals=20", "model.proposals_train=40",
    "model.representation_size=32", "model.fpn_channels=16", "dataset=demo_rgbx", "epochs=1",
    "max_train_batches=1", "max_val_batches=1", "dataset.image_size=64", "batch_size=2",
    "logging.mlflow.system_metrics=false", "device=cpu", "dataset.demo.images=26",
)  # fmt: skip
PRESETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "densenet_grid": (9, (*DENSENET, *SHORT)),
    "densenet_random": (4, (*DENSENET, *SHORT, "hydra.sweeper.n_trials=4")),
    "tpe": (12, ("model.name=resnet18", *SHORT, "hydra.sweeper.n_trials=12")),
    "pareto": (5, ("model.name=resnet18", *SHORT, "hydra.sweeper.n_trials=5")),
    "compression_windows": (
        10,
        ("model.name=resnet18", *SHORT, "compression.window=1,2", "seed=0"),
    ),
    "all_backbones": (6, RGBX),
}
"""Of each preset how many trials there must be, and what makes it small."""
ANY_OTHER = (None, ("model.name=resnet18", *SHORT))


@pytest.mark.whole
@pytest.mark.parametrize("preset", options("sweep"))
def test_a_preset_ends_with_its_parent_and_a_right_summary(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    trials, words = PRESETS.get(preset, ANY_OTHER)
    command = [sys.executable, str(ROOT / "train.py"), "-m", f"sweep={preset}", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (summary,) = summaries(tmp_path)
    count = len(summary["trials"])
    assert count == (trials or count) == sum(summary["counts"].values())
    assert set(summary["counts"]) <= {"FINISHED", "PRUNED"}
    finished = [trial for trial in summary["trials"] if trial["status"] == "FINISHED"]
    values = [trial["values"] for trial in finished]
    if summary["pareto"]:
        assert _front(values, summary["objectives"]) == [
            best["values"] for best in summary["pareto"]
        ]
    else:
        name = summary["objectives"][0]["name"]
        assert summary["best"]["values"][name] == max(value[name] for value in values)

    monkeypatch.chdir(tmp_path)  # paths of artifacts are relative to the project
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (parent,) = client.search_runs(
        [client.get_experiment_by_name("backbone-lab").experiment_id],
        filter_string=f"run_name = '{summary['study']}'",
    )
    pictures = {file.path for file in client.list_artifacts(parent.info.run_id, "pictures")}
    assert {"pictures/history.png", "pictures/slices.png"} <= pictures
    assert ("pictures/pareto.png" in pictures) == bool(summary["pareto"])
    if len(finished) >= 10 and len(summary["space"]) > 1:
        assert "pictures/importance.png" in pictures
    children = client.search_runs(
        [parent.info.experiment_id],
        filter_string=f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
    )
    assert len(children) == count
    assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}
    shutil.rmtree(tmp_path)  # the networks of all_backbones take 25 GB


def _front(
    values: list[dict[str, float]], objectives: list[dict[str, Any]]
) -> list[dict[str, float]]:
    """The values that no other is at least as good as in all and better in one."""
    signs = {o["name"]: 1 if o["direction"] == "maximize" else -1 for o in objectives}

    def beats(one: dict[str, float], other: dict[str, float]) -> bool:
        pairs = [(sign * one[name], sign * other[name]) for name, sign in signs.items()]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    assert all(math.isfinite(number) for value in values for number in value.values())
    return [value for value in values if not any(beats(other, value) for other in values)]
