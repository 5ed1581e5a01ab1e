"""The commands as real processes: killed, stopped, resumed, and asked for help."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from research.engine import checkpoint, run_folder
from research.utils.errors import UserError
from tests.conftest import ROOT, SMALL, TINY, data_overrides, histories, make_folders, run
from tests.test_train import assert_same, rows, without_times

Compose = Callable[..., dict[str, Any]]
# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
TRAIN = (sys.executable, str(ROOT / "train.py"))


@contextmanager
def process(folder: Path, *words: str, group: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process in ``folder``, both outputs in pipes; gone afterwards.

    With ``group`` it leads a process group of its own.
    """
    started = subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=_hear_ctrl_c,
        start_new_session=group,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def _hear_ctrl_c() -> None:
    """What a shell starts in the background (the tests, perhaps) is deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def module(folder: Path, name: str, *words: str) -> Any:
    return process(folder, sys.executable, "-m", f"research.{name}", *words)


def outcome(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = started.communicate(timeout=300)
    return started.returncode, out, errors


def complaints(errors: str) -> list[str]:
    """The lines of standard error that are no log: why it was refused or has ended."""
    starts = ("error: ", "interrupted by", "Traceback")
    return [line for line in errors.splitlines() if line.startswith(starts)]


def wait_for_batch(started: subprocess.Popen[str], table: Path, epoch: int, batch: int) -> None:
    """Until a training process has written the row of this batch, or is gone."""
    give_up = time.monotonic() + 300
    while started.poll() is None and time.monotonic() < give_up:
        if table.exists() and f"\n{epoch},{batch}," in table.read_text():
            return
        time.sleep(0.002)


def epochs_and_batches(folder: Path) -> list[tuple[int, int]]:
    return [(int(r["epoch"]), int(r["batch"])) for r in rows(folder / "batch_metrics.csv")]


@pytest.fixture
def training(tmp_path: Path, store: str) -> list[str]:
    """A ``train.py`` command of four epochs of 15 batches, its results in MLflow."""
    make_folders(tmp_path / "data" / "train", 10)
    make_folders(tmp_path / "data" / "val", 2, seed=1)
    logging = ("logging=mlflow", f"logging.mlflow.uri={store}")
    return [
        *TRAIN, *SMALL, *TINY, *data_overrides(tmp_path / "data"), *logging,
        "logging.mlflow.system_metrics=false", "log_every=1", "batch_size=2",
        "dataset.image_size=64", "optimizer=adamw", "optimizer.lr=0.001", "model.drop_rate=0.3",
        "epochs=4",
    ]  # fmt: skip


def mlflow_runs(store: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("backbone-lab")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    named = {entry.info.run_name: entry for entry in found}
    assert len(named) == len(found), "a run has one record"
    return named


@pytest.mark.whole
def test_kill_9_and_resume_is_exact(training: list[str], tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    whole = tmp_path / "whole"
    with process(tmp_path, *training, "run_dir=whole", "name=whole") as uninterrupted:
        for attempt in range(5):
            name = f"parts_{attempt}"
            parts, words = tmp_path / name, [*training, f"run_dir={name}", f"name={name}"]
            with process(tmp_path, *words) as killed:
                wait_for_batch(killed, parts / "batch_metrics.csv", epoch=3, batch=3)
                killed.send_signal(signal.SIGKILL)
                status = killed.wait()
            if status == -signal.SIGKILL and epochs_and_batches(parts)[-1] < (3, 15):
                break
        else:
            pytest.fail("this machine is too busy to kill a process in the middle of an epoch")
        last = epochs_and_batches(parts)[-1]
        assert (3, 3) <= last < (3, 15)
        saved = checkpoint.load(parts / "checkpoints" / "last.pt")
        assert saved["state"]["epoch"] == 2
        assert json.loads((parts / "summary.json").read_text())["status"] == "RUNNING"
        before = mlflow_runs(store).get(name)  # records are delivered beside training
        assert before is None or before.info.status == "RUNNING"
        with process(tmp_path, *words, "resume=auto") as resumed:
            status, printed, errors = outcome(resumed)
            assert (status, complaints(errors)) == (0, [])
            assert f"resume: continuing after epoch 2 in {name}" in errors
            assert printed.startswith("best val/top1")
        status, _, errors = outcome(uninterrupted)
        assert (status, complaints(errors)) == (0, [])

    assert epochs_and_batches(parts) == [(e, b) for e in range(1, 5) for b in range(1, 16)]
    for table in ("epoch_metrics.csv", "batch_metrics.csv"):
        assert without_times(parts / table) == without_times(whole / table)
    one, two = (checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (whole, parts))
    for part in ("model", "optimizer", "scheduler", "scaler", "transform", "rng"):
        assert_same(one[part], two[part])
    files = [sorted(p.name for p in (f / "checkpoints").glob("*.*")) for f in (whole, parts)]
    assert files[0] == files[1]

    client, found = MlflowClient(store), mlflow_runs(store)
    run_id = found[name].info.run_id
    assert before is None or before.info.run_id == run_id
    assert two["tracking"].get("mlflow_run_id", run_id) == run_id
    assert found[name].info.status == found["whole"].info.status == "FINISHED"
    ours, theirs = (histories(client, found[n].info.run_id) for n in (name, "whole"))
    assert ours == theirs
    assert [step for step, _ in ours["batch/loss"]] == list(range(1, 61))
    assert [step for step, _ in ours["val/top1"]] == [1, 2, 3, 4]
    assert not (parts / "mlflow_spool.jsonl").exists()


@pytest.mark.long
def test_a_signal_to_the_whole_group_is_resumed_exactly(tmp_path: Path) -> None:
    """A scheduler signals the loader's workers as well."""
    make_folders(tmp_path / "data" / "train", 10)
    make_folders(tmp_path / "data" / "val", 2, seed=1)
    words = [
        *TRAIN, *SMALL, *TINY, *data_overrides(tmp_path / "data"), "log_every=1", "epochs=3",
        "batch_size=2", "dataset.image_size=64", "workers=2",
    ]  # fmt: skip
    with process(tmp_path, *words, "run_dir=whole") as whole:
        status, _, errors = outcome(whole)
        assert (status, complaints(errors)) == (0, [])
    parts = tmp_path / "parts"
    with process(tmp_path, *words, "run_dir=parts", group=True) as stopped:
        wait_for_batch(stopped, parts / "batch_metrics.csv", epoch=2, batch=3)
        os.killpg(stopped.pid, signal.SIGTERM)
        status, _, errors = outcome(stopped)
        assert (status, complaints(errors)) == (128 + signal.SIGTERM, ["interrupted by SIGTERM"])
    state = checkpoint.load(parts / "checkpoints" / "last.pt")["state"]
    assert (state["epoch"], state["samples"] >= 6) == (1, True)
    with process(tmp_path, *words, "run_dir=parts", "resume=auto") as resumed:
        status, _, errors = outcome(resumed)
        assert (status, complaints(errors)) == (0, [])
    for table in ("epoch_metrics.csv", "batch_metrics.csv"):
        assert without_times(parts / table) == without_times(tmp_path / "whole" / table)
    one, two = (
        checkpoint.load(folder / "checkpoints" / "last.pt")
        for folder in (tmp_path / "whole", parts)
    )
    for part in ("model", "optimizer", "scheduler", "transform", "rng"):
        assert_same(one[part], two[part])


