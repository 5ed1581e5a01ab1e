from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD
from research.config import compose_config
from research.models.inputs import InputSpec, input_spec
from research.models.zoo import backbone
from tests.conftest import user_error


def made(name: str, classes: int = 5, size: int = 32, **changes: Any) -> nn.Module:
    given: dict[str, Any] = {
        "pretrained": None,
        "drop_rate": 0.0,
        "drop_path_rate": 0.0,
        "kwargs": None,
    }
    return backbone(name, classes, size, **{**given, **changes})


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Of timm's tables.
        ("densenet121", InputSpec(224, IMAGENET_MEAN, IMAGENET_STD, 0.875)),
        ("cspdarknet53", InputSpec(256, IMAGENET_MEAN, IMAGENET_STD, 0.887)),
        ("efficientvit_m4", InputSpec(224, IMAGENET_MEAN, IMAGENET_STD, 0.875)),
        ("vit_tiny_patch16_224", InputSpec(224, HALF, HALF, 0.9)),
        ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", InputSpec(384, HALF, HALF, 1.0)),
        ("inception_v3.tf_in1k", InputSpec(299, HALF, HALF, 0.875)),
        # Unknown to timm.
        (None, InputSpec(224, IMAGENET_MEAN, IMAGENET_STD, 0.875)),
        ("densenet264", InputSpec(224, IMAGENET_MEAN, IMAGENET_STD, 0.875)),
        ("densenet_bc_100_12", InputSpec(32, IMAGENET_MEAN, IMAGENET_STD, 0.875)),
        ("vit_tiny_patch16_224.no_such_tag", InputSpec(224, IMAGENET_MEAN, IMAGENET_STD, 0.875)),
    ],
)
def test_own_input(name: str | None, expected: InputSpec) -> None:
    assert input_spec(name) == expected


@pytest.mark.parametrize(
    ("name", "count"), [("cspdarknet53", 27_642_184), ("efficientvit_m4", 8_804_228)]
)
def test_the_guides_backbones_have_the_published_number_of_parameters(
    name: str, count: int
) -> None:
    with torch.device("meta"):
        assert parameters(made(name, 1000, 224)) == count


# A convolutional network; transformers that must know the size, and how: patches of 16, windows.
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cspdarknet53", (64,)),
        ("efficientvit_m4", (32, 96)),
        ("vit_tiny_patch16_224", (32, 48)),
        pytest.param("swin_tiny_patch4_window7_224", (64,), marks=pytest.mark.long),
        ("mobilenetv3_small_050", (32,)),
        ("efficientvit_b0", (32,)),
    ],
)
@torch.no_grad()
def test_any_size_that_the_network_can_take(name: str, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        model = made(name, size=size)
        assert model.training
        assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "when"), [("nest_tiny", "cannot build it for"), ("levit_128s", "cannot take")]
)
def test_a_size_that_it_cannot_take_is_refused(name: str, when: str) -> None:
    with user_error("model.name", name, when, "dataset.image_size=40", 224):
        made(name, size=40)


def test_drop_rates_reach_the_network() -> None:
    model = made("vit_tiny_patch16_224", drop_rate=0.25, drop_path_rate=0.5, kwargs={"depth": 2})
    assert model.head_drop.p == 0.25
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)


def test_a_missing_argument_is_refused_unless_it_is_zero() -> None:
    with user_error("model.drop_path_rate", "efficientvit_b0", "model.drop_path_rate=0"):
        made("efficientvit_b0", drop_path_rate=0.1)


def test_kwargs_are_passed_to_timm() -> None:
    plain = made("mobilenetv3_small_050")
    changed = made("mobilenetv3_small_050", kwargs={"global_pool": "max"})
    assert plain.global_pool.pool_type == "avg"
    assert changed.global_pool.pool_type == "max"
    with user_error("model.kwargs.globel_pool", "mobilenetv3_small_050"):
        made("mobilenetv3_small_050", kwargs={"globel_pool": "max"})
    # Set by the user, it is not ignored.
    with user_error("model.kwargs.img_size"):
        made("mobilenetv3_small_050", kwargs={"img_size": 64})


@pytest.mark.parametrize("key", ["pretrained", "checkpoint_path", "pretrained_cfg"])
def test_weights_are_not_loaded_through_kwargs(key: str) -> None:
    with user_error(f"model.kwargs.{key}", "model.pretrained"):
        made("mobilenetv3_small_050", kwargs={key: "weights.pth"})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet35", "resnet3"),
        ("efficientvit-m4", "efficientvit_m4"),
        ("DenseNet121", "densenet121"),
        ("wholly_other", "timm.list_models"),
        ("resnet18.a9_in1k", "a1_in1k"),
    ],
)
def test_the_nearest_names_are_suggested(name: str, near: str) -> None:
    with user_error("model.name", name, near):
        made(name)


def test_a_name_is_required() -> None:
    with user_error("model.name", "model=timm", "add model.name="):
        compose_config(["model=timm"])


def test_a_network_that_does_not_classify_is_refused() -> None:
    with user_error("model.name", "5 logits"):
        made("mobilenetv3_small_050", kwargs={"num_classes": 7})
