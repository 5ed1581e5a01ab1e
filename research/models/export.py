"""A network as a module whose inputs and outputs are tensors, for export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from research.compression.blocks import Blocks


@dataclass(frozen=True)
class ExportForm:
    """A network whose inputs and outputs are tensors.

    Attributes:
        network: in evaluation mode.
        inputs: names of its inputs.
        outputs: names of its outputs.
        metadata: what a user of its outputs must know, for the exported file.
    """

    network: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class OnBlocks(nn.Module):
    """A network on ``Blocks`` as one on two tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, y: Tensor, cbcr: Tensor) -> Tensor:
        logits: Tensor = self.network(Blocks(y, cbcr))
        return logits


def export_form(network: nn.Module, *, coefficients: bool) -> ExportForm:
    """The form of a network: its own ``export_form()`` if it has one, else that of a classifier.

    Args:
        network: a trained network.
        coefficients: its input are ``Blocks``.

    Raises:
        UserError: from the network, if it cannot be exported.
    """
    network = network.requires_grad_(False).eval()
    if hasattr(network, "export_form"):
        form: ExportForm = network.export_form()  # type: ignore[operator]
        return form
    if coefficients:
        return ExportForm(OnBlocks(network).eval(), ("y", "cbcr"), ("logits",))
    return ExportForm(network, ("images",), ("logits",))