@pytest.mark.whole
def test_signals_end_a_run_as_killed(training: list[str], tmp_path: Path, store: str) -> None:
    words = [*training, "epochs=1000"]
    with (
        process(tmp_path, *words, "run_dir=term", "name=term") as term,
        process(tmp_path, *words, "run_dir=int", "name=int") as interrupt,
    ):
        stopped = {"term": (term, signal.SIGTERM), "int": (interrupt, signal.SIGINT)}
        for name, (started, number) in stopped.items():
            wait_for_batch(started, tmp_path / name / "batch_metrics.csv", epoch=2, batch=1)
            with (
                pytest.raises(UserError, match="another process is training"),
                run_folder.run_lock(tmp_path / name),
            ):
                pass
            started.send_signal(number)
        for name, (started, number) in stopped.items():
            status, _, errors = outcome(started)
            assert (status, complaints(errors)) == (128 + number, [f"interrupted by {number.name}"])
            assert f"; continue with python {TRAIN[1]} resume={name} " in errors  # where data are
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            assert summary["status"] == "KILLED"
            assert summary["epochs_done"] >= 1
            with run_folder.run_lock(tmp_path / name):
                pass
    assert {n: entry.info.status for n, entry in mlflow_runs(store).items()} == {
        "term": "KILLED",
        "int": "KILLED",
    }


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.whole
def test_evaluate(small: Compose, tmp_path: Path) -> None:
    folder = run(small(*TINY, "epochs=2"))
    poisoned = tmp_path / "poisoned.pt"
    torch.save({"format": 1, "model": {}, "note": Payload()}, poisoned)
    with (
        module(tmp_path, "evaluate", str(folder), "split=val", "checkpoint=last") as good,
        module(tmp_path, "evaluate", str(poisoned)) as bad,
    ):
        status, printed, errors = outcome(good)
        assert status == 0
        *logged, files, following = filter(None, errors.splitlines())
        assert all(line.endswith("pictures used") for line in logged)
        assert (files[:7], following[:7]) == ("files: ", "next:  ")
        result = json.loads(printed)
        last = json.loads((folder / "summary.json").read_text())["epochs"][-1]
        logged = rows(folder / "epoch_metrics.csv")[-1]
        assert result["epoch"] == 2
        assert result["metrics"]["loss"] == last["val/loss"] == float(logged["val/loss"])
        assert result["metrics"]["top1"] == float(logged["val/top1"])
        assert result["logged"] == result["metrics"]

        status, printed, errors = outcome(bad)
        assert (status, printed) == (2, "")
        assert errors.count("\n") == 1
        assert errors.startswith(f"error: {poisoned}: refused, it holds pickled objects")
    assert not (tmp_path / "executed").exists()


