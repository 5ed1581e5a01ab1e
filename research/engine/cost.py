"""What a network costs: parameters, multiply-adds, memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from research.batch import Batch
from research.engine import build
from research.engine.build import Config


def measure(
    network: nn.Module, config: Config, metadata: Mapping[str, Any]
) -> tuple[int, int, float, int]:
    """Parameters, multiply-adds, bytes of activations and of weights, of a network.

    Multiply-adds are those of the forward pass of one image, activations those that one image of a
    training batch keeps for the backward pass.

    Args:
        network: as configured, on the CPU.
        config: resolved.
        metadata: of the data set, for ``build.model``.
    """
    task = build.build_task(config, metadata["classes"])
    network.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(blank_batch(config, metadata, 1).inputs)
    network.train()
    weights = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # A reference, so that no later storage gets the same address.
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = task.losses(network, blank_batch(config, metadata, 2))
    activations = sum(storage.nbytes() for storage in saved.values()) / 2
    del losses
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    return parameters, int(counter.get_total_flops()) // 2, activations, size


def blank_batch(config: Config, metadata: Mapping[str, Any], count: int) -> Batch:
    """``count`` blank samples with targets, after the device transform."""
    task = build.build_task(config, metadata["classes"])
    return task.example_batch(count, partial(build.blank_inputs, config, metadata), metadata)
