"""Every command on every model of ``conf/model``, small, trained once on small data of its kind.

A new model needs no entry here: what it is trained on follows from the data set that its YAML
selects, and what makes it small from its keys. One model of each kind of data and of input is
trained, and some go through all commands, with ``-m long``; ``-m whole`` adds all others.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import research
from research.config import cli, compose_config
from research.config.options import option_node, options, read
from research.data.cifar_files import FAMILIES
from research.utils.installation import CONF
from tests.conftest import advised, evaluated, run, verb
from tests.data import test_cifar
from tests.golden.configurations import DATA, FRAMES, PHOTOS, PICTURES
from tests.test_outputs import ENDS

pytestmark = pytest.mark.long
SHORT = (
    "batch_size=4", "epochs=1", "max_train_batches=1", "max_val_batches=1", "device=cpu",
    "logging=csv", "keep=0",
)  # fmt: skip
SMALL: dict[str, Any] = {
    "backbone": "test_resnet", "fpn_channels": 16, "growth_rate": 8, "initial_features": 16,
    "mlp_hidden_dims": [8], "proposals": 20, "proposals_train": 40, "representation_size": 16,
    "rois": 16, "width": 4, "widths": [4, 8, 8],
}  # fmt: skip
"""Keys of models that make them small, where a model has them."""
NAMES = {"resnet34": "resnet10t", "resnet34_compressed": "resnet18", "timm": "test_vit"}
"""Smaller networks of a model whose ``name`` is free."""
HUGE = tuple(f"rgbx_mit_b{number}" for number in range(1, 6))
"""Up to 160 million parameters, on the code of ``rgbx_mit_b0``: tests/models/test_rgbx.py."""
CHOSEN = (
    "bigdet", "fastnet", "resnet34_compressed", "rgbx_mit_b0", "siamese_e2e", "siamese_frozen",
    "tinydet",
)  # fmt: skip
"""The small models among those of a kind."""


@dataclass(frozen=True)
class Kind:
    """Small data of a demo data set's kind.

    Attributes:
        words: choose the data; below ``data`` and ``stores`` of the project.
        source: files to predict.
        refused: commands that do not apply to models of this kind.
    """

    words: tuple[str, ...]
    source: str
    refused: tuple[str, ...] = ()


KINDS = {
    "demo": Kind(PICTURES, "data/pictures/test/bars", ("crossval", "robustness")),
    "demo_runs": Kind(
        (*FRAMES, "dataset.folds=3", "dataset.image_size=64"), "data/frames", ("robustness",)
    ),
    "demo_rgbx": Kind(
        (
            "dataset=rgbx", "dataset.root=data/rgbx", "dataset.image_size=64",
            "dataset.group_by='seq(\\d+)_'", "dataset.test_fraction=0.3",
        ),
        "data/rgbx/images",
        ("crossval", "export"),
    ),
    "demo_photos": Kind(
        (*PHOTOS, "dataset.image_size=32"),
        "data/photos/train_val/train_val_imgs",
        ("export", "robustness"),
    ),
    "demo_photo_features": Kind(
        (*PHOTOS, "dataset.features=[quality]"),
        "data/photos/train_val/train_val_imgs",
        ("export", "robustness"),
    ),
}  # fmt: skip
COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {
    "evaluate": lambda run, out: [run, f"out={out}"],
    "leaderboard": lambda run, out: [run, run, "rounds=1", "batch=1", f"out={out}"],
    "compare": lambda run, out: [run, f"out={out}"],
    "crossval": lambda run, out: [run],
    "robustness": lambda run, out: [run, "shifts=2", "noise=0.5", f"out={out}"],
    "export": lambda run, out: [run, f"out={out / 'model.onnx'}"],
    "reproduce": lambda run, out: [run, f"out={out}"],
}
"""Those that take a run folder and nothing else."""
PRINTED = ("crossval",)
"""They print and write nothing."""


@cache
def choices(model: str) -> dict[str, str]:
    """The option of each group that ``model=MODEL`` alone selects, read from the YAML."""
    return {**_choices(CONF / "config.yaml"), **_choices(CONF / "model" / f"{model}.yaml")}


def _choices(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in read(file).get("defaults", []):
        if isinstance(entry, dict):
            for key, option in entry.items():
                found[key.removeprefix("override ").strip("/").partition("@")[0]] = option
        elif file.parent != CONF and entry != "_self_":
            found |= _choices(file.parent / f"{entry}.yaml")
    return found


def small(model: str) -> list[str]:
    """The words that choose a model, small."""
    settings = option_node("model", model)
    narrow = {key: value for key, value in SMALL.items() if settings.get(key)}
    if "block_layers" in settings:
        narrow["block_layers"] = [2 for _ in settings["block_layers"]]
    if model in NAMES:
        narrow["name"] = NAMES[model]
    return [f"model={model}", *(f"model.{key}={value}" for key, value in narrow.items())]


def kind_of(model: str) -> tuple[str, ...]:
    """Task, data set and form of the input."""
    return tuple(choices(model)[group] for group in ("task", "dataset", "compression"))


def data_of(model: str) -> Kind:
    """Small data, where the model's data set is one that is known here; else that itself."""
    dataset = choices(model)["dataset"]
    return KINDS.get(dataset, Kind((f"dataset={dataset}",), ""))


