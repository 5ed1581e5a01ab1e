"""A project for each guide: data of its kind, a tiny run of its recipe, and its commands run."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from research.config import command_line
from research.data.cifar_files import FAMILIES
from research.demos.capture_runs import CaptureDemo
from tests.data import test_cifar
from tests.golden.configurations import DATA
from tests.guides.table import Row, rows

TINY = (
    "epochs=1", "max_train_batches=1", "max_val_batches=1", "log_every=1", "device=cpu",
    "workers=0", "precision=fp32", "logging=csv", "scheduler.warmup_epochs=0",
)  # fmt: skip
ONE_TRIAL = "hydra.sweeper.n_trials=1"
LESS = {"epochs": "1", "workers": "0", "batch_size": "4"}
"""What is typed for these keys is made small, too."""
LARGE = r"rgbx_mit_b[1-5]"


@dataclass(frozen=True)
class Guide:
    """How the commands of a guide are made small.

    Attributes:
        recipe: the words of the run that is looked at, in ``runs/first``.
        tiny: words added to each command that trains, unless it has their keys.
        values: what the words in capitals stand for.
        data: writes the data to the folder.
    """

    recipe: str
    tiny: tuple[str, ...]
    data: Callable[[Path], object]
    values: dict[str, str] = field(default_factory=dict)


def _pictures(folder: Path) -> None:
    for name in "abcd":
        shutil.copytree(DATA / "data/pictures/train", folder / name)
    shutil.copytree(DATA / "data/pictures/val", folder / "v")


def _cifar(folder: Path) -> None:
    for classes in (10, 100):
        test_cifar.write_binary(folder / "runs/data", classes)


def _photos(folder: Path) -> None:
    shutil.copytree(DATA / "data/photos", folder / "data/phototriage")


FOLDERS = ("dataset.train_dirs=[a,b,c,d]", "dataset.val_dir=v")
GUIDES = {
    1: Guide(
        "experiment=imagenet_resnet34_compressed compression.window=2",
        (
            *FOLDERS, "dataset=imagefolder", "global_batch_size=4", "model.name=resnet18",
            "dataset.image_size=32", "dataset.cache_dir=runs/cache", ONE_TRIAL,
        ),
        _pictures,
        {"V": "luma_fusion", "IMAGE": "a/bars/000.jpg"},
    ),
    2: Guide(
        "experiment=rgbx_guide dataset.root=data",
        (
            "model=rgbx_mit_b0", "model.fpn_channels=16", "model.representation_size=16",
            "model.rois=16", "model.rpn_samples=16", "model.proposals=20",
            "model.proposals_train=40", "dataset.image_size=64", "dataset.test_fraction=0.3",
            r"dataset.group_by='seq(\d+)_'", ONE_TRIAL,
        ),
        lambda folder: shutil.copytree(DATA / "data/rgbx", folder / "data"),
        {"SOURCE": "data", "STORE": "store"},
    ),
    3: Guide(
        "experiment=cifar10_densenet121",
        (
            "model=densenet_bc_40_12", "model.block_layers=[1,1,1]", "batch_size=4",
            "dataset.val_images=20", "save_every=1", ONE_TRIAL,
        ),
        _cifar,
    ),
    4: Guide(
        "experiment=phototriage_multifeature dataset.root=data/phototriage",
        ("dataset.features=[quality]", "batch_size=4"),
        _photos,
    ),
    5: Guide(
        "model=tinydet dataset=warehouse dataset.manifest=store",
        ("model.width=4", "batch_size=4"),
        lambda folder: CaptureDemo(str(folder / "captures"), 2, 5, seed=0).render(),
        {
            "RUNS": "captures", "SOURCE": "captures", "STORE": "store", "OUT": "pruned",
            "M": "store", "IMAGE": "captures/run_001/images/frame_00000.jpg",
        },
    ),
}  # fmt: skip
END_TO_END = ("model.backbone=test_resnet", "dataset.image_size=32", "batch_size=4")
SHOWS = ("show=true",)
"""Words that open a page, which stays until it is interrupted; tests/inference has its tests."""
ELSEWHERE = ("torchrun", "mlflow", "tensorboard", "python train.py --help")
"""Commands with tests of their own: of several processes, servers, and the help."""


@dataclass
class Project:
    """The working directory of a guide.

    Attributes:
        guide: its number.
        folder: in which its commands have run.
        failures: what a command failed with.
    """

    guide: int
    folder: Path
    failures: dict[str, BaseException] = field(default_factory=dict)

    def find(self, name: str) -> list[Path]:
        """The files and folders that a name in the table stands for."""
        for word, pattern in {"TIME_NAME": "*", "RUN": "*", "STUDY": "*", "STORE": "store"}.items():
            name = name.replace(word, pattern)
        name = re.sub(
            r"v<version>", "v*", re.sub(r"epoch_\d+_loss_[\d.…]+(?=\.pt)", "epoch_*", name)
        )
        name = f"*{name}" if name.startswith(".") else name
        found = [*self.folder.glob(name.rstrip("/")), *self.folder.rglob(name.rstrip("/"))]
        return [path for path in found if path.is_dir() or not name.endswith("/")]


def words_of(command: str, guide: Guide) -> list[str]:
    """The words of a command, with files for its capitals, made small if it trains."""
    every = {"RUN": "runs/first", "DIR": "out", **guide.values}
    text = re.sub(r"\b[A-Z]+\b", lambda word: every.get(word[0], word[0]), command)
    text = re.sub(LARGE, "rgbx_mit_b0", text)
    words = [word for word in shlex.split(text) if "…" not in word and word not in SHOWS]
    if words[2] == "research.leaderboard" or words[2] == "research.summary":
        words.append("rounds=1")
    if words[:2] != ["python", "train.py"] or any(word.startswith("resume=") for word in words):
        return words
    keys = [word.partition("=")[0] for word in words]
    words = [f"{k}={LESS[k]}" if k in LESS else w for k, w in zip(keys, words, strict=True)]
    tiny = END_TO_END if "e2e" in command else guide.tiny
    typed = {word.partition("=")[0] for word in words}
    typed |= {"dataset"} if "experiment" in typed else set()
    typed |= {"hydra.sweeper.n_trials"} if "-m" not in typed else set()
    if "dataset=imagenet" in words:
        words = [word for word in words if word != "dataset=imagenet"]
        typed.discard("dataset")
    added = [word for word in (*TINY, *tiny) if word.partition("=")[0] not in typed]
    if any(word.partition("=")[2].startswith("resnet34") for word in words):
        added = [w for w in added if w != "model.name=resnet18"] + ["model.name=resnet18"]
    return [*words, *added]


def run_command(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """In this process, as its words are typed."""
    if words[1] == "train.py":
        from train import main

        patch.setattr(sys, "argv", words[1:])
        command_line(main)
    else:
        importlib.import_module(words[2]).main(words[3:])


def make(number: int, folder: Path) -> Project:
    """Write the data, train the first run, and run every command of the guide's rows."""
    guide, project = GUIDES[number], Project(number, folder)
    guide.data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for classes in FAMILIES:
            few = {"train": test_cifar.TRAIN, "test": test_cifar.TEST}
            patch.setitem(FAMILIES, classes, replace(FAMILIES[classes], images=few))
        first = f"python train.py {guide.recipe} run_dir=runs/first"
        mine = [row for row in rows() if row.guide == number]
        commands = [first, *(command for row in mine for command in row.commands)]
        if number == 5:  # the store comes before the run
            commands.sort(key=lambda command: "research.prepare" not in command)
        for command in dict.fromkeys(commands):
            if not command.startswith(ELSEWHERE):
                try:
                    run_command(words_of(command, guide), patch)
                except (Exception, SystemExit) as error:
                    project.failures[command] = error
    return project


def checked(row: Row, project: Project) -> None:
    """Raise what a command of the row failed with."""
    for command in row.commands:
        if command in project.failures:
            raise AssertionError(command) from project.failures[command]
