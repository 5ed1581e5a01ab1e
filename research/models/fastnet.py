"""FastNet: a small convolutional network for 32 px images that trains in few epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STDS: Final = (
    (3.1831, 0.5751, 0.6292, 0.2354),
    (0.9098, 0.1198, 0.1292, 0.0401),
    (0.4344, 0.0677, 0.0710, 0.0251),
)
"""[3 colours, 4 frequencies], of CIFAR-10's normalised training images in ``Whitening``'s basis."""


class FastNet(nn.Module):
    """Normalised images [B, 3, H, W] to logits [B, num_classes]; H and W at least 32.

    A fixed whitening of 2×2 patches, groups of two 3×3 convolutions with a max-pool after the
    first, a global max-pool, a linear classifier. The ideas come from fast CIFAR-10 training:
    whitened patches and few, wide layers (Page, 2018), convolutions initialized to the identity
    and batch norms with a bias but no weight (Jordan, 2024). 0.12 GMAC and 2.0 M parameters at
    the widths of its YAML.

    Args:
        num_classes: outputs of the classifier.
        widths: channels of the groups, by default three; each halves the sides.
        bias_scale: factor on the batch norms' biases, which raises their effective learning rate
            by its square.
        logit_scale: factor on the classifier's output.
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int], bias_scale: float, logit_scale: float
    ) -> None:
        super().__init__()
        self.logit_scale = logit_scale
        layers: list[nn.Module] = [Whitening(), nn.GELU()]
        channels = Whitening.channels
        for width in widths:
            layers += [
                _conv3x3(channels, width),
                nn.MaxPool2d(2),
                BiasBatchNorm(width, bias_scale),
                nn.GELU(),
                _conv3x3(width, width),
                BiasBatchNorm(width, bias_scale),
                nn.GELU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images).amax((2, 3))
        return self.classifier(features) * self.logit_scale

    def get_classifier(self) -> nn.Module:
        """As timm's networks: what depends on the number of classes."""
        return self.classifier


class Whitening(nn.Module):
    """Patches of 2×2 px to 12 nearly uncorrelated features with std 1, and their negatives.

    The basis is Haar's times three opponent colours (grey, red-blue, green-magenta), in which
    natural images are nearly uncorrelated: on CIFAR-10 no two features correlate by more than
    0.27. It needs no data and no gradients. [B, 3, H, W] to [B, 24, H - 1, W - 1].
    """

    channels: Final = 24

    def __init__(self) -> None:
        super().__init__()
        colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
        colours = F.normalize(colours, dim=1)
        haar = torch.tensor([[[1.0, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]],
                             [[1, -1], [-1, 1]]]) / 2  # fmt: skip
        basis = torch.einsum("kc,fyx->kfcyx", colours, haar)
        white = (basis / torch.tensor(STDS)[:, :, None, None, None]).flatten(0, 1)
        self.register_buffer("weight", torch.cat([white, -white]), persistent=False)

    weight: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight)


class BiasBatchNorm(nn.BatchNorm2d):
    """Batch norm with a learned bias and no learned weight."""

    def __init__(self, channels: int, bias_scale: float) -> None:
        super().__init__(channels, momentum=0.4, affine=False)
        self.shift = nn.Parameter(torch.zeros(channels))
        self.scale = bias_scale

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + (self.shift * self.scale)[:, None, None]


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3×3 convolution whose first outputs start as copies of the inputs."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[: min(inputs, outputs)])
    return convolution