@pytest.mark.whole
def test_inspect_and_summary(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos", 1)
    (tmp_path / "photos" / "bars" / "text.jpg").write_text("no picture")
    settings = ("model=resnet34_compressed", "dataset.image_size=32")
    with (
        module(tmp_path, "inspect", "photos", "out=seen", "compression.window=2") as inspect,
        module(tmp_path, "summary", *settings, "compression.window=1,8") as summary,
    ):
        status, printed, errors = outcome(inspect)
        assert (status, complaints(errors)) == (0, [])
        lines = printed.splitlines()
        assert "pictures used\n" in errors
        assert lines[0].split() == ["Y", "Cb", "Cr", "RGB", "dB"]
        assert "files: seen\n" in errors
        assert sum("left out: not_an_image" in line for line in lines) == 1
        measured = [line.split() for line in lines[1:] if "left out" not in line]
        assert len(measured) == 3
        assert all(10 < float(number) < 80 for row in measured for number in row[:4])
        pictures = sorted((tmp_path / "seen").iterdir())
        assert [path.name for path in pictures if path.name.startswith("energy")] == [
            "energy_Cb.png", "energy_Cr.png", "energy_Y.png",
        ]  # fmt: skip
        assert len(pictures) == 6
        for path in pictures:
            with Image.open(path) as image:
                assert image.width > 100

        status, printed, errors = outcome(summary)
        assert status == 0
        file = shlex.quote(str(ROOT / "train.py"))  # it can be typed in this folder
        assert errors.startswith(f"next:  python {file} -m model=resnet34_compressed")
        table = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()
        ]
        assert table[0][:3] == ["compression.window", "parameters", "GMAC"]
        assert table[0][-1] == "latency ms"
        assert [row[0] for row in table[2:]] == ["1", "8"]
        small, large = (int(row[1].replace(",", "")) for row in table[2:])
        assert 21_000_000 < small < large


HELP = {
    "train": ["model", "compression.window", "resume", "init_from", "patience", "-m"],
    "evaluate": ["RUN", "split", "checkpoint", "device"],
    "predict": ["WEIGHTS", "SOURCE", "objectness", "iou", "max_frames", "out", "show", "port"],
    "inspect": ["IMAGES", "out", "compression.window", "compression.source"],
    "summary": ["model=", "compression.window", "dataset.image_size", "latency", "batch"],
    "lr_find": ["start", "end", "steps", "out"],
    "export": ["RUN", "out", "checkpoint", "opset"],
}


def test_help_and_a_mistake(tmp_path: Path) -> None:
    """The commands' languages in full: ``test_cli.py`` and ``test_config.py``."""
    with ExitStack() as stack:
        helps = {
            name: stack.enter_context(
                process(tmp_path, *TRAIN, "--help")
                if name == "train"
                else module(tmp_path, name, "--help")
            )
            for name in HELP
        }
        mistaken = stack.enter_context(module(tmp_path, "evaluate", "runs/x", "splt=val"))
        for name, asked in helps.items():
            status, printed, errors = outcome(asked)
            assert (status, errors) == (0, "")
            assert [word for word in HELP[name] if word not in printed] == []
        reported = "error: no key 'splt'; did you mean 'split'? see --help\n"
        assert outcome(mistaken) == (2, "", reported)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_mistake_that_only_the_data_show_is_one_line(tmp_path: Path) -> None:
    words = ("dataset=cifar10", "dataset.root=none", "dataset.download=false", "logging=csv")
    with process(tmp_path, *TRAIN, "model=fastnet", *words) as started:
        status, printed, errors = outcome(started)
    assert (status, printed) == (2, "")
    assert errors.startswith("error: dataset.root: no CIFAR-10 under none")
    assert errors.count("\n") == 1
