"""What comes out of the parts of a network, for one image: ``layer1 64x56x56``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from research.engine import cost
from research.engine.build import Config

DEPTH: Final = 2
"""Levels of modules whose outputs are looked at: ``layer1``, ``trunk.layer1``."""


@dataclass(frozen=True)
class Shapes:
    """Shapes without the dimension of the batch, as text; of several tensors with their names.

    Attributes:
        input: of the network.
        stages: the last module at each size of the feature maps, in the order of their sizes, with
            the shape of its output.
        features: of the input of the last linear layer; empty without one.
        output: of the network in evaluation mode; of detections, of the first image.
    """

    input: str
    stages: str
    features: str
    output: str


def shapes(network: nn.Module, config: Config, metadata: Mapping[str, Any]) -> Shapes:
    """The shapes of one forward pass of a blank image.

    Args:
        network: as configured, on the CPU.
        config: resolved.
        metadata: of the data set, for ``build.model``.
    """
    inputs = cost.blank_batch(config, metadata, 1).inputs
    stages: dict[torch.Size, tuple[str, str]] = {}
    features = [""]

    def stage(name: str, output: Any) -> None:
        for tensor in _tensors(output):
            size = tensor.shape[-2:]
            if tensor.dim() == 4 and max(size) > 1:
                stages.pop(size, None)  # a later module of the same size takes its place
                stages[size] = (name, _shape(tensor))

    def last_linear(arguments: tuple[Any, ...]) -> None:
        features[0] = _shape(arguments[0])

    hooks = []
    for name, module in network.named_modules():
        if name and name.count(".") < DEPTH:
            hooks.append(
                module.register_forward_hook(lambda _, __, output, name=name: stage(name, output))
            )
        if isinstance(module, nn.Linear):
            hooks.append(
                module.register_forward_hook(lambda _, arguments, __: last_linear(arguments))
            )
    network.eval()
    try:
        with torch.inference_mode():
            output = network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    listed = "; ".join(f"{name} {shape}" for name, shape in stages.values())
    return Shapes(_described(inputs), listed, features[0], _described(output))


def _described(value: Any) -> str:
    """The shape of a tensor, or of each of several; of a list, that of its one image."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Tensor):
        return _shape(value)
    if isinstance(value, list):
        (image,) = value
        return ", ".join(f"{name} {_shape(each[None])}" for name, each in image.items())
    return ", ".join(f"{name} {_described(each)}" for name, each in value.items())


def _shape(tensor: Tensor) -> str:
    """Its dimensions but the first, ``64x56x56``; 1 if there is no other."""
    return "x".join(map(str, tensor.shape[1:] or (1,)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
