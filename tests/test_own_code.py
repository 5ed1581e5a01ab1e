"""A user's own code: named by --config-dir on a command line, by trust= of a file."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

import research
from research import export, leaderboard, reproduce
from research.config import check_jobs, outputs
from research.engine import distributed
from research.utils.errors import UserError
from tests.conftest import SMALL, Train, data_overrides, evaluated, one_line_of, verb

MODULE = """
import torch
from torch import nn
from research.tracking.tracker import Tracker

class Head(nn.Module):
    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, count)
    def forward(self, x):
        return self.linear(x)

class Net(nn.Module):
    def __init__(self, num_classes: int, width: int, head) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.last = head(width, num_classes)
    def forward(self, x):
        return self.last(self.first(x).relu().mean((2, 3)))

class Lines(Tracker):
    def __init__(self, file: str) -> None:
        self.file = file
    def log(self, table, step, row) -> None:
        with open(self.file, "a") as file:
            file.write(f"{table} {step}\\n")
"""
FILES = {
    "model/mine.yaml": {
        "_target_": "my_models.Net", "num_classes": None, "width": 8,
        "head": {"_target_": "my_models.Head", "_partial_": True},
    },
    "logging/lines.yaml": {
        "lines": {"_target_": "my_models.Lines", "_partial_": True, "file": "lines.txt"},
    },
}  # fmt: skip
TRUST = "trust=[my_models.Head,my_models.Lines,my_models.Net]"
PARTS = """
import torch
from torch.optim import lr_scheduler as schedules
from research.tasks.classification import Classification

def restarts(optimizer, epochs, steps_per_epoch):
    return schedules.CosineAnnealingWarmRestarts(optimizer, 2 * steps_per_epoch)

def plateau(optimizer, epochs, steps_per_epoch):
    return schedules.ReduceLROnPlateau(optimizer)

def chained(optimizer, epochs, steps_per_epoch):
    return schedules.ChainedScheduler([schedules.ConstantLR(optimizer)])

class Metrics:
    names = ("top1",)
    def update(self, predictions, batch): ...
    def compute(self): ...
    def reset(self): ...

class Task(Classification):
    def __init__(self, classes):
        super().__init__(classes, 0.0, "none")
    def metrics(self, device):
        return Metrics()

class Bare:
    monitor = None
    def __init__(self, classes): ...
    def losses(self, model, batch): ...
"""
Words = Callable[..., list[str]]


@pytest.fixture
def own(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Words]:
    """A project with a module and options of its own; gives the words of a command line."""
    (tmp_path / "my_models.py").write_text(MODULE)
    for name, content in FILES.items():
        path = tmp_path / "options" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # as every command does

    def words(*more: str) -> list[str]:
        small = [word for word in SMALL if not word.startswith(("model.", "logging="))]
        chosen = ["--config-dir", "options", "model=mine", "logging=lines"]
        return [*chosen, *small, *data_overrides(folders), *more]

    yield words
    sys.modules.pop("my_models", None)


def test_it_trains_resumes_and_is_used_under_trust(own: Words, train: Train) -> None:
    train(*own("run_dir=runs/mine"))
    run = Path("runs/mine")
    assert yaml.safe_load((run / "config.yaml").read_text())["trust"] == [
        "my_models.Head", "my_models.Lines", "my_models.Net",
    ]  # fmt: skip
    assert Path("lines.txt").read_text().count("epoch") == 1
    reproduce.main([str(run), TRUST, "out=again"])
    command = shlex.split(Path("again/reproduce.sh").read_text().splitlines()[-1])
    assert command[:4] == ["python", "train.py", "--config-dir", "options"]
    check_jobs(command[4:], multirun=False, own=Path(command[3]))  # it works when typed
    shutil.copytree(run, "theirs")
    reproduce.main(["theirs", TRUST, "out=theirs"])
    printed = Path("theirs/reproduce.txt").read_text()
    assert "which is not repeated for a run outside runs/" in printed
    assert "--config-dir" not in Path("theirs/reproduce.sh").read_text()
    train(*own("run_dir=runs/mine", "epochs=2", "resume=auto"))
    assert json.loads((run / "summary.json").read_text())["epochs_done"] == 2
    train("--config-dir", "options", f"resume={run}", "epochs=3")
    assert json.loads((run / "summary.json").read_text())["epochs_done"] == 3
    assert f"add '{TRUST}'" in one_line_of(lambda: train(f"resume={run}", "epochs=4"))
    python, file, *typed = shlex.split(outputs.resume_command(run))
    assert (python, file, typed[-1]) == ("python", "train.py", TRUST)
    train(*typed, "epochs=4")
    assert json.loads((run / "summary.json").read_text())["epochs_done"] == 4
    images = sorted(str(path) for path in Path("data/val").rglob("*.jpg"))[:2]
    model = research.load(run, "cpu", trust=["my_models.Net", "my_models.Head", "my_models.Lines"])
    assert model(images).shape == (2, 3)
    found = evaluated(run, "val", "best", trust=[*model.config["trust"]])
    assert found.metrics == pytest.approx(found.logged)
    weights = run / "checkpoints" / "final.safetensors"
    verb("predict").main([str(weights), *images, "out=seen", "device=cpu", TRUST])
    with Image.open("seen/contact_sheet.png") as sheet:
        assert sheet.width
    leaderboard.main([str(run), "rounds=1", "batch=1", "out=judged", "device=cpu", TRUST])
    words = own(f"init_from={weights}", "run_dir=runs/again")
    train(*words)
    train(*own("-m", "seed=0,1", "hydra.sweeper.study_name=both"))
    counts = json.loads(Path("runs/sweeps/both/final_summary.json").read_text())["counts"]
    assert counts == {"FINISHED": 2}


def test_without_trust_it_is_refused(own: Words, train: Train) -> None:
    train(*own("run_dir=runs/mine"))
    run = "runs/mine"
    image = str(next(Path("data/val").rglob("*.jpg")))
    commands: dict[str, Callable[[], object]] = {
        "load": lambda: research.load(run, "cpu"),
        "evaluate": lambda: verb("evaluate").main([run, "device=cpu"]),
        "predict": lambda: verb("predict").main([run, image, "device=cpu", "out=seen"]),
        "export": lambda: export.main([run]),
        "judge": lambda: leaderboard.main([run, "device=cpu"]),
        "reproduce": lambda: reproduce.main([run]),
        "one of three": lambda: research.load(run, "cpu", trust=["my_models.Net"]),
        "another": lambda: research.load(run, "cpu", trust=["my_models"]),
    }
    for name, command in commands.items():
        line = one_line_of(command)
        assert "refused" in line, name
        assert shlex.split(line)[-1] == TRUST, name
        assert len(line) < 250, line
    verb("evaluate").main([run, "device=cpu", TRUST])  # the advice, typed


def test_a_name_on_the_command_line_needs_trust(own: Words, train: Train) -> None:
    """Only what an option file names is the user's by itself."""
    plain = [word for word in own() if word not in ("--config-dir", "options", "logging=lines")]
    plain = [word for word in plain if word != "model=mine"]
    line = one_line_of(lambda: train(*plain, "model=fastnet", "model._target_=my_models.Net"))
    assert line.endswith("if it is your own code, add 'trust=[my_models.Net]'")
    line = one_line_of(
        lambda: train(*plain, "model._target_=my_models.Gone", "trust=[my_models.Gone]")
    )
    assert "my_models.Gone: there is no such class or function" in line