def parameters() -> list[Any]:
    """All models but the huge; the chosen, and the first of each other kind, by default."""
    seen = {kind_of(model) for model in CHOSEN}
    found = []
    for model in options("model"):
        usual = model in CHOSEN or kind_of(model) not in seen
        seen.add(kind_of(model))
        if model not in HUGE:
            found.append(pytest.param(model, marks=[] if usual else pytest.mark.whole))
    return found


MODELS = parameters()
COMMAND_MODELS = [
    pytest.param(*each.values, marks=[] if each.values[0] in CHOSEN else pytest.mark.whole)
    for each in MODELS
]
"""For the commands, which treat the models of a task alike."""


@dataclass(frozen=True)
class Project:
    """A working directory with small data of every kind, shared by all test processes."""

    folder: Path

    def run_of(self, model: str) -> str:
        """``runs/MODEL``, trained when it is first asked for."""
        name = f"runs/{model}"
        with FileLock(self.folder / f"{model}.lock"):
            if not (self.folder / name / "summary.json").exists():
                words = [*small(model), *data_of(model).words, *SHORT, f"run_dir={name}"]
                run(compose_config(words).config, model, words)
        return name


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "every_command"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "data.lock"):
        for name in ("data", "stores"):
            if not (folder / name).exists():
                (folder / name).symlink_to(DATA / name)
    return Project(folder)


