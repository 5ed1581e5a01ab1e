"""Runs, a sweep, stores and a cache of an earlier version go on; tests/assets/README.md."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import research
from research import compare, leaderboard, prepare, reproduce
from research.config.migrations import current_word
from research.data.warehouse.manifest import Manifest
from research.tracking.files import read_rows
from tests.assets import skeleton
from tests.conftest import ROOT, Train, evaluated, histories, unlike, verb

ASSETS = ROOT / "tests" / "assets" / "runs_v1"
WHOLE = ("classification", "coefficients", "tinydet", "bigdet", "ranking_frozen")
"""Runs with their own weights; of the others the tensors are drawn."""
DRAWN = ("timm", "ranking_e2e", "rgbx")
SEEN = {
    "classification": "data/pictures/test",
    "coefficients": "data/pictures/test",
    "timm": "data/pictures/test",
    "tinydet": "data/frames",
    "bigdet": "data/frames",
    "rgbx": "data/rgbx/images",
    "ranking_frozen": "data/photos/train_val/train_val_imgs",
    "ranking_e2e": "data/photos/train_val/train_val_imgs",
}
CLOSE = 1e-4
"""Relative; another machine rounds otherwise."""
CLOCKS = ("epoch_time_sec", "timestamp")
PATHS = ("checkpoint_path",)
"""Earlier versions had those of checkpoints that were gone, or another epoch's by then."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder as its user left it, but for what ``skeleton`` fills in."""
    shutil.copytree(ASSETS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expected() -> dict[str, Any]:
    """What the version that made the runs said of them."""
    found: dict[str, Any] = json.loads((ASSETS / "expected.json").read_text())
    return found


def words_of(run: Path) -> list[str]:
    """The run's own command line, with the keys as they are called now."""
    return [current_word(word) for word in yaml.safe_load((run / "overrides.yaml").read_text())]


def plain(said: Any) -> Any:
    """Tensors, and records of them, as lists of numbers."""
    if isinstance(said, torch.Tensor):
        return said.tolist()
    if isinstance(said, dict):
        return {key: plain(value) for key, value in said.items()}
    return [plain(value) for value in said] if isinstance(said, list | tuple) else said


def images(name: str) -> list[Path]:
    suffixes = (".jpg", ".png", ".npy")
    return sorted(p for p in Path(SEEN[name]).rglob("*") if p.suffix.lower() in suffixes)[:4]


@pytest.mark.parametrize("name", WHOLE)
def test_a_run_predicts_as_it_did(name: str, project: Path, expected: dict[str, Any]) -> None:
    said = plain(research.load(f"runs/{name}", device="cpu")(images(name)))
    # An edge of a box near 0 is the difference of numbers of up to 240 px, whose steps are 1.5e-5.
    assert not list(unlike(expected[name], said, CLOSE, abs_=2e-5))


def test_weights_that_were_handed_on(project: Path, train: Train, expected: Any) -> None:
    file = project / "handed_on" / "fastnet.safetensors"
    said = plain(research.load(file, device="cpu")(images("classification")))
    assert not list(unlike(expected["handed_on"], said, CLOSE))
    train(*words_of(project / "runs/weights"), f"init_from={file}", "run_dir=runs/started")
    assert len(read_rows(project / "runs/started/epoch_metrics.csv")) == 1


@pytest.mark.parametrize("name", [*WHOLE, *DRAWN])
def test_a_run_is_evaluated_and_predicted_with(name: str, project: Path) -> None:
    run = project / "runs" / name
    skeleton.fill(run)
    found = evaluated(run, "val", "best")
    if name in WHOLE:
        assert not list(unlike(found.logged, found.metrics, CLOSE))
    verb("predict").main([str(run), SEEN[name], "max_frames=2", "out=seen", "device=cpu"])
    assert json.loads((project / "seen/summary.json").read_text())["frames"] == 2


@pytest.mark.parametrize("name", [*WHOLE, *DRAWN])
def test_a_finished_run_goes_on(name: str, project: Path, train: Train) -> None:
    run = project / "runs" / name
    skeleton.fill(run)
    before = read_rows(run / "epoch_metrics.csv")
    called = json.loads((run / "summary.json").read_text())["name"]
    train(*words_of(run), f"epochs={len(before) + 1}", "resume=auto")
    after = read_rows(run / "epoch_metrics.csv")
    assert as_recorded(after[: len(before)], before[0]) == without_paths(before)
    assert len(after) == len(before) + 1
    assert list(after[0])[: len(before[0])] == list(before[0])
    assert int(after[-1]["val/n"]) > 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["name"]) == ("FINISHED", called)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    project: Path, train: Train, expected: dict[str, Any]
) -> None:
    with sqlite3.connect("runs/mlflow.db") as store:
        store.executescript(Path("runs/mlflow.sql").read_text())
    run = project / "runs/interrupted"
    own = (run / "mlflow_run_id").read_text()
    # An address of its own: MLflow keeps stores of one address open, wherever they lie.
    uri = f"sqlite:///{project / 'runs/mlflow.db'}"
    train(*words_of(run), f"logging.mlflow.uri={uri}", "resume=auto")
    columns = [name for name in expected["whole"][0] if name not in CLOCKS + PATHS]
    rows, whole = (
        [{name: number(row[name]) for name in columns} for row in table]
        for table in (read_rows(run / "epoch_metrics.csv"), expected["whole"])
    )
    assert not list(unlike(whole, rows, CLOSE))
    from mlflow import MlflowClient

    assert (run / "mlflow_run_id").read_text() == own
    history = histories(MlflowClient(uri), own)["val/loss"]
    logged = [(int(row["epoch"]), row["val/loss"]) for row in whole]
    assert not list(unlike([list(pair) for pair in logged], [list(p) for p in history], CLOSE))


