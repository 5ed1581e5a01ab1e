"""Backbones that read JPEG DCT coefficients: a stem for coefficients, then the backbone."""

from __future__ import annotations

from typing import Any, Final

from timm.layers import BlurPool2d
from timm.models.resnet import ResNet
from torch import Tensor, nn

from research.compression.blocks import Blocks
from research.compression.stems import LateStem
from research.models.backbones import prefix_matcher
from research.models.first_convolution import with_fast_input_gradient
from research.utils.errors import UserError

STEM: Final = "stem"
"""Name of the coefficient stem in ``Stemmed``."""


class Stemmed(nn.Module):
    """A coefficient stem followed by a backbone: ``Blocks`` to logits [B, num_classes].

    Args:
        stem: from ``StemSpec.build``.
        backbone: the network, without its own stem unless ``stem`` returns an image; changed by
            ``with_fast_input_gradient``.
    """

    def __init__(self, stem: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        with_fast_input_gradient(backbone)  # An image from a trained stem needs a gradient.
        self.stem = stem
        self.backbone = backbone

    def forward(self, blocks: Blocks) -> Tensor:
        logits: Tensor = self.backbone(self.stem(blocks))
        return logits

    def get_classifier(self) -> Any:
        """timm's ``get_classifier`` of the backbone: what depends on the number of classes."""
        return getattr(self.backbone, "get_classifier", lambda: ())()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's ``group_matcher`` of the backbone; the whole coefficient stem is the first group.

        Args:
            coarse: one group per stage instead of one per block.

        Raises:
            UserError: if the backbone has none.
        """
        matcher = getattr(self.backbone, "group_matcher", None)
        if matcher is None:
            raise UserError(
                "layer_decay",
                "layer_decay: this model does not define its layers",
                "remove it, or choose a ResNet of timm",
            )
        own = prefix_matcher("backbone", matcher(coarse=coarse))
        return {"coefficients": r"^stem\.", **own}


class LateConcat(Stemmed):
    """A ResNet that luma enters at stage 2 and chroma within stage 3 (Gueguen et al., 2018).

    ``Blocks`` to logits [B, num_classes]. Luma, at stride 8, passes stage 2, which has no stride,
    and the first block of stage 3, which has it; there the stem joins chroma, at stride 16. A
    plane without selected frequencies has no parameters: without luma, what it would have passed
    is removed.

    Args:
        stem: from ``StemSpec.build_late``.
        backbone: a ResNet without stem and stage 1; changed in place.
    """

    stem: LateStem
    backbone: ResNet

    def __init__(self, stem: LateStem, backbone: ResNet) -> None:
        super().__init__(stem, backbone)
        if stem.luma is None:
            backbone.layer2 = nn.Sequential()
            backbone.layer3[0] = nn.Identity()
        else:
            _without_stride(backbone.layer2[0])

    def forward(self, blocks: Blocks) -> Tensor:
        network = self.backbone
        strided, *others = network.layer3
        luma = None
        if self.stem.luma is not None:
            luma = strided(network.layer2(self.stem.luma(blocks.y)))
        features = self.stem.join(luma, blocks.cbcr)
        for block in others:
            features = block(features)
        logits: Tensor = network.forward_head(network.layer4(features))
        return logits


def _without_stride(block: nn.Module) -> None:
    """Remove the stride of a residual block: that of convolutions, and pooling layers."""
    for name, module in [*block.named_modules()]:
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d | BlurPool2d):
            block.set_submodule(name, nn.Identity())
