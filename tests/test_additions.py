"""What an addition costs: the files of ``tests/additions`` and no edit of any other.

Each is made twice: in a copy of the repository, and outside of it, from ``--config-dir``.
docs/adding.md lists them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import ROOT, Train, data_overrides, picture, verb

ADDITIONS = ROOT / "tests/additions"
PAGE = ROOT / "docs/adding.md"
SHORT = (
    "batch_size=4", "epochs=1", "max_train_batches=2", "max_val_batches=2", "device=cpu",
)  # fmt: skip
FOLDERS = ("dataset=imagefolder", "dataset.image_size=32")
NETWORK = ("model=fastnet", "model.widths=[4,8,8]")


@dataclass(frozen=True)
class Addition:
    """Files of ``tests/additions``, and the command line that takes them.

    Attributes:
        option: ``GROUP/NAME``, of ``options/GROUP/NAME.yaml``.
        room: where in the repository its module belongs; empty where it needs none.
        words: of the command line.
        column: that the table of epochs has.
        file: that the run folder has.
    """

    option: str
    room: str
    words: tuple[str, ...]
    column: str = "val/top1"
    file: str = "checkpoints/final.safetensors"

    @property
    def name(self) -> str:
        return self.option.partition("/")[2]

    def sources(self) -> dict[str, Path]:
        """Its files by their place in the repository."""
        sources = {f"conf/{self.option}.yaml": ADDITIONS / "options" / f"{self.option}.yaml"}
        if self.room:
            sources[f"{self.room}/{self.name}.py"] = ADDITIONS / "code" / f"{self.name}.py"
        return sources


ALL = {
    "model": Addition("model/perceptron", "research/models", ("model=perceptron", *FOLDERS)),
    "data set": Addition("dataset/npz", "research/data", (*NETWORK, "dataset=npz")),
    "task": Addition(
        "task/ordinal", "research/tasks", (*NETWORK, *FOLDERS, "task=ordinal"), "val/mae"
    ),
    "metric": Addition(
        "task/balanced", "research/tasks", (*NETWORK, *FOLDERS, "task=balanced"),
        "val/balanced_top1",
    ),
    "sweep": Addition("sweep/rates", "", ("-m", "sweep=rates", *NETWORK, *FOLDERS)),
    "tracker": Addition(
        "logging/jsonl", "research/tracking", (*NETWORK, *FOLDERS, "logging=jsonl"),
        file="rows.jsonl",
    ),
}  # fmt: skip


@pytest.fixture
def project(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with images in folders and in ``npz/``."""
    (tmp_path / "npz").mkdir()
    for split, count in (("train", 24), ("val", 12)):
        labels = np.arange(count) % 2
        images = [np.asarray(picture(("bars", "field")[i % 2], i, (32, 32))) for i in range(count)]
        classes = np.array(["bars", "field"])
        np.savez(tmp_path / "npz" / split, images=np.stack(images), labels=labels, classes=classes)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in tmp_path.glob("*.py"):
        sys.modules.pop(module.stem, None)


def words_of(addition: Addition, folders: Path) -> list[str]:
    words = [*addition.words, *SHORT]
    if "dataset=imagefolder" in words:
        words += data_overrides(folders)
    if not any(word.startswith("logging=") for word in words):
        words.append("logging=csv")
    return [*words, "hydra.sweeper.study_name=new" if "-m" in words else "run_dir=runs/new"]


def check_run(addition: Addition, project: Path) -> None:
    """What the run (of a sweep, each of its runs) has left."""
    runs = [project / "runs/new"]
    if "-m" in addition.words:
        study = project / "runs/sweeps/new"
        assert json.loads((study / "final_summary.json").read_text())["counts"] == {"FINISHED": 2}
        runs = [study / "trial_0000", study / "trial_0001"]
    for run in runs:
        assert (run / addition.file).stat().st_size > 0
        with (run / "epoch_metrics.csv").open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert np.isfinite(float(row[addition.column]))