def as_recorded(rows: list[dict[str, str]], columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of an earlier version without the columns that it did not have, which are empty."""
    assert not any(text for row in rows for name, text in row.items() if name not in columns)
    return without_paths([{name: row[name] for name in columns} for row in rows])


def without_paths(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: text for key, text in row.items() if key not in PATHS} for row in table]


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_a_half_done_sweep_goes_on(project: Path, train: Train) -> None:
    (study,) = (project / "runs/sweeps").iterdir()
    command = json.loads((study / "study.json").read_text())["command"]
    done = [(study / f"trial_000{n}/summary.json").read_text() for n in (0, 1)]
    train(*map(current_word, command[1:]))
    assert [path.name for path in (project / "runs/sweeps").iterdir() if path.is_dir()] == [
        study.name
    ]
    summary = json.loads((study / "final_summary.json").read_text())
    assert summary["counts"] == {"FINISHED": 4}
    assert [trial["epochs_done"] for trial in summary["trials"]] == [2, 2, 2, 2]
    assert [(study / f"trial_000{n}/summary.json").read_text() for n in (0, 1)] == done
    first = read_rows(ASSETS / "runs/sweeps" / study.name / "trial_0002/epoch_metrics.csv")[0]
    rows = read_rows(study / "trial_0002/epoch_metrics.csv")
    assert as_recorded(rows[:1], first) == without_paths([first])


@pytest.mark.parametrize("name", [*WHOLE, *DRAWN, "interrupted"])
def test_a_run_is_reproduced(name: str, project: Path, capsys: Any) -> None:
    reproduce.main([f"runs/{name}", "out=again"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "settings:" in line]
    assert lines == ["settings: channels_last: false → null"]
    command = (project / "again/reproduce.sh").read_text().splitlines()[-1]
    assert command.startswith("python train.py model=")
    assert " channels_last=false" in command  # as it was, on every device


def test_runs_are_compared_and_judged(project: Path) -> None:
    (study,) = (project / "runs/sweeps").iterdir()
    compare.main([str(study), "out=compared"])
    runs = json.loads(Path("compared/comparison.json").read_text())["runs"]
    assert len(runs) == 2
    leaderboard.main(
        ["runs/tinydet", "runs/bigdet", "rounds=1", "batch=1", "out=judged", "device=cpu"]
    )
    assert len(read_rows(Path("judged/judged.csv"))) == 2


def test_a_store_is_known_again(project: Path) -> None:
    stores = {kind: Manifest.load(Path("stores", kind)) for kind in ("frames", "coefficients")}
    assert {kind: store.kind for kind, store in stores.items()} == {k: k for k in stores}
    words = ["image_size=48", "compression.window=4", "shard_samples=16", "workers=1"]
    prepare.main(["coefficients", "data/pictures", "stores/coefficients", *words])
    assert Manifest.load(Path("stores/coefficients")) == stores["coefficients"]


def test_features_are_recalled(project: Path) -> None:
    from research.data.pairs.features import FeatureSet

    features = FeatureSet(["quality"], None, Path("runs/cache"))
    files = sorted(Path("data/photos").rglob("*.JPG"))
    features.prepare(files)
    assert features.extracted == {"quality": 0}
