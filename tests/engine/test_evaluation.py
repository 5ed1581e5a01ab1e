"""Evaluations of a run: kept in its folder, in its MLflow record once, of whole splits."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import research
from research import leaderboard
from research.config import compose_config
from research.engine import build, evaluation, loop, run_folder
from research.engine import run as run_module
from research.engine.evaluation import evaluate, load_eval_run
from research.engine.interrupts import Interrupted
from research.tracking.files import read_rows
from research.tracking.mlflow_store import MLflowStore
from tests.conftest import (
    CLASSES,
    ROOT,
    SMALL,
    TINY,
    FirstUse,
    data_overrides,
    make_folders,
    result_of,
    run,
    user_error,
    verb,
)
from tests.data.pairs.test_source import write_photos
from tests.engine.test_distributed import torchrun

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
Compose = Callable[..., dict[str, Any]]
RUN = Path("runs/r")
COUNTS = {"train": 24, "val": 12, "test": 18}
"""Samples of each split."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, first_use: FirstUse) -> Path:
    """A working directory with a run that validated on two batches of its three."""
    folder = tmp_path_factory.mktemp("project")
    for seed, (split, count) in enumerate(COUNTS.items()):
        make_folders(folder / "data" / split, count // len(CLASSES), seed=seed)
    (folder / "runs").mkdir()
    shutil.copy(first_use.database, folder / "runs" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [
            *SMALL, *TINY, *data_overrides(folder / "data"),
            f"dataset.test_dir={folder / 'data/test'}", f"run_dir={RUN}", "batch_size=4",
            "logging=mlflow", f"logging.mlflow.uri=sqlite:///{folder}/runs/mlflow.db",
            "logging.mlflow.system_metrics=false", "max_val_batches=2", "epochs=2",
        ]  # fmt: skip
        run(compose_config(words).config)
    return folder


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(trained)
    yield trained
    shutil.rmtree(RUN / "evaluations", ignore_errors=True)


def history(project: Path, key: str) -> list[tuple[int, float]]:
    """Step and value of every entry of a metric of the run."""
    client = MLflowStore(f"sqlite:///{project}/runs/mlflow.db").client()
    found = client.get_metric_history((RUN / "mlflow_run_id").read_text(), key)
    return [(entry.step, entry.value) for entry in found]


def artifacts(project: Path, folder: str) -> set[str]:
    client = MLflowStore(f"sqlite:///{project}/runs/mlflow.db").client()
    run_id = (RUN / "mlflow_run_id").read_text()
    return {entry.path for entry in client.list_artifacts(run_id, folder)}


def test_a_result_is_kept_once_and_is_what_predict_says(
    project: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = [str(RUN), "split=test", "device=cpu"]
    for batch in (4, 7):  # another order of sums
        verb("evaluate").main([*words, f"batch_size={batch}"])
    printed = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))
    kept = json.loads((RUN / "evaluations/test.json").read_text())
    assert {**kept, "files": str(RUN / "evaluations/test")} == printed
    best = json.loads((RUN / "summary.json").read_text())["best_epoch"]
    assert (kept["split"], kept["n"], kept["epoch"]) == ("test", COUNTS["test"], best)
    assert (kept["checkpoint"], kept["changed"], kept["damage"]) == ("checkpoints/best.pt", {}, {})
    assert kept["overrides"] == ["batch_size=7"]
    assert kept["versions"]["torch"]
    assert not [name for name in kept["logged"] if name in kept["metrics"]]

    verb("predict").main([str(RUN), "data/test", "out=seen", "device=cpu"])
    with Path("seen/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = [Path(row["file"]).parent.name for row in rows]
    right = [row["class"] == label for row, label in zip(rows, truth, strict=True)]
    assert kept["metrics"]["top1"] == pytest.approx(sum(right) / len(right))
    losses = []
    for row, label in zip(rows, truth, strict=True):
        places = {row[f"class{end}"]: float(row[f"score{end}"]) for end in ("", "_2", "_3")}
        losses.append(-math.log(places[label]))
    assert kept["metrics"]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)

    for name, value in {**kept["metrics"], "n": COUNTS["test"]}.items():
        assert history(project, f"test/{name}") == [(best, pytest.approx(value))]
    assert artifacts(project, "evaluations") == {"evaluations/test", "evaluations/test.json"}
    tables = artifacts(project, "evaluations/test/tables")
    assert "evaluations/test/tables/per_class.csv" in tables
    assert not (RUN / "mlflow_spool.jsonl").exists()
    # A value of the same epoch that is another one, as after a change of the code.
    client = MLflowStore(f"sqlite:///{project}/runs/mlflow.db").client()
    later = kept["metrics"]["top1"] / 2 + 1
    client.log_metric((RUN / "mlflow_run_id").read_text(), "test/top1", later, step=best)
    with caplog.at_level(logging.INFO):
        evaluate(RUN, "test", device="cpu")
    assert f"test/top1 of epoch {best} was {later:.6g}" in caplog.text
    assert [step for step, _ in history(project, "test/top1")] == [best] * 3
    assert len(history(project, "test/loss")) == 1


def test_a_store_that_is_away_costs_one_line_which_repeats_the_command(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = project / "runs/mlflow.db"
    database.rename("away.db")
    found = evaluate(RUN, "train", "last", "cpu")
    assert found.n == COUNTS["train"]
    assert (RUN / "evaluations/train_last.json").exists()
    assert not database.exists()
    Path("away.db").rename(database)
    [line] = [line for line in caplog.messages if "is not logged" in line]
    assert line.startswith("MLflow at sqlite:///")
    command = shlex.split(line.partition("repeat it: ")[2])
    assert command[:3] == ["python", "-m", "research.evaluate"]
    verb("evaluate").main(command[3:])
    # Not train/loss, which is of training.
    assert history(project, "train_eval_last/n") == [(2, COUNTS["train"])]
    assert [step for step, _ in history(project, "train/loss")] == [1, 2]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("batch_size=3 workers=0 device=cpu channels_last=true", {}),
        ("optimizer.lr=7 epochs=9 tags.a=b evaluate_at_end=val", {}),
        ("dataset.cache_dir=elsewhere precision=fp32 max_val_batches=null", {}),
        ("precision=bf16", {"precision": "bf16"}),
        ("max_val_batches=1", {"max_val_batches": 1}),
        ("seed=3 task.label_smoothing=0.1", {"seed": 3, "task.label_smoothing": 0.1}),
        ("dataset.test_dir={data}/val", {"dataset.test_dir": "{data}/val"}),
        ("dataset.test_dir={copy}/test dataset.val_dir={copy}/val", {}),  # the same data
    ],
)
def test_what_counts_as_another_evaluation(
    project: Path, words: str, changed: dict[str, Any]
) -> None:
    copy, data = project / "copy", project / "data"
    if not copy.exists():
        shutil.copytree(data, copy)
    typed = words.format(data=data, copy=copy).split()
    expected = {
        key: value.format(data=data) if isinstance(value, str) else value
        for key, value in changed.items()
    }
    loaded = load_eval_run(RUN, "test", "best", "cpu", typed)
    assert loaded.changed == expected