@pytest.fixture
def project(shared: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(shared.folder)
    return shared


Answer = Callable[..., tuple[int, str, str]]


class Impatient:
    """Waits as somebody does who presses Ctrl-C at once."""

    def wait(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs ``python -m research.NAME`` in this process; gives status, output and errors."""

    def run_command(name: str, *words: str) -> tuple[int, str, str]:
        module, status = verb(name), 0
        monkeypatch.setattr(sys, "argv", [name, *words])
        capsys.readouterr()
        try:
            cli.command(module.USAGE, module.main)
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


def check(answered: tuple[int, str, str], *, refused: bool) -> None:
    """It did what it is for, or was refused in one line."""
    status, printed, errors = answered
    assert "Traceback" not in errors
    if refused:
        assert (status, printed) == (2, "")
        assert errors.splitlines()[-1].startswith("error: ")
        assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1
    else:
        assert status == 0, errors
        assert printed.strip()
        assert not re.search("^(files|check|next):", printed, re.MULTILINE)


def test_every_model_has_a_variant() -> None:
    """Each model is trained here or known to be huge; each kind of model is, by default."""
    listed = {str(each.values[0]): not each.marks for each in MODELS}
    assert {*listed, *HUGE} == set(options("model"))
    usual = {kind_of(model) for model, by_default in listed.items() if by_default}
    assert usual == {kind_of(model) for model in options("model")}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("model", COMMAND_MODELS)
def test_a_command_on_a_run(
    model: str, command: str, project: Project, answer: Answer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = COMMANDS[command](project.run_of(model), out)
    refused = command in data_of(model).refused
    answered = answer(command, *words)
    check(answered, refused=refused)
    if not refused and command not in ENDS:
        module, *following = advised(answered[2])[2:]
        check(answer(module.removeprefix("research."), *following), refused=False)
    written = [path for path in out.rglob("*") if path.is_file()]
    assert bool(written) == (not refused and command not in PRINTED)


@pytest.mark.parametrize("model", COMMAND_MODELS)
def test_predict(
    model: str,
    project: Project,
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the run folder, and from the one file that can be handed on; then on the page."""
    monkeypatch.setattr(verb("predict"), "Event", Impatient)
    name = project.run_of(model)
    for number, file in enumerate((name, f"{name}/checkpoints/final.safetensors")):
        out = tmp_path / f"out{number}"
        words = (file, data_of(model).source, f"out={out}", "max_frames=2", "device=cpu")
        answered = answer("predict", *words)
        check(answered, refused=False)
        assert json.loads((out / "summary.json").read_text())["frames"] == 2
    _, _, _, *following = advised(answered[2])
    shown = answer("predict", *following)
    check(shown, refused=False)
    assert shown[1].startswith("watch: ")


@pytest.mark.parametrize("model", COMMAND_MODELS)
def test_commands_that_take_settings(
    model: str, project: Project, answer: Answer, tmp_path: Path
) -> None:
    words = [*small(model), *data_of(model).words]
    said = [answer("summary", *words, "rounds=1", "device=cpu")]
    said.append(answer("lr_find", *words, *SHORT, "steps=10", f"out={tmp_path / 'lr'}"))
    assert {path.name for path in (tmp_path / "lr").iterdir()} >= {"lr_find.csv", "lr_find.png"}
    photo = "data/pictures/test/bars/000.jpg"
    compression = choices(model)["compression"]
    words = [f"compression={compression}", f"out={tmp_path / 'seen'}"]
    seen = answer("inspect", photo, *words)
    check(seen, refused=compression == "none")
    for answered in [*said, *[seen] * (compression != "none")]:
        check(answered, refused=False)
        if "next:" in answered[2]:  # lr_find has none where the loss did not decrease
            assert compose_config(advised(answered[2])[2:])


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("model", COMMAND_MODELS)
def test_benchmark(model: str, project: Project, answer: Answer) -> None:
    words = [*small(model), *data_of(model).words, "batch_size=4", "device=cpu"]
    check(answer("benchmark", "tracking", "rounds=1", "steps=2", *words), refused=False)


@pytest.mark.parametrize("words", ["coefficients data/pictures", "lint stores/frames"])
def test_prepare(words: str, project: Project, answer: Answer, tmp_path: Path) -> None:
    kind, source = words.split()
    out = [f"out={tmp_path / 'out'}"] if kind == "lint" else [str(tmp_path / "out"), "workers=1"]
    check(answer("prepare", kind, source, *out), refused=False)
    assert any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("model", MODELS)
def test_what_a_run_logged_and_kept_is_found_again(model: str, project: Project) -> None:
    """Its metrics by ``evaluate``; the same weights in both files."""
    folder = project.folder / project.run_of(model)
    result = evaluated(folder, "val", "last", "max_val_batches=1")
    assert result.logged
    for name, value in result.logged.items():
        assert result.metrics[name] == pytest.approx(value, nan_ok=True), name
    files = [folder / "checkpoints" / name for name in ("last.pt", "final.safetensors")]
    one, two = (research.load(path, device="cpu").model.state_dict() for path in files)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


OTHER_DATA = {
    "resident": (
        *small("fastnet"), "dataset=cifar10", "dataset.root=cifar", "dataset.val_images=20",
    ),
    "bitstream": (*small("resnet34_compressed"), *PICTURES, "compression.source=bitstream"),
    "store": (
        *small("resnet34_compressed"), "dataset=warehouse", "dataset.manifest=stores/coefficients",
        "dataset.image_size=32",
    ),
}  # fmt: skip
"""Forms in which classifiers get images, beside pixels and coefficients computed from them."""
DEMO = {"train_images": 24, "val_images": 12, "runs": 8, "frames": 5, "series": 12, "images": 32}
"""Keys of demo data sets that make them small, where a data set has them."""


def demo_words(dataset: str) -> list[str]:
    """The words that train a chosen model on a demo data set of few images."""
    model = next(name for name in CHOSEN if choices(name)["dataset"] == dataset)
    demo = option_node("dataset", dataset)["demo"]
    few = [f"dataset.demo.{key}={value}" for key, value in DEMO.items() if key in demo]
    size = [] if "features" in dataset else ["dataset.image_size=64"]
    return [*small(model), f"dataset={dataset}", *few, *size]


DEMOS = [name for name in options("dataset") if name.startswith("demo")]


@pytest.mark.parametrize("data", [*OTHER_DATA, *DEMOS])
def test_other_data(data: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms of images, and each demo data set, rendered."""
    few = replace(FAMILIES[10], images={"train": test_cifar.TRAIN, "test": test_cifar.TEST})
    monkeypatch.setitem(FAMILIES, 10, few)
    if data == "resident":
        test_cifar.write_binary(project.folder / "cifar", 10)
    words = OTHER_DATA[data] if data in OTHER_DATA else demo_words(data)
    folder = run(compose_config([*words, *SHORT]).config, data)
    result = evaluated(folder, "val", "last", "max_val_batches=1")
    assert result.logged == pytest.approx(result.metrics, nan_ok=True)