@pytest.fixture
def parts(own: Words) -> Iterator[Callable[[str, str], list[str]]]:
    """Schedulers and tasks of one's own, as words of a command line."""
    Path("my_parts.py").write_text(PARTS)

    def words(group: str, name: str) -> list[str]:
        path = Path(f"options/{group}/mine.yaml")
        path.parent.mkdir(exist_ok=True)
        option: dict[str, object] = {"_target_": f"my_parts.{name}"}
        if group == "scheduler":
            option["_partial_"] = True
        path.write_text(yaml.safe_dump(option))
        return own(f"{group}=mine")

    yield words
    sys.modules.pop("my_parts", None)


@pytest.mark.parametrize("name", ["plateau", "chained"])
def test_a_scheduler_that_cannot_be_resumed(
    name: str, parts: Callable[[str, str], list[str]], train: Train
) -> None:
    line = one_line_of(lambda: train(*parts("scheduler", name)))
    assert "schedules are stepped after each optimizer step" in line


def test_a_scheduler_of_torch_is_resumed(
    parts: Callable[[str, str], list[str]], train: Train
) -> None:
    words = parts("scheduler", "restarts")
    train(*words, "run_dir=runs/whole", "epochs=3")
    train(*words, "run_dir=runs/two", "epochs=1")
    train(*words, "run_dir=runs/two", "epochs=3", "resume=auto")
    rates = []
    for name in ("whole", "two"):
        with Path(f"runs/{name}/epoch_metrics.csv").open(newline="") as file:
            rates.append([row["learning_rate"] for row in csv.DictReader(file)])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 2


def test_a_task_without_some_methods(
    parts: Callable[[str, str], list[str]], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = one_line_of(lambda: train(*parts("task", "Bare")))
    assert "task: Bare has no predict, " in line
    monkeypatch.setattr(distributed, "count", lambda: 2)
    line = one_line_of(lambda: train(*parts("task", "Task")))
    assert "task: Metrics has no state, merge; " in line


def test_words_of_hydras_own_are_refused(own: Words, train: Train) -> None:
    path = Path("options/model/mine.yaml")
    path.write_text(path.read_text() + "_recursive_: false\n")
    assert "model._recursive_: not a setting" in one_line_of(lambda: train(*own()))


def test_trust_is_a_list_of_names() -> None:
    from research.config import compose_config

    for wrong in ("trust=os.system", "trust=[a b]", "trust=[Net]", "trust=[3]", "trust={a: b}"):
        with pytest.raises(UserError, match="trust"):
            compose_config([wrong])