def test_each_evaluation_has_a_name_of_its_own() -> None:
    files = ("best", "last", "epoch_003_loss_0.1234", "final")
    found = [
        result_of(split=split, checkpoint=f"checkpoints/{file}.pt", changed=changed)
        for split in ("train", "val", "test")
        for file in files
        for changed in ({}, {"seed": 1}, {"seed": 2}, {"dataset.image_size": 1})
    ]
    assert len({each.name for each in found}) == len(found)
    assert len({next(iter(each.row)) for each in found}) == len(found)
    one, two = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert result_of(changed=one).name == result_of(changed=two).name
    assert result_of().row == {"test/top1": 0.5, "test/n": 8}
    assert result_of(checkpoint="checkpoints/last.pt").name == "test_last"
    assert not {*result_of(split="train").row} & {"train/top1", "train/loss"}


def test_changed_settings_replace_nothing(project: Path) -> None:
    own = evaluate(RUN, "test", device="cpu")
    before = history(project, "test/n")
    other = evaluate(RUN, "test", device="cpu", overrides=["dataset.test_dir=data/val"])
    assert (own.n, other.n) == (COUNTS["test"], COUNTS["val"])
    kept = {path.name for path in (RUN / "evaluations").glob("*.json")}
    assert kept == {"test.json", f"{other.name}.json"}
    assert re.fullmatch(r"test_[0-9a-f]{8}", other.name)
    content = json.loads((RUN / "evaluations" / f"{other.name}.json").read_text())
    assert content["changed"] == {"dataset.test_dir": "data/val"}
    assert json.loads((RUN / "evaluations/test.json").read_text())["n"] == COUNTS["test"]
    assert history(project, "test/n") == before


