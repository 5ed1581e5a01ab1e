"""A multilayer perceptron on pixels."""

from __future__ import annotations

from torch import Tensor, nn


class Perceptron(nn.Module):
    """Two linear layers; pixels [B, 3, S, S] → logits [B, num_classes].

    Args:
        num_classes: outputs.
        image_size: side S of the input in pixels.
        width: hidden units.
    """

    def __init__(self, num_classes: int, image_size: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * image_size**2, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(images.flatten(1)).relu())
        return logits
