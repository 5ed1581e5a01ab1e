"""``init_from`` and ``model.pretrained``, from our own runs and for other classes."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import research
from research.engine import build, checkpoint, run_folder
from research.models import pretrained
from research.utils.errors import Damaged
from tests.conftest import TINY, as_if_trained, data_overrides, run, save_state, user_error

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def two_classes(folders: Path, tmp_path: Path) -> list[str]:
    """Settings of the same pictures without those of one class."""
    copied = shutil.copytree(folders, tmp_path / "two")
    for split in ("train", "val"):
        shutil.rmtree(copied / split / "spots")
    return data_overrides(copied)


def sizes(network: nn.Module) -> tuple[int, int]:
    """Numbers of tensors and of parameters."""
    return len(network.state_dict()), sum(p.numel() for p in network.parameters())


def in_a_run(model: nn.Module, config: dict[str, Any], experiment: Any, folder: Path) -> Path:
    """A run folder with these weights in its checkpoints, worse ones in the last."""
    (folder / "checkpoints").mkdir(parents=True)
    content = experiment.state.state_dict()
    for name in ("last", "best"):
        content["model"] = {k: v + (name == "last") for k, v in model.state_dict().items()}
        torch.save({"format": checkpoint.FORMAT, **content}, folder / "checkpoints" / f"{name}.pt")
    return folder


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("init_from", "run"),
        ("init_from", "final.safetensors"),
        ("init_from", "bare.pt"),
        ("model.pretrained", "run"),
        ("model.pretrained", "best.pt"),
    ],
)
def test_all_but_the_classifier_is_kept_for_other_classes(
    key: str,
    source: str,
    small: Compose,
    two_classes: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = small(*TINY)
    of_three = build.experiment(config)
    model = of_three.state.model
    as_if_trained(model)
    given = {name: value.clone() for name, value in model.state_dict().items()}
    path = in_a_run(model, config, of_three, tmp_path / "runs" / "first")
    file = path / "checkpoints" / "best.pt"
    if source == "best.pt":
        path = file
    elif source == "final.safetensors":
        content = {**checkpoint.load(file), "model": given, "ema": None}
        path = file = tmp_path / source
        checkpoint.save_weights({**content, **of_three.state.state_dict(), **content}, path)
    elif source == "bare.pt":
        path = file = save_state(given, tmp_path / source)

    for classes, words in ((3, []), (2, two_classes)):
        caplog.clear()
        caplog.set_level(logging.INFO)
        built = build.experiment(small(*TINY, *words, f"{key}={path}"))
        network = built.state.model
        head = {"backbone.fc.weight", "backbone.fc.bias"} if classes == 2 else set()
        for name, value in network.state_dict().items():
            assert torch.equal(value, given[name]) == (name not in head), name
        tensors, parameters = sizes(network)
        kept = parameters - sum(network.state_dict()[name].numel() for name in head)
        # A run in ``model.pretrained`` is answered by the file of its best checkpoint.
        typed = file if key == "model.pretrained" else path
        width = network.backbone.fc.in_features
        line = (
            f"{key}={typed}: loaded {tensors - len(head)} of {tensors} tensors, {kept:,} of "
            f"{parameters:,} parameters"
        )
        if head:
            line += (
                f"; not loaded: backbone.fc.weight: 3 × {width} in the source, 2 × {width} here "
                "(classifier), backbone.fc.bias: 3 in the source, 2 here (classifier)"
            )
        assert line in caplog.messages
        levels = {r.levelno for r in caplog.records if "schedules" not in r.name}
        assert levels == {logging.INFO}
        (record,) = built.weights
        assert record["setting"] == f"{key}={typed}"
        assert record["file"] == str(file)
        assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert record["tensors"] == [tensors - len(head), tensors]
        assert set(record["not_loaded"]) == head


def test_a_classifier_of_other_classes_is_kept_with_a_warning(
    small: Compose, folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(*TINY)
    of_run = build.experiment(config)
    path = in_a_run(of_run.state.model, config, of_run, tmp_path / "runs" / "first")
    for split in ("train", "val"):
        (folders / split / "bars").rename(folders / split / "rods")
    build.experiment(small(*TINY, f"init_from={path}"))
    message = "its classes are others (bars, field, spots, …); their classifier is kept"
    assert f"init_from={path}: {message}" in caplog.messages


def test_weights_of_another_model_do_not_start_a_run(small: Compose, tmp_path: Path) -> None:
    """Other than the classifier, ``init_from`` takes all or nothing."""
    config = small(*TINY)
    network = build.model(config, {"classes": ["a", "b", "c", "d"]})
    state = network.state_dict()
    lacking = dict(list(state.items())[1:])
    more = {**state, "aux": torch.zeros(1)}
    other = {**state, "stem.weight": torch.zeros(3)}
    for content in (lacking, more, {**lacking, **other}, {"fc.weight": torch.zeros(2, 2)}):
        file = save_state(content, tmp_path / "w.pt")
        with user_error("init_from", "do not fit"):
            build.experiment({**config, "init_from": str(file)})


def test_a_compressed_run_starts_a_plain_network_and_says_what_is_missing(
    small: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ("model=resnet34_compressed", "model.name=test_resnet", "compression=block_stem")
    first = build.experiment(small(*model))
    folder = in_a_run(first.state.model, small(*model), first, tmp_path / "runs" / "first")
    caplog.set_level(logging.INFO)
    plain = ("model=resnet34", "model.name=test_resnet")
    built = build.experiment(small(*plain, f"model.pretrained={folder}"))
    for name, value in built.state.model.state_dict().items():
        if not name.startswith(("conv1.", "bn1.")):
            assert torch.equal(value, first.state.model.state_dict()[f"backbone.{name}"])
    (line,) = [text for text in caplog.messages if text.startswith("model.pretrained=")]
    assert "not in the source: conv1." in line
    assert "unused: stem." in line
    with user_error("init_from", "do not fit"):
        build.experiment(small(*plain, f"init_from={folder}"))
    # With another window, the trunk is kept and the stem is not.
    caplog.clear()
    build.experiment(small(*model, "compression.window=2", f"model.pretrained={folder}"))
    (line,) = [text for text in caplog.messages if text.startswith("model.pretrained=")]
    assert "not loaded: stem." in line


def test_a_folder_without_an_intact_checkpoint_is_refused(small: Compose, tmp_path: Path) -> None:
    (tmp_path / "runs" / "first" / "checkpoints").mkdir(parents=True)
    with user_error("model.pretrained", "runs/first: this folder has no checkpoint"):
        small(*TINY, "model.pretrained=runs/first")
    (tmp_path / "runs" / "first" / "checkpoints" / "best.pt").write_bytes(b"")
    config = small(*TINY, "model.pretrained=runs/first")
    with pytest.raises(Damaged, match=r"runs/first/checkpoints/best\.pt: damaged file"):
        build.experiment(config)


def test_the_weights_are_on_record_after_a_resume(small: Compose, tmp_path: Path) -> None:
    state = build.experiment(small(*TINY)).state.model.state_dict()
    file = save_state({name: value.clone() for name, value in state.items()}, tmp_path / "w.pt")
    folder = run(small(*TINY, f"model.pretrained={file}"))

    def recorded() -> list[Any]:
        names = ("environment.json", "summary.json")
        environment, summary = (json.loads((folder / name).read_text()) for name in names)
        tags = run_folder.tags({}, environment)
        assert environment["weights"] == summary["weights"]
        return [environment["weights"], tags["weights"]]

    before = recorded()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert before[0][0]["tensors"] == [len(state), len(state)]
    assert before[1] == f"w.pt (sha256 {digest})"
    file.unlink()  # not needed any more
    run(small(*TINY, f"model.pretrained={file}", "epochs=2", "resume=auto"))
    assert recorded() == before


@pytest.mark.parametrize("content", ["{}", '{"weights": 3}', '{"weights": [1, {"a": 1}]}', "x"])
def test_a_record_of_weights_that_is_damaged_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "environment.json").write_text(content)
    assert run_folder.start_weights(tmp_path) == []


def test_weights_that_a_strangers_file_names_do_not_count(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(*TINY)
    content = build.experiment(config).state.state_dict()
    monkeypatch.setattr(pretrained, "find_weights", lambda *_: pytest.fail("asked for weights"))
    for form in (True, "timm", "a1_in1k", "hf-hub:somebody/model", "/etc/passwd"):
        content["config"] = {**config, "model": {**config["model"], "pretrained": form}}
        for place in ("stranger", "runs/own"):  # one's own run has its weights in the checkpoint
            file = tmp_path / place / "checkpoints" / "best.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"format": checkpoint.FORMAT, **content}, file)
            model = research.load(file.parents[1], device="cpu").model
            for name, value in model.state_dict().items():
                assert torch.equal(value, content["model"][name])
    started = build.experiment({**config, "init_from": str(tmp_path / "stranger")})
    assert [record["setting"] for record in started.weights] == [f"init_from={tmp_path}/stranger"]
