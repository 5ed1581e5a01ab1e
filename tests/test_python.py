"""The Python API: the functions of ``research``, and the examples of docs/python.md."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import research
from research.config import RunConfig
from research.engine import build
from tests.conftest import ROOT, SMALL, TINY, as_if_trained, data_overrides, user_error, verb

PAGE = ROOT / "docs/python.md"
FUNCTIONS = [name for name in research.__all__ if name.islower() and name != "__version__"]
DEMO = (
    "dataset.demo.train_images=60", "dataset.demo.val_images=24", "dataset.image_size=32",
    "batch_size=8", "device=cpu",
    "logging=csv", "max_train_batches=2",
)  # fmt: skip
"""Settings that make the examples short."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes(name: str) -> None:
    function = getattr(research, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    text = inspect.getdoc(function)
    assert text is not None
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"\n    {parameter.name}: " in text
    assert "Returns:" in text
    assert "Raises:" in text
    assert f"`{name}({next(iter(signature.parameters))}" in PAGE.read_text(encoding="utf-8")


def test_the_modules_of_commands_do_not_hide_the_functions() -> None:
    functions = {name: getattr(research, name) for name in FUNCTIONS}
    for name in ("evaluate", "predict"):
        importlib.reload(verb(name))
        assert verb(name).USAGE.startswith(f"python -m research.{name}")
    for name, function in functions.items():
        assert inspect.isfunction(function)
        assert getattr(research, name) is function
        assert pickle.loads(pickle.dumps(function)) is function
    assert inspect.ismodule(research.config)  # others are set as ever


def test_the_import_costs_nothing() -> None:
    code = "import sys, research; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = ("torch", "hydra", "omegaconf", "numpy", "mlflow", "yaml")
    assert [name for name in heavy if f"'{name}'" in found.stdout] == []


def test_a_configuration_is_that_of_the_command_line(folders: Path) -> None:
    words = [*SMALL, *data_overrides(folders), "name=mine", "epochs=7"]
    config = research.compose(words)
    assert (config.name, config["epochs"], config["model"]["name"]) == ("mine", 7, "resnet18")
    assert dict(config) == config.settings
    assert config.overrides == words
    with pytest.raises(TypeError):
        config["epochs"] = 8  # type: ignore[index]
    assert research.compose(["model=tinydet"]).name == "tinydet"


def test_a_program_with_a_hydra_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("theirs: 1")
    with initialize_config_dir(str(tmp_path)):
        before = GlobalHydra.instance().hydra
        assert research.compose(["epochs=3"])["epochs"] == 3
        with user_error("epochs", "expected a whole number"):
            research.compose(["epochs=x"])
        assert GlobalHydra.instance().hydra is before


@pytest.mark.parametrize(
    ("act", "key", "words"),
    [
        (lambda: research.compose(["epoch=3"]), "epoch", ["did you mean 'epochs'"]),
        (lambda: research.compose(["seed=0,1"]), "seed", ["several values"]),
        (lambda: research.compose("epochs=3"), "overrides", ["['epochs=3']"]),
        (lambda: research.compose(["sweep=densenet_random"]), "sweep", ["train.py -m sweep="]),
        (lambda: research.compose([], "nowhere"), "--config-dir", ["nowhere"]),
        (lambda: research.compose(["resume=nowhere"]), "resume", ["no such run"]),
        (lambda: research.train({"epochs": 3}), "config", ["research.compose"]),  # type: ignore[arg-type]
        (
            lambda: research.train(research.compose(["verify_resume=true"])),
            "verify_resume",
            ["command line"],
        ),
        (lambda: research.load("nowhere"), "checkpoint", ["nowhere"]),
        (lambda: research.load("nowhere", trust="a.B"), "trust", ["['a.B']"]),
        (lambda: research.evaluate("nowhere", "vel"), "split", ["'val'"]),
        (lambda: research.evaluate("nowhere", checkpoint="bst"), "checkpoint", ["'best'"]),
        (lambda: research.evaluate("nowhere", device="tpu"), "device", ["tpu", "auto, cpu"]),
        (lambda: research.predict("nowhere", "a.jpg"), "SOURCE", ["a.jpg"]),
        (lambda: research.predict("nowhere", []), "SOURCE", ["no SOURCE"]),
        (lambda: research.predict("nowhere", "a.jpg", batch_size=0), "batch_size", ["0"]),
        (lambda: research.predict("nowhere", "a.jpg", iou=2), "iou", ["2"]),
        (lambda: research.open_store("nowhere"), "manifest", ["nowhere"]),
        (lambda: research.open_store("nowhere", "oft"), "verify", ["always, once, never"]),
    ],
)
def test_mistakes(
    act: Callable[[], object],
    key: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with user_error(key, *words):
        act()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_trained_repeated_and_keeps_no_secret(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    word = "tags.from=https://me:geheim@host/x"
    monkeypatch.setattr(sys, "argv", ["mine.py", "https://me:geheim@host/x"])
    words = [*SMALL, *TINY, *data_overrides(folders), "run_dir=runs/one", "resume=auto", word]
    result = research.train(research.compose(words))
    assert (result.folder, result.metric) == (Path("runs/one"), "val/top1")
    assert (result.best_epoch, result.epochs) == (1, 1)
    assert result.best == research.evaluate("runs/one", device="cpu").metrics["top1"]
    model, picture = research.load("runs/one", device="cpu"), next(folders.rglob("*.jpg"))
    assert model([picture]).tolist() == model(picture).tolist() == model(str(picture)).tolist()
    with user_error("paths", "gone.png"):
        model([picture, "gone.png"])
    assert "logging" in (tmp_path / "runs/one/overrides.yaml").read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs/one").rglob("*")}
    assert research.train(research.compose(words)) == result  # finished: nothing to do
    assert before.items() <= {
        file: file.stat().st_mtime_ns for file in (tmp_path / "runs/one").rglob("*")
    }.items() | {(tmp_path / "runs/one/.lock", 0)}
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or b"geheim" not in file.read_bytes()


def blocks(language: str) -> Iterator[str]:
    """The examples of the page in this language."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    yield from (match[2] for match in found if match[1] == language)


def test_the_examples_of_the_page_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compose(words: list[str]) -> RunConfig:
        # A run that is resumed has its settings already.
        more = [] if words[0].startswith("resume=") else list(DEMO)
        if words[0] == "model=resnet34_compressed":
            more += ["model.name=resnet18", "compression=luma_fusion_pruned"]
        return original(more + words)

    original = research.compose
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(research, "compose", compose)
    python = list(blocks("python"))
    (shell,) = blocks("bash")
    known: dict[str, Any] = {}
    for number, example in enumerate(python):
        if "open_store" in example:
            command = shlex.split(shell)
            verb(command[2].removeprefix("research.")).main(command[3:])
        file = tmp_path / f"example_{number}.py"
        file.write_text(example)
        known = runpy.run_path(str(file), known)
    assert known["logits"].shape == (8, 12)
    assert known["evaluation"].n == 24
    assert known["written"]["frames"] == 24
    assert known["blocks"].shape == (2, 8, 8, 64)
    assert known["blocks"].dtype == torch.int16
    assert (known["blocks"][0].numpy() == known["view"]).all()
    assert "in it" in capsys.readouterr().out
    content = torch.load(known["result"].folder / "checkpoints/last.pt", weights_only=True)
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    listed = {key for row in rows if "(" not in row for key in re.findall(r"`(\w+)`", row)}
    assert listed == content.keys()


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (("model=timm", "model.name=resnet18"), "timm"),
        (("model=densenet121", "model.stem=imagenet"), "torchvision"),
    ],
)
def test_weights_load_without_this_project(words: tuple[str, ...], plain: str) -> None:
    config = research.compose([*words, "dataset.image_size=64"]).settings
    network = build.model(config, {"classes": list("abc"), "image_size": 64}).eval()
    as_if_trained(network)
    library = importlib.import_module(plain)
    create = library.create_model if plain == "timm" else library.models.get_model
    other = create(config["model"]["name"], num_classes=3).eval()
    other.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(other(images), network(images))
