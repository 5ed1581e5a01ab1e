"""A start that is refused leaves nothing: no run folder, no lock, no record."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from research.config import compose_config
from research.engine import run_folder
from research.engine.loss_log import LossLog
from research.engine.new_folder import NewFolder
from research.engine.resume import Start
from research.engine.run import opened
from research.utils.errors import UserError
from tests.conftest import SMALL, TINY, Train, data_overrides, one_line_of, run, user_error

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
REFUSED = {
    "an unknown key": "epoch=3",
    "a value that is not allowed": "epochs=0",
    "two settings that do not fit": "precision=fp16",
    "a data set that is missing": "dataset.train_dirs=[nowhere]",
    "classes that are others": "dataset.val_dir=others",
    "a weights file that is missing": "model.pretrained=nowhere.pth",
    "a weights file that is damaged": "model.pretrained=damaged.safetensors",
    "a weights file of another network": "model.pretrained=other.safetensors",
    "a run to start from that does not fit": "init_from=other.safetensors",
    "a device that is not there": "device=cuda:7",
    "a batch that does not divide": "global_batch_size=6 batch_size=4",
    "a metric that nothing logs": "monitor=val/mAP50:max",
    "a run that is not there": "resume=runs/nothing",
    "a parent folder that is a file": "run_dir=file/run",
    "an image size that has no blocks": "dataset.image_size=40",
}
WHERE = ((), ("run_dir=runs/deep/mine",), ("run_dir=mine",))
CASES = [
    pytest.param(case, where, marks=[] if number % 3 == at else pytest.mark.whole)
    for number, case in enumerate(REFUSED)
    for at, where in enumerate(WHERE)
]
ON_A_BATCH = {
    "memory": RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    "a mistake in the code": ZeroDivisionError("division by zero"),
    "the disk": OSError(28, "No space left on device", "batch_metrics.csv"),
    "the user": KeyboardInterrupt(),
}


@pytest.fixture
def words(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run whose records go to MLflow, in a project with files that do not fit."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others" / "elsewhere").mkdir(parents=True)
    first = next((folders / "val").rglob("*.jpg"))
    (tmp_path / "others" / "elsewhere" / "1.jpg").write_bytes(first.read_bytes())
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "file").touch()
    small = [word for word in SMALL if not word.startswith("logging=")]
    logging = ["logging=[mlflow,tensorboard]", "logging.mlflow.system_metrics=false"]
    return [*small, *TINY, *data_overrides(folders), *logging]


def tree(folder: Path) -> set[str]:
    """Every file and folder, without caches."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if path.parts[0] not in ("data", "cache")}


@pytest.mark.parametrize(("case", "where"), CASES)
def test_a_refused_start_leaves_nothing(
    case: str, where: tuple[str, ...], words: list[str], tmp_path: Path, train: Train
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()  # run_dir may be a folder with files of the user's
    before = tree(tmp_path)
    line = one_line_of(lambda: train(*words, *where, *REFUSED[case].split(" ")))
    assert line.startswith("error: ")
    assert tree(tmp_path) == before


def fail_at(batch: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error where the losses of a batch, from 1, are recorded."""
    original = LossLog.add

    def add(self: LossLog, step: int, *rest: Any) -> None:
        if step == batch:
            raise error
        original(self, step, *rest)

    monkeypatch.setattr(LossLog, "add", add)


@pytest.mark.parametrize("case", ON_A_BATCH)
def test_what_fails_on_the_first_batch_leaves_nothing(
    case: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, before = ON_A_BATCH[case], tree(tmp_path)
    fail_at(1, error, monkeypatch)
    with pytest.raises((type(error), UserError)):
        run(compose_config(words).config)
    assert tree(tmp_path) == before


def test_what_fails_later_is_a_failed_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(2, ON_A_BATCH["memory"], monkeypatch)
    with user_error("batch_size"):
        run(compose_config([*without_trackers(words), "run_dir=runs/a"]).config)
    assert json.loads(Path("runs/a/summary.json").read_text())["status"] == "FAILED"
    assert "out of memory" in Path("runs/a/train.log").read_text()


def without_trackers(words: list[str]) -> list[str]:
    return [*(word for word in words if not word.startswith("logging")), "logging=csv"]


@pytest.mark.parametrize("tracked", [False, pytest.param(True, marks=pytest.mark.whole)])
def test_a_refused_trial_leaves_no_run(
    *, tracked: bool, words: list[str], tmp_path: Path, train: Train, request: pytest.FixtureRequest
) -> None:
    """The sweep says why it failed; no folder, no lock and no MLflow run is of the trial."""
    study, store = tmp_path / "runs/sweeps/mine", ""
    if tracked:
        store = request.getfixturevalue("store")
    words = [*words, f"logging.mlflow.uri={store}"] if tracked else without_trackers(words)
    refused = ["dataset.train_dirs=[nowhere]", "seed=0,1", "hydra.sweeper.study_name=mine"]
    line = one_line_of(lambda: train("-m", *words, *refused))
    assert "hydra.sweeper.max_failure_rate" in line
    trials = json.loads((study / "final_summary.json").read_text())["trials"]
    assert {trial["status"] for trial in trials} == {"FAILED"}
    assert all("nowhere" in trial["reason"] and "paths" not in trial for trial in trials)
    assert not list(study.glob("trial_*"))
    if tracked:
        with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
            names = {name for (name,) in database.execute("select name from runs")}
        assert names == {"run", "mine"}  # of the store that is copied, and the sweep's own


def test_a_refused_sweep_leaves_nothing(words: list[str], tmp_path: Path, train: Train) -> None:
    before = tree(tmp_path)
    storage = f"hydra.sweeper.storage=sqlite:///{tmp_path}/nowhere/x.db"
    line = one_line_of(lambda: train("-m", *words, "seed=0,1", storage))
    assert "unable to open" in line
    assert tree(tmp_path) == before


def test_what_others_write_to_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/train.log").touch()
    new = NewFolder.create(tmp_path / "shared", ["train.log", ".lock"], shared=True)
    for name in (".lock", "theirs.txt"):
        (tmp_path / "shared" / name).touch()
    new.settle()
    new.settle()
    assert tree(tmp_path) == {"shared", "shared/train.log", "shared/theirs.txt"}


def test_two_starts_in_one_folder_at_the_same_time(tmp_path: Path) -> None:
    """Neither has found a run in it; the second removes nothing of the first, which trains."""
    config = {"run_dir": str(tmp_path / "run"), "resume": None}
    first, second = (
        Start(new.path, new=new)
        for new in [run_folder.create(config, "a"), run_folder.create(config, "b")]
    )
    with opened(first):
        (first.folder / "config.yaml").touch()
        before = tree(tmp_path)
        with user_error("run_dir", "another process is training"), opened(second):
            pass
        assert tree(tmp_path) == before > {"run/config.yaml"}
    assert tree(tmp_path) == set()