@pytest.mark.parametrize("kind", ALL)
def test_from_a_folder_of_the_user(kind: str, project: Path, train: Train) -> None:
    """The option in a folder given by ``--config-dir``, the module beside it."""
    addition = ALL[kind]
    for place, source in addition.sources().items():
        option = place.replace("conf/", "options/")
        target = project / (option if place.endswith(".yaml") else source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    train("--config-dir", "options", *words_of(addition, project / "data"))
    check_run(addition, project)
    if kind in ("model", "data set", "task"):
        image = str(next((project / "data/val").rglob("*.jpg")))
        trusted = yaml.safe_load((project / "runs/new/config.yaml").read_text())["trust"]
        assert len(trusted) == 1
        verb("predict").main(["runs/new", image, "out=seen", f"trust=[{trusted[0]}]", "device=cpu"])
        assert len((project / "seen/predictions.csv").read_text().splitlines()) == 2


def test_the_model_of_the_page_runs_as_it_stands(project: Path, train: Train) -> None:
    """Its module, its option and its command, each copied; on less data than the page's."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## A model\n") : text.index("## A data set\n")]
    block = r"`([\w/]+\.(?:py|yaml))`[^\n]*:\n\n```\w+\n(.*?)```"
    files = re.findall(block, section, re.DOTALL)
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml"]
    for name, content in files:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content, encoding="utf-8")
    code = section[section.index("```bash\n") :].splitlines()[1]
    python, file, *words = shlex.split(code)
    assert (python, file) == ("python", "train.py")
    more = [*FOLDERS, *data_overrides(project / "data"), *SHORT]
    train(*words, *more, "logging=csv", "run_dir=runs/new")
    check_run(Addition("model/page", "", ()), project)


@pytest.mark.whole
@pytest.mark.parametrize("kind", ALL)
def test_in_the_repository(kind: str, project: Path) -> None:
    """New files in a copy of the repository; ``python train.py`` takes them as they are."""
    copy, addition = project / "copy", ALL[kind]
    before = copy_of_repository(copy)
    add(addition, copy)
    command = [sys.executable, "train.py", *words_of(addition, project / "data")]
    npz = [f"dataset.root={project / 'npz'}"] if kind == "data set" else []
    run_in(copy, [*command, *npz])
    check_run(addition, copy)
    after = contents(copy)
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert after.keys() - before.keys() == addition.sources().keys()


@pytest.mark.whole
def test_all_in_one_run_of_the_repository_and_in_its_tests(project: Path) -> None:
    """The six together; and the tests whose tables come from ``conf/`` need no edit either."""
    copy = project / "copy"
    copy_of_repository(copy)
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for addition in ALL.values():
        add(addition, copy)
    words = (
        *("-m", "sweep=rates", "model=perceptron", "dataset=npz", "task=ordinal"),
        *("logging=jsonl", *SHORT, f"dataset.root={project / 'npz'}"),
    )
    run_in(copy, [sys.executable, "train.py", *words, "hydra.sweeper.study_name=new"])
    both = Addition("", "", ("-m",), "val/mae", "rows.jsonl")
    check_run(both, copy)
    tables = [
        "tests/test_inventory.py::test_settings",
        "tests/test_every_command.py::test_every_model_has_a_variant",
        "tests/config/test_config.py",
    ]
    run_in(copy, [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *tables])


def copy_of_repository(copy: Path) -> dict[str, str]:
    """``train.py``, ``conf`` and ``research``; gives their contents."""
    copy.mkdir()
    shutil.copy(ROOT / "train.py", copy)
    for folder in ("conf", "research"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return contents(copy)


def add(addition: Addition, copy: Path) -> None:
    """Write the files of an addition at their places, the module under its name there."""
    for place, source in addition.sources().items():
        text = source.read_text(encoding="utf-8")
        if place.endswith(".yaml") and addition.room:
            room = addition.room.replace("/", ".")
            text = text.replace(f"_target_: {addition.name}.", f"_target_: {room}.{addition.name}.")
        assert not (copy / place).exists()
        (copy / place).write_text(text, encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    """Of each file below a folder a hash, without what Python and the runs make."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in ((str(file.relative_to(folder)), file) for file in files)
        if not name.startswith("runs/")
    }


def run_in(folder: Path, words: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_tells_what_each_costs() -> None:
    """The table of docs/adding.md: an addition, its files, their lines, files edited."""
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:a|an) ([\w ]+?)(?: of a task)? \|(.*)\|$", page, re.MULTILINE)
    reported = {kind: [cell.strip() for cell in cells.split("|")] for kind, cells in rows}
    assert reported.keys() == ALL.keys()
    for kind, addition in ALL.items():
        files, lines, edited, selected = reported[kind][:4]
        assert len(addition.sources()) == len(files.split("<br>")) == files.count("`") // 2
        length = [len(path.read_text().splitlines()) for path in addition.sources().values()]
        assert int(lines) == sum(length), kind
        assert edited == "0"
        group, _, name = addition.option.partition("/")
        assert f"{group}={name}" in selected