def test_out_takes_everything_and_a_strangers_file_is_in_no_record(
    project: Path, tmp_path: Path
) -> None:
    found = evaluate(RUN, "val", device="cpu", out=tmp_path)
    assert not (RUN / "evaluations").exists()
    assert (tmp_path / "val.json").exists()
    assert (tmp_path / "val/tables/per_class.csv").exists()
    theirs = tmp_path / "theirs.pt"
    shutil.copy(RUN / "checkpoints/best.pt", theirs)
    names = ("train_dirs=[data/train]", "val_dir=data/val", "test_dir=data/test")
    words = [f"dataset.{name}" for name in names]
    before = history(project, "val_theirs/n"), history(project, "val/n")
    stranger = evaluate(theirs, "val", device="cpu", overrides=words)
    assert (tmp_path / "evaluations/val_theirs.json").exists()
    assert (stranger.metrics, stranger.changed) == (found.metrics, {})
    assert (history(project, "val_theirs/n"), history(project, "val/n")) == before


def test_limits_of_training_are_none_of_an_evaluation(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are typed; every command evaluates through ``load_eval_run``."""
    limits = []
    whole = loop.evaluate

    def seen(*arguments: Any) -> Any:
        limits.append(arguments[2].sampler.samples)
        return whole(*arguments)

    monkeypatch.setattr(loop, "evaluate", seen)
    assert load_eval_run(RUN, "val", "best", "cpu", []).measure()[0].n == COUNTS["val"]
    out = f"out={tmp_path / 'out'}"
    leaderboard.main([str(RUN), "rounds=1", "batch=1", "device=cpu", out])
    verb("evaluate").main([str(RUN), "device=cpu", out])
    assert limits == [COUNTS["val"]] * 3
    assert "max_val_batches" not in caplog.text
    found = load_eval_run(RUN, "val", "best", "cpu", ["max_val_batches=1"]).measure()[0]
    assert (found.n, limits[-1]) == (4, 4)
    assert "max_val_batches=1: val, 4 of 12 images" in caplog.text


def test_only_one_function_loads_a_run_with_its_data() -> None:
    """So no other command can evaluate with what limits training."""
    sources = {
        path: path.read_text(encoding="utf-8")
        for path in Path(research.__file__).parent.rglob("*.py")
    }
    loading = [path.name for path, text in sources.items() if re.search(r"\bdata=True\)", text)]
    assert loading == ["evaluation.py"]
    passing = {p.name for p, text in sources.items() if re.search(r"loop\.evaluate\(", text)}
    assert passing == {"evaluation.py"}


# -- at the end of a run ------------------------------------------------------------------------


@pytest.fixture
def ends(small: Compose, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A run that ends with an evaluation on a test split of 18 images."""
    make_folders(tmp_path / "data/test", 6, seed=2)

    def compose(*words: str) -> dict[str, Any]:
        test = f"dataset.test_dir={tmp_path / 'data/test'}"
        return small(*TINY, test, f"run_dir={RUN}", "evaluate_at_end=test", *words)

    return compose


def test_a_run_ends_with_its_test_metrics(ends: Compose, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(ends("max_val_batches=1", "epochs=2"))
    kept = json.loads((RUN / "evaluations/test.json").read_text())
    summary = json.loads((RUN / "summary.json").read_text())
    assert (kept["n"], kept["epoch"], kept["changed"]) == (18, summary["best_epoch"], {})
    found = summary["evaluations"]["test"]
    assert found == {name: kept[name] for name in found}
    assert set(found) == {"split", "checkpoint", "epoch", "n", "metrics"}
    [line] = [line for line in caplog.messages if line.startswith("test of epoch")]
    assert f"top1 {kept['metrics']['top1']:.4g}" in line
    assert line.endswith("(n 18)")
    assert (RUN / "evaluations/test/pictures/confusion_matrix.png").exists()
    # Repeated, it leaves nothing of the evaluation before it, and what is not its own.
    written = RUN / "evaluations/test"
    files = {path for path in written.rglob("*") if path.is_file()}
    for name in ("pictures/of_before.png", "tables/of_before.csv", "pictures/notes.txt"):
        (written / name).write_text("")
    again = evaluation.evaluate(RUN, "test", device="cpu")
    assert again.metrics == pytest.approx(kept["metrics"])
    now = {path for path in written.rglob("*") if path.is_file()}
    assert now == {*files, written / "pictures/notes.txt"}


def test_a_run_that_is_killed_in_its_evaluation_goes_on_with_it(
    ends: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "at_end", killed)
        with pytest.raises(Interrupted):
            run(ends())
    assert json.loads((RUN / "summary.json").read_text())["status"] == "KILLED"
    trained = (RUN / "checkpoints/last.pt").stat().st_mtime_ns, read_rows(RUN / "epoch_metrics.csv")
    assert run_folder.find_unfinished(ends(), 1) == RUN
    run(ends("resume=auto"))
    summary = json.loads((RUN / "summary.json").read_text())
    assert (summary["status"], [*summary["evaluations"]]) == ("FINISHED", ["test"])
    now = (RUN / "checkpoints/last.pt").stat().st_mtime_ns, read_rows(RUN / "epoch_metrics.csv")
    assert now == trained
    assert run_folder.find_unfinished(ends(), 1) is None
    # Another split, and no evaluation at all.
    assert run_folder.find_unfinished(ends("evaluate_at_end=val"), 1) == RUN
    assert run_folder.find_unfinished(ends("evaluate_at_end=null"), 1) is None


def test_a_run_without_this_split_does_not_start(small: Compose, tmp_path: Path) -> None:
    """Said from the settings, or else when the data have been read."""
    with user_error("evaluate_at_end", "evaluate_at_end=test", "dataset.test_dir=FOLDER"):
        small(*TINY, "evaluate_at_end=test")
    photos = write_photos(tmp_path / "photos")
    words = [
        "model=siamese_e2e", "model.backbone=test_resnet", "dataset=phototriage", "device=cpu",
        f"dataset.root={photos}", "dataset.image_size=32", "evaluate_at_end=test",
    ]  # fmt: skip
    config = compose_config([*words, "dataset.test_fraction=0"]).config
    with user_error("evaluate_at_end", "has train, val", "dataset.test_fraction=0.1"):
        build.experiment(config)
    config = compose_config([*words, "dataset.test_fraction=0.1"]).config  # the advice
    assert build.experiment(config).cfg.epochs


def test_a_pruned_run_is_finished_without_it(ends: Compose) -> None:
    class Pruner:
        stopped = False

        def epoch(self, epoch: int, value: float) -> None:
            self.stopped = True

    begin = run_module.start(ends("epochs=2"), "pruned")
    assert begin is not None
    run_module.train(ends("epochs=2"), "pruned", [], begin, pruner=Pruner())
    summary = json.loads((RUN / "summary.json").read_text())
    assert (summary["status"], summary["epochs_done"]) == ("PRUNED", 1)
    assert not (RUN / "evaluations").exists()
    assert run_folder.is_finished(RUN, ends("epochs=1"))


@pytest.mark.whole
def test_several_processes_evaluate_what_one_does(ends: Compose, tmp_path: Path) -> None:
    words = [
        *SMALL, *TINY, *data_overrides(tmp_path / "data"), "batch_size=5", "max_val_batches=1",
        f"dataset.test_dir={tmp_path / 'data/test'}", f"run_dir={RUN}", "evaluate_at_end=test",
    ]  # fmt: skip
    done = torchrun(2, ROOT / "train.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = json.loads((RUN / "evaluations/test.json").read_text())
    alone = load_eval_run(RUN, "test", "best", "cpu", []).measure()[0]
    assert (kept["n"], kept["epoch"]) == (alone.n, alone.epoch)
    assert kept["metrics"] == pytest.approx(alone.metrics, rel=1e-5)
    assert done.stdout.count("test of epoch") == 1
