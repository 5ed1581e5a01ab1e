from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from research.compression.selection import Selection, select_frequencies
from research.compression.stems import StemSpec
from research.models.densenet import densenet
from research.models.fastnet import FastNet
from research.models.pretrained import (
    classifier_tensors,
    load_matching,
    load_pretrained,
    recorded,
)
from research.models.resnet import resnet
from research.models.zoo import backbone
from research.utils.weights import state_dict
from tests.conftest import as_if_trained, save_state, user_error
from tests.models.test_rgbx import build as small_rgbx

ALL = select_frequencies(4, "corner")


class Small(nn.Sequential):
    def get_classifier(self) -> nn.Module:
        return self.classifier


def small(classes: int = 3, width: int = 4) -> nn.Module:
    """conv 3→width, norm, linear: 6 + … tensors that can be counted by hand."""
    network = Small()
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
    assert "classifier.weight: 1000 × 4 in the source, 2 × 4 here (classifier)" in text
    assert "classifier.bias: 1000 in the source, 2 here (classifier)" in text
    assert caplog.records[0].levelno == logging.INFO
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
    assert "35 parameters; not in the source: classifier.bias; unused: aux.0" in text
    assert text.endswith("unused: aux.0, aux.1, aux.2 and 2 more")
    assert caplog.records[0].levelno == logging.INFO


@pytest.mark.parametrize(
    ("gone", "level"),
    [
        (["norm.bias"], logging.WARNING),
        (["norm.running_mean"], logging.WARNING),
        (["norm.num_batches_tracked"], logging.INFO),  # of training alone
        (["classifier.weight", "classifier.bias"], logging.INFO),
    ],
)
def test_a_part_that_is_missing_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: list[str], level: int
) -> None:
    caplog.set_level(logging.INFO)
    content = {name: value for name, value in state().items() if name not in gone}
    load_pretrained(small(), "any", str(save_state(content, tmp_path / "w.pt")))
    assert caplog.records[0].levelno == level
    assert f"not in the source: {', '.join(gone)}" in one_line(caplog)


def test_little_is_refused(tmp_path: Path) -> None:
    """The network has 12 + 4 + 4 parameters without its classifier: 8 are too little."""
    fits = {"norm.bias", "norm.weight", "classifier.weight", "classifier.bias"}
    content = {name: value for name, value in state().items() if name in fits}
    file = str(save_state(content, tmp_path / "w.pt"))
    network = small()
    with user_error("model.pretrained", f"{file}: fits too little", "4 of 8 tensors", "23 of 35"):
        load_pretrained(network, "any", file)
    assert all((tensor == 1).all() for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("norm.weight", torch.zeros(5), "5 in the source, 4 here"),
        ("norm.running_var", torch.zeros(3), "3 in the source, 4 here"),
        ("norm.weight", torch.zeros(4, dtype=torch.int64), "int64 in the source, float32 here"),
        ("norm.weight", torch.zeros(4, dtype=torch.complex64), "complex64 in the source"),
    ],
)
def test_a_shape_that_differs_elsewhere_is_refused(
    tmp_path: Path, name: str, value: Tensor, reason: str
) -> None:
    network = small()
    file = str(save_state({**state(classes=9), name: value}, tmp_path / "w.pt"))
    with user_error("model.pretrained", f"{file}: does not fit", f"{name}: {reason}") as caught:
        load_pretrained(network, "any", file)
    assert "classifier" not in str(caught.value)
    assert all((tensor == 1).all() for tensor in network.state_dict().values())


def test_layers_of_another_input_keep_their_initial_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network = small()
    content = {**state(), "conv.weight": torch.zeros(4, 5, 1, 1)}
    file = str(save_state(content, tmp_path / "w.pt"))
    with user_error("model.pretrained", "conv.weight: 4 × 5 × 1 × 1"):
        load_pretrained(network, "any", file)
    load_pretrained(network, "any", file, inputs=["conv"])
    assert "; not loaded: conv.weight: 4 × 5 × 1 × 1 in the source, 4 × 3 × 1 × 1 here" in (
        one_line(caplog)
    )
    assert caplog.records[0].levelno == logging.INFO
    assert (network.conv.weight == 1).all()
    assert (network.norm.weight == 7).all()


