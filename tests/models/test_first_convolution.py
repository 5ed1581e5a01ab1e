from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from research.models.first_convolution import (
    FirstConv2d,
    input_gradient,
    with_fast_input_gradient,
)
from tests.models.test_resnet import blocks, network, spec

LAYERS = ((7, 3), (5, 2), (6, 2), (7, 0), (5, 4))
"""Kernels and paddings."""
SIZES = ((16, 16), (15, 12), (9, 13))
NAME = "backbone.conv1"


def pair(kernel: int = 7, padding: int = 3, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """PyTorch's layer and ours, with the same parameters, in networks of one layer."""
    plain = nn.Sequential(nn.Conv2d(3, 4, kernel, 2, padding, **settings))
    ours = nn.Sequential(nn.Conv2d(3, 4, kernel, 2, padding, **settings))
    ours.load_state_dict(plain.state_dict())
    with_fast_input_gradient(ours)
    assert isinstance(ours[0], FirstConv2d)
    return plain, ours


def gradients(
    layer: nn.Module, image: Tensor, run: Callable[..., Any] | None = None
) -> list[Tensor]:
    """Output and gradients of the image and of the parameters, each with its type."""
    image = image.clone().requires_grad_()
    output = (run or layer)(image)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    wanted = [image, *(p for p in layer.parameters() if p.requires_grad)]
    return [output, *torch.autograd.grad((output * weights).sum(), wanted)]


@pytest.mark.parametrize(("kernel", "padding"), LAYERS)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_pytorch(kernel: int, padding: int, size: tuple[int, int]) -> None:
    plain, ours = (layer.double() for layer in pair(kernel, padding))
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    for own, wanted in zip(gradients(ours, image), gradients(plain, image), strict=True):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
def test_derivatives_are_those_of_differences(size: tuple[int, int]) -> None:
    _, ours = pair(5, 2, bias=False)
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)

    def convolve(image: Tensor, weight: Tensor) -> Any:
        return torch.func.functional_call(ours, {"0.weight": weight}, (image,))

    assert torch.autograd.gradcheck(convolve, (image, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, (image, weight), fast_mode=True)


def test_the_gradient_is_one_convolution_of_stride_1(monkeypatch: pytest.MonkeyPatch) -> None:
    strides = []
    convolve: Any = nn.functional.conv2d

    def counted(*given: Any, stride: int = 1, **named: Any) -> Tensor:
        strides.append(stride)
        output: Tensor = convolve(*given, stride=stride, **named)
        return output

    monkeypatch.setattr("research.models.first_convolution.F.conv2d", counted)
    weight = torch.randn(4, 3, 7, 7)
    assert input_gradient(torch.randn(1, 4, 8, 8), weight, 3, (15, 16)).shape == (1, 3, 15, 16)
    assert strides == [1]


def test_frozen_weights_have_no_gradient() -> None:
    _, ours = pair()
    ours.requires_grad_(False)
    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    ours(image).sum().backward()
    assert image.grad is not None
    assert all(p.grad is None for p in ours.parameters())


def test_bfloat16_has_the_types_of_pytorch() -> None:
    image = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradients(layer, image) for layer in pair()]
    for own, wanted in zip(*found, strict=True):
        assert own.dtype == wanted.dtype
        torch.testing.assert_close(own, wanted, rtol=0.05, atol=0.05)


def test_it_compiles() -> None:
    plain, ours = pair()
    image = torch.randn(2, 3, 15, 16)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    found = gradients(ours, image, compiled)
    for own, wanted in zip(found, gradients(plain, image), strict=True):
        torch.testing.assert_close(own, wanted)


def test_the_network_behind_a_trained_image_has_it() -> None:
    """And the parameters, names and random numbers of one without it."""
    torch.manual_seed(0)
    stemmed = network("resnet18", spec("reconstruction"))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    rgb = network("resnet18")
    spec("reconstruction").build(64)
    assert torch.equal(drawn, torch.rand(1))
    assert isinstance(stemmed.get_submodule(NAME), FirstConv2d)
    assert stemmed.get_parameter(f"{NAME}.weight").equal(rgb.get_parameter("conv1.weight"))
    assert {f"backbone.{name}" for name in rgb.state_dict()} <= set(stemmed.state_dict())
    stemmed(blocks(4)).sum().backward()
    assert stemmed.get_parameter(f"{NAME}.weight").grad is not None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(3, 4, 7, 1, 3),
        nn.Conv2d(3, 4, 7, (2, 1), 3),
        nn.Conv2d(3, 4, (7, 5), 2, (3, 2)),
        nn.Conv2d(3, 4, 7, 2, (3, 2)),
        nn.Conv2d(3, 4, 7, 2, 3, dilation=2),
        nn.Conv2d(4, 4, 7, 2, 3, groups=2),
        nn.Conv2d(3, 4, 7, 2, 3, padding_mode="reflect"),
    ],
    ids=str,
)
def test_other_layers_stay(layer: nn.Module) -> None:
    network = nn.Sequential(layer, nn.Conv2d(4, 4, 7, 2, 3))
    with_fast_input_gradient(network)
    assert [type(module) for module in network] == [nn.Conv2d, nn.Conv2d]
