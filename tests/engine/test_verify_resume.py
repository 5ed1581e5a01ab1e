"""``verify_resume=true``: what it compares, what it says, and what it leaves alone."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from research.config import check_jobs, compose_config
from research.engine import verify_resume
from research.engine.run_differences import compare, content, describe, differences
from research.engine.verify_resume import in_folder
from research.utils.files import write_text
from tests.conftest import TINY, run, user_error

Compose = Callable[..., dict[str, Any]]
NAN = float("nan")
SHORT = (*TINY, "batch_size=4", "epochs=9", "ema=0.9")


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 1.0}, ["x.a: 1 / 1.0"]),
        ({"a": 1}, {"b": 1}, ["x.a: missing", "x.b: added"]),
        ([1.0, NAN], [1.5, NAN], ["x[0]: 1.0 / 1.5"]),
        ([1.0], [1.0, 2.0], ["x: 1 entries / 2"]),
        ("FINISHED", "RUNNING", ["x: 'FINISHED' / 'RUNNING'"]),
        (None, torch.zeros(1), ["x: None / tensor([0.])"]),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), []),
        (torch.zeros(3), torch.tensor([0, 0.5, 0]), ["x: 1 of 3 values, by up to 0.5"]),
        (torch.zeros(2), torch.tensor([NAN, 0]), ["x: 1 of 2 values, by up to inf"]),
        (torch.tensor([True]), torch.tensor([False]), ["x: 1 of 1 values, by up to 1"]),
        (torch.zeros(2), torch.zeros(3), ["x: torch.float32 (2,) / torch.float32 (3,)"]),
    ],
)
def test_differences(one: Any, two: Any, expected: list[str]) -> None:
    assert [str(each) for each in differences(one, two, "x")] == expected


def test_the_largest_difference_is_shown() -> None:
    found = list(differences(["a", 1.0, 1.0, 1.0], ["b", 1.1, 3.0, 1.0], "loss"))
    assert describe(found) == "3 differences, such as loss[2]: 1.0 / 3.0"
    assert describe(found[:1]) == "loss[0]: 'a' / 'b'"
    assert describe([]) == "identical"


def test_what_is_compared(small: Compose) -> None:
    words = (*SHORT, "epochs=1", "max_train_batches=2", "max_val_batches=1")
    runs = [run(small(*words, "run_dir=a")), Path("b")]
    shutil.copytree(*runs)
    found = compare(*(content(folder) for folder in runs))
    assert not any(found.values()), found
    assert {"weights", "batch_metrics.csv", "summary.json", "files"} <= found.keys()
    rows = (runs[1] / "batch_metrics.csv").read_text().splitlines()
    write_text(runs[1] / "batch_metrics.csv", "\n".join([*rows, rows[-1]]) + "\n")
    write_text(runs[1] / "extra.txt", "")
    found = compare(*(content(folder) for folder in runs))
    assert [name for name in found if found[name]] == ["batch_metrics.csv", "files"]


def test_only_local_trackers_are_used(tmp_path: Path) -> None:
    words = ["logging=mlflow", "logging.mlflow.uri=http://tracking.example", "run_dir=x"]
    config = compose_config(words).config
    config["logging"]["own"] = {"_target_": "my_trackers.Remote", "_partial_": True}
    own, store = in_folder(config, tmp_path / "killed")
    assert store == (f"sqlite:///{tmp_path}/mlflow.db", "killed")
    assert list(own["logging"]) == ["mlflow"]
    assert own["logging"]["mlflow"]["uri"] == store[0]
    assert own["run_dir"] == str(tmp_path / "killed")
    assert own["verify_resume"] is False
    assert config["logging"]["mlflow"]["uri"] == "http://tracking.example"


def test_it_is_no_sweep() -> None:
    with user_error("verify_resume", "-m"):
        check_jobs(["verify_resume=true", "seed=0,1"], multirun=True)
    check_jobs(["verify_resume=false", "seed=0,1"], multirun=True)


def test_it_verifies_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with user_error("verify_resume", "torchrun"):
        verify_resume.verify({}, "test")


@pytest.mark.parametrize("change", range(1, 13))
def test_a_kill_before_each_change_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    """Between any two changes the file has its old content or its new, and a cut copy at most."""
    file = tmp_path / "run" / "file"
    write_text(file, "old")
    child = os.fork()
    if child == 0:
        verify_resume.kill_at_change(tmp_path / "run", change, "here")
        write_text(tmp_path.parent / "elsewhere", "not counted")
        write_text(file, "new content")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    record = tmp_path / "run.kill"
    if change > 7:
        assert status == 0
        assert not record.exists()
        return
    assert os.WTERMSIG(status) == 9
    assert record.read_text().startswith("here, ")
    assert file.read_text() in ("old", "new content")
    if "while file is written" in record.read_text():
        (cut,) = (path for path in file.parent.iterdir() if path != file)
        assert cut.read_text() == "new c"


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.whole
def test_a_run_of_this_project_is_resumed_bit_for_bit(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = small(*SHORT, "resume=auto", "run_dir=mine", "workers=1")
    assert verify_resume.verify(config, "test") == 0
    said = lines(caplog)
    assert "run_dir=mine is not used" in said
    assert "identical; a killed run is resumed bit for bit" in said
    assert said.count("killed after batch") == verify_resume.KILLS
    assert not Path("mine").exists()
    assert list(Path("runs").iterdir()) == []


OWN_MODEL = """
import os, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, chance):
        super().__init__()
        self.linear = nn.Linear(3, num_classes)
        self.calls, self.chance = 0, chance

    def forward(self, x):
        self.calls += 1  # in no state dict
        factor = time.time_ns() % 1000 if self.chance else self.calls
        return self.linear(x.mean((2, 3))) * (1 + factor / 100)
"""


@pytest.mark.whole
@pytest.mark.parametrize(
    ("chance", "verdict"), [("false", "different; the resumed run"), ("true", "not deterministic")]
)
def test_what_it_finds_in_code_of_ones_own(
    small: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    chance: str,
    verdict: str,
) -> None:
    (tmp_path / "own_net.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    caplog.set_level(logging.INFO)
    words = ("model=resnet34", "model.name=resnet10t", "trust=[own_net.Net]")
    config = small(*words, "batch_size=4")
    model = {"_target_": "own_net.Net", "num_classes": None, "chance": chance == "true"}
    assert verify_resume.verify({**config, "model": model}, "test") == 1
    said = lines(caplog)
    assert f"verify_resume: {verdict}" in said
    assert "your own code (own_net.Net)" in said
    assert "such as weights.linear." in said
    assert list(Path("runs").iterdir()) == []


@pytest.mark.long
def test_a_mistake_that_only_training_finds(small: Compose) -> None:
    """The process has printed it; the exit status is that of every mistake."""
    with pytest.raises(SystemExit) as ended:
        verify_resume.verify(small(*SHORT, "monitor=val/none:max"), "test")
    assert ended.value.code == 2
    assert list(Path("runs").iterdir()) == []


def test_moments_are_spread_over_the_run() -> None:
    for batches in (1, 2, 5, 12, 40):
        kills = list(verify_resume._kills(random.Random(batches), batches))
        steps = [kill.step for kill in kills]
        assert steps == sorted(steps)
        assert set(steps) <= set(range(1, batches + 1))
        assert [kill.change > 0 for kill in kills] == [False, True] * 3
