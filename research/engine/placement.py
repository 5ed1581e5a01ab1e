"""How a network is laid out and called: its memory format, and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from research.data.transforms import DeviceTransform

GRAPHS: Final = ("reduce-overhead", "max-autotune")
"""Modes that use CUDA graphs, of which each call overwrites the outputs of the one before."""


def memory_format(
    config: Mapping[str, Any], device: torch.device, network: nn.Module
) -> torch.memory_format:
    """The memory format of weights and inputs: the setting ``channels_last``.

    By default ``channels_last`` in half precision on a GPU, whose tensor cores compute convolutions
    in it, and on a CPU for networks with the attribute ``channels_last_on_cpu``; contiguous
    elsewhere.
    """
    chosen = config["channels_last"]
    if chosen is None and device.type == "cpu":
        chosen = any(getattr(part, "channels_last_on_cpu", False) for part in network.modules())
    elif chosen is None:
        chosen = device.type == "cuda" and config["precision"] != "fp32"
    return torch.channels_last if chosen else torch.contiguous_format


def lay_out(
    network: nn.Module,
    transform: DeviceTransform,
    device: torch.device,
    layout: torch.memory_format,
) -> None:
    """Move a network and its device transform, which then returns inputs in the same format."""
    network.to(memory_format=layout).to(device)
    transform.to(device).memory_format = layout


def called(network: nn.Module, compile_: bool | str) -> nn.Module:
    """The network that is called: ``network``, or its compiled form, which shares its weights.

    It is compiled for each shape when it is first called with it: the last batch of an epoch, if it
    is smaller, makes one more, for any batch size. Training and evaluation each have their own.

    Args:
        network: on its device.
        compile_: whether to compile, or a mode of ``torch.compile``.
    """
    if not compile_:
        return network
    compiled: Any = torch.compile(network, mode=mode(compile_))
    return Copied(compiled) if mode(compile_) in GRAPHS else compiled


def mode(compile_: bool | str) -> str:
    """The mode of ``torch.compile`` that the setting ``compile`` chooses."""
    return compile_ if isinstance(compile_, str) else "default"


class Copied(nn.Module):
    """A network whose outputs are copied, so that the next call does not overwrite them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return tree_map(
            lambda value: value.clone() if isinstance(value, Tensor) else value,
            self.network(*inputs),
        )