@pytest.mark.parametrize(
    "content",
    [
        {"other": torch.zeros(2, 3)},
        # Counters fit any network; they are no sign of a common architecture.
        {"norm.num_batches_tracked": torch.tensor(3)},
        {"conv.weight": torch.zeros(4, 3, 3, 3)},
        {"classifier.weight": torch.zeros(4, 3, 3, 3)},
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
    assert list(result.missing) == result.lacking == ["stem.weight", "stem.bias"]
    assert not load_matching(wrapped, state(), inputs=["stem"]).lacking
    assert all((t == 7).all() for t in wrapped["backbone"].state_dict().values())


CLASSIFIERS = {
    "a ResNet": lambda: resnet("test_resnet", 5, None, 0.0, 0.0, None, None, None),
    "behind a stem": lambda: resnet(
        "test_resnet", 5, None, 0.0, 0.0, None, None,
        StemSpec("block_stem", Selection(ALL, ALL), "full", "blocks"),
    ),
    "torchvision's": lambda: tiny_densenet(None),
    "two of them": lambda: backbone("deit_tiny_distilled_patch16_224", 5, 32, None, 0.0, 0.0, None),
    "an auxiliary one": lambda: backbone("volo_d1_224", 5, 32, None, 0.0, 0.0, None),
    "FastNet": lambda: FastNet(5, [24, 24, 24], 1.0, 1.0),
    "RGB + X": lambda: small_rgbx(),
    "none": lambda: nn.Linear(3, 5),
}  # fmt: skip


@pytest.mark.parametrize("which", CLASSIFIERS)
def test_what_the_classifier_is(which: str) -> None:
    """All that depends on the number of classes, and nothing else."""
    with torch.device("meta"):
        network = CLASSIFIERS[which]()
    expected = {
        "a ResNet": {"fc.weight", "fc.bias"},
        "behind a stem": {"backbone.fc.weight", "backbone.fc.bias"},
        "torchvision's": {"classifier.weight", "classifier.bias"},
        "two of them": {f"head{end}" for end in (".weight", ".bias", "_dist.weight", "_dist.bias")},
        "an auxiliary one": {
            f"{name}.{part}" for name in ("head", "aux_head") for part in ("weight", "bias")
        },
        "FastNet": {"classifier.weight"},
        "RGB + X": {
            f"roi_heads.box_predictor.{layer}.{part}"
            for layer in ("cls_score", "bbox_pred")
            for part in ("weight", "bias")
        },
        "none": set(),
    }
    assert classifier_tensors(network) == expected[which]


def test_what_was_loaded_is_recorded(tmp_path: Path) -> None:
    file = save_state({**state(classes=9), "aux": torch.zeros(1)}, tmp_path / "w.pt")
    load_pretrained(small(), "any", str(file))  # not in a block: not recorded
    with recorded() as records:
        load_pretrained(small(), "any", str(file))
        load_pretrained(small(), "any", None)
    load_pretrained(small(), "any", str(file))
    assert records == [
        {
            "setting": f"model.pretrained={file}",
            "name": "w.pt",
            "part": "",
            "origin": str(file),
            "file": str(file),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "tensors": [6, 8],
            "parameters": [20, 35],
            "not_loaded": ["classifier.weight", "classifier.bias"],
            "unused": 1,
        }
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_position_embeddings_are_resized(tmp_path: Path, whole: bool) -> None:
    """By timm, for a file of a network at another image size."""
    torch.manual_seed(0)
    large = timm.create_model("test_vit", num_classes=4, img_size=64)
    content = large.state_dict()
    if not whole:  # as in weights of a feature extractor
        content = {key: value for key, value in content.items() if not key.startswith("head.")}
    file = str(save_state(content, tmp_path / "w.safetensors"))
    network = backbone("test_vit", 4, 32, file, 0.0, 0.0, None)
    reference = timm.create_model(
        "test_vit", img_size=32, num_classes=4, pretrained=True,
        pretrained_cfg_overlay={"state_dict": large.state_dict(), "num_classes": 4},
    )  # fmt: skip
    for name, value in network.state_dict().items():
        if whole or not name.startswith("head."):
            assert torch.equal(value, reference.state_dict()[name]), name
    assert network.pos_embed.shape != large.pos_embed.shape


def of_efficientnet_pytorch(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a timm network under the names of EfficientNet-PyTorch, written by hand."""
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
           "classifier": "_fc"}  # fmt: skip
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv",
                 "bn2": "_bn2"}  # fmt: skip
    inverted = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv",
                "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}  # fmt: skip
    counts, result = [len(stage) for stage in network.blocks], {}
    for key, value in network.state_dict().items():
        names, part, above = top, key, ""
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.*)", key):
            stage, index, part = int(match[1]), int(match[2]), match[3]
            above = f"_blocks.{sum(counts[:stage]) + index}."
            names = separable if stage == 0 else inverted
            if part.startswith("se."):
                result[above + part.replace("se.conv", "_se")] = value
                continue
        layer, _, kind = part.rpartition(".")
        result[f"{above}{names[layer]}.{kind}"] = value
    return result


def test_names_of_efficientnet_pytorch_are_converted(tmp_path: Path) -> None:
    """Seen with the real ImageNet weights of EfficientNet-Lite 0, 1 and 2: equal logits."""
    source = timm.create_model("tf_efficientnet_b0", num_classes=4)
    as_if_trained(source)
    file = str(save_state(of_efficientnet_pytorch(source), tmp_path / "w.pth"))
    network = backbone("tf_efficientnet_b0", 4, 32, file, 0.0, 0.0, None)
    for name, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    with user_error("model.pretrained", "pads as TensorFlow", "use tf_efficientnet_b0"):
        backbone("efficientnet_b0", 4, 32, file, 0.0, 0.0, None)


def test_the_fully_connected_layers_of_torchvisions_vgg_are_loaded() -> None:
    # The real one has 138 million parameters.
    network = nn.Module()
    network.features = nn.Sequential(nn.Conv2d(3, 4, 3))
    network.pre_logits = nn.Module()
    network.pre_logits.fc1 = nn.Conv2d(4, 5, 7)
    network.pre_logits.fc2 = nn.Conv2d(5, 6, 1)
    state = {
        "features.0.weight": torch.randn(4, 3, 3, 3),
        "features.0.bias": torch.randn(4),
        "classifier.0.weight": torch.randn(5, 4 * 49),
        "classifier.0.bias": torch.randn(5),
        "classifier.3.weight": torch.randn(6, 5),
        "classifier.3.bias": torch.randn(6),
        "classifier.6.weight": torch.randn(9, 6),
    }
    assert load_matching(network, state).unused == ["head.fc.weight"]
    maps = torch.randn(2, 4, 7, 7)
    expected = F.linear(maps.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"])
    torch.testing.assert_close(network.pre_logits.fc1(maps).flatten(1), expected)
    values = torch.randn(2, 5)
    expected = F.linear(values, state["classifier.3.weight"], state["classifier.3.bias"])
    torch.testing.assert_close(network.pre_logits.fc2(values[..., None, None])[..., 0, 0], expected)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
