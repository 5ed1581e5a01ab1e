from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from research.compression.selection import Selection, select_frequencies
from research.compression.stems import StemSpec
from research.models.densenet import densenet
from research.models.pretrained import load_matching, load_pretrained
from research.models.resnet import resnet
from research.models.zoo import backbone
from research.utils.weights import state_dict
from tests.conftest import save_state, user_error

ALL = select_frequencies(4, "corner")


def small(classes: int = 3, width: int = 4) -> nn.Module:
    """conv 3→width, norm, linear: 6 + … tensors that can be counted by hand."""
    network = nn.Sequential()
    network.add_module("conv", nn.Conv2d(3, width, 1, bias=False))
    network.add_module("norm", nn.BatchNorm2d(width))
    network.add_module("classifier", nn.Linear(width, classes))
    for tensor in network.state_dict().values():
        tensor.fill_(1)
    return network


def state(classes: int = 3, width: int = 4) -> dict[str, Tensor]:
    return {key: torch.full_like(t, 7) for key, t in small(classes, width).state_dict().items()}


def one_line(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    text = record.getMessage()
    assert "\n" not in text
    return text


def test_none_loads_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    network = small()
    load_pretrained(network, "any", None)
    assert all((tensor == 1).all() for tensor in network.state_dict().values())
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_whole_file_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    caplog.set_level(logging.INFO)
    file = save_state(state(), tmp_path / f"w{suffix}")
    network = small()
    load_pretrained(network, "any", str(file))
    assert all((tensor == 7).all() for tensor in network.state_dict().values())
    assert one_line(caplog) == (
        f"model.pretrained={file}: loaded 8 of 8 tensors, 35 of 35 parameters"
    )


def test_a_head_of_another_size_is_logged_with_both_sizes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network = small(classes=2)
    load_pretrained(network, "any", str(save_state(state(classes=1000), tmp_path / "w.pt")))
    text = one_line(caplog)
    assert "loaded 6 of 8 tensors, 20 of 30 parameters; not loaded: " in text
    assert "classifier.weight: 1000 × 4 in the source, 2 × 4 here" in text
    assert "classifier.bias: 1000 in the source, 2 here" in text
    assert (network.classifier.weight == 1).all()
    assert (network.conv.weight == 7).all()


def test_missing_and_unused_tensors_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = state()
    del source["classifier.bias"]
    source |= {f"aux.{number}": torch.zeros(1) for number in range(5)}
    load_pretrained(small(), "any", str(save_state(source, tmp_path / "w.pt")))
    text = one_line(caplog)
    assert "not loaded: classifier.bias: not in the source; " in text
    assert text.endswith("unused: aux.0, aux.1, aux.2 and 2 more")


def test_less_than_half_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_pretrained(
        small(), "any", str(save_state({"norm.bias": torch.zeros(4)}, tmp_path / "w.pt"))
    )
    assert caplog.records[0].levelno == logging.WARNING
    assert "1 of 8 tensors, 4 of 35 parameters" in one_line(caplog)


@pytest.mark.parametrize(
    "content",
    [
        {"other": torch.zeros(2, 3)},
        # Counters fit any network; they are no sign of a common architecture.
        {"norm.num_batches_tracked": torch.tensor(3)},
        {"conv.weight": torch.zeros(4, 3, 3, 3)},
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: dict[str, Tensor]) -> None:
    network = small()
    with user_error("model.pretrained", "none of the 1 tensors"):
        load_pretrained(network, "any", str(save_state(content, tmp_path / "w.pt")))
    assert all((tensor == 1).all() for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {"model_state": s, "best_acc": 0.5, "config": {}},
        lambda s: {f"module.{key}": value for key, value in s.items()},
        lambda s: {f"_orig_mod.{key}": value for key, value in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{key}": v for key, v in s.items()}},
        lambda s: {**s, "epoch": 3, "note": "plain things beside"},
    ],
)
def test_checkpoints_of_other_scripts_are_unwrapped(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    unwrapped = state_dict(save_state(wrap(state()), tmp_path / "w.pt"), "dataset.weights")
    assert unwrapped.keys() == state().keys()


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    with user_error("dataset.weights", "w.pt"):
        state_dict(save_state(content, tmp_path / "w.pt"), "dataset.weights")


def test_half_precision_is_widened(tmp_path: Path) -> None:
    file = save_state({key: t.half() for key, t in state().items()}, tmp_path / "w.safetensors")
    network = small()
    load_pretrained(network, "any", str(file))
    assert network.conv.weight.dtype == torch.float32
    assert (network.conv.weight == 7).all()


def tiny_densenet(source: str | None, stem: StemSpec | None = None, classes: int = 5) -> nn.Module:
    return densenet("densenet121", classes, 96, (1, 1), 4, 8, "auto", 0.0, False, source, stem)


def test_the_names_in_torchvisions_first_files_are_converted(tmp_path: Path) -> None:
    """``norm.1`` and ``conv.2``, of which torchvision's DenseNet downloads still consist."""
    network = tiny_densenet(None)
    old = {
        key.replace("norm1", "norm.1").replace("norm2", "norm.2")
        .replace("conv1", "conv.1").replace("conv2", "conv.2"): value + 1
        for key, value in network.state_dict().items()
    }  # fmt: skip
    assert old.keys() != network.state_dict().keys()
    again = tiny_densenet(str(save_state(old, tmp_path / "old.pth")))
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value + 1)


@pytest.mark.parametrize("variant", ["reconstruction", "block_stem"])
def test_a_densenet_behind_a_stem_takes_the_plain_ones_weights(
    tmp_path: Path, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plain = tiny_densenet(None).state_dict()
    file = str(save_state(plain, tmp_path / "w.pt"))
    model = tiny_densenet(file, StemSpec(variant, Selection(ALL, ALL), "full", "blocks"))
    own = model.backbone.state_dict()
    gone = {key for key in plain if key.startswith(("features.conv0", "features.norm0"))}
    assert set(plain) - set(own) == (set() if variant == "reconstruction" else gone)
    assert all(torch.equal(own[key], plain[key]) for key in own)
    assert ("unused: features.conv0.weight" in one_line(caplog)) == (variant != "reconstruction")


def test_the_run_of_a_compressed_network_starts_a_plain_one_and_the_other_way_round() -> None:
    plain, wrapped = small(), nn.ModuleDict({"stem": nn.Linear(1, 1), "backbone": small()})
    result = load_matching(plain, {f"backbone.{key}": value for key, value in state().items()})
    assert result.tensors == (8, 8)
    result = load_matching(wrapped, state())
    assert result.tensors == (8, 10)
    assert list(result.missing) == ["stem.weight", "stem.bias"]
    assert all((t == 7).all() for t in wrapped["backbone"].state_dict().values())


def test_weights_of_libraries_are_found_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a download: both libraries create the network with random weights."""
    caplog.set_level(logging.INFO)
    requested = []

    def create_timm(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            requested.append(("timm", name))
        return made(name, **kwargs)

    def get_torchvision(name: str, weights: str) -> nn.Module:
        requested.append(("torchvision", name))
        return theirs(name, weights=None)

    made, theirs = timm.create_model, models.get_model
    monkeypatch.setattr(timm, "create_model", create_timm)
    monkeypatch.setattr(models, "get_model", get_torchvision)
    for source in ("timm", "torchvision"):
        torch.manual_seed(0)
        resnet("resnet18", 5, source, 0.0, 0.0, None, None, None)
        after = torch.rand(())
        torch.manual_seed(0)
        resnet("resnet18", 5, None, 0.0, 0.0, None, None, None)
        assert torch.rand(()) == after, "creating the weights advanced the global generator"
        assert "loaded 120 of 122 tensors" in caplog.records[-1].getMessage()
    backbone("vit_tiny_patch16_224", 5, 32, "timm", 0.0, 0.0, {"depth": 1})
    assert "loaded 18 of 20 tensors" in caplog.records[-1].getMessage()
    assert requested == [
        ("timm", "resnet18"),
        ("torchvision", "resnet18"),
        ("timm", "vit_tiny_patch16_224"),
    ]


def test_a_failed_download_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(models, "get_model", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for library in ("timm", "torchvision"):
        with user_error("model.pretrained", library, "no route to host"):
            load_pretrained(small(), "resnet18", library)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["densenet264", "densenet_bc_40_12", "no such thing"])
def test_a_name_without_weights_is_refused(library: str, name: str) -> None:
    with user_error("model.pretrained", library, name):
        load_pretrained(small(), name, library)
