"""Siamese networks: which of two photos is better, from pixels or from frozen features.

Both photos go through the same tower, and the comparison is antisymmetric by construction:
P(a over b) + P(b over a) = 1 for every weight, trained or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from research.models import backbones
from research.utils.errors import UserError

HEADS: Final = ("bradley_terry", "mlp")
NARROW: Final = 64
"""Where features of several kinds meet, wider ones are brought to this width first."""
COMPARED: Final = 64
"""Width of the comparing network's hidden layer."""
MOMENTUM: Final = 0.01
"""Of the running mean embedding."""


class Fusion(nn.Module):
    """Features of several kinds [B, sum of widths] to one vector.

    A kind wider than 64 goes through a linear layer of its own to 64, so that 4 measures are not
    lost among 2048 activations; one kind alone stays as it is.

    Args:
        sizes: widths, in the order in which they are concatenated.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.parts = nn.ModuleList(
            nn.Linear(size, NARROW) if size > NARROW and len(sizes) > 1 else nn.Identity()
            for size in sizes
        )
        self.width = sizes[0] if len(sizes) == 1 else sum(min(size, NARROW) for size in sizes)

    def forward(self, features: Tensor) -> Tensor:
        kinds = features.split(self.sizes, -1)
        return torch.cat([part(kind) for part, kind in zip(self.parts, kinds, strict=True)], -1)


class Tower(nn.Module):
    """Layers that both photos share; dropout takes the same from both.

    Photos are computed in calls of their own: what a row of a matrix product is rounded to depends
    on its place among the others, and the order of the two is to change nothing but the sign.

    Args:
        start: what comes before the layers: [B, D] to [B, V].
        width: V.
        dims: widths of the layers.
        dropout: after each of them, 0 <= x < 1.

    Attributes:
        width: W, of an embedding.
    """

    def __init__(self, start: nn.Module, width: int, dims: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.start = start
        self.dropout = dropout
        widths = [width, *dims]
        self.layers = nn.ModuleList(nn.Linear(*both) for both in pairwise(widths))
        self.width = widths[-1]

    def forward(self, *photos: Tensor) -> list[Tensor]:
        """Each [B, D] to an embedding [B, W]."""
        found = [self.start(photo) for photo in photos]
        for layer in self.layers:
            found = [layer(photo).relu() for photo in found]
            kept = F.dropout(torch.ones_like(found[0]), self.dropout, self.training)
            found = [photo * kept for photo in found]
        return found


class BradleyTerry(nn.Module):
    """A score a photo, s = w·e; the logit is s(a) − s(b) (Bradley and Terry, 1952)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, 1, bias=False)  # a bias would cancel out

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings [B, W] to logits [B]."""
        return self.score(first) - self.score(second)

    def score(self, embeddings: Tensor) -> Tensor:
        """[B, W] to [B]."""
        scores: Tensor = self.value(embeddings)[:, 0]
        return scores


class Comparison(nn.Module):
    """A network g on [e1, e2, e1 − e2]; the logit is g(a, b) − g(b, a).

    Its comparisons of pairs need not agree on an order. ``score`` gives one: the logit against
    the mean embedding of the training photos, which is kept while training.

    Args:
        width: W, of an embedding.
        dropout: of g's hidden layer, 0 <= x < 1; the same units in both orders.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * width, COMPARED)
        self.out = nn.Linear(COMPARED, 1, bias=False)
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings [B, W] to logits [B]."""
        if self.training:
            self._remember((first.detach().mean(0) + second.detach().mean(0)) / 2)
        kept = F.dropout(first.new_ones(len(first), COMPARED), self.dropout, self.training)
        return self._judge(first, second, kept) - self._judge(second, first, kept)

    def score(self, embeddings: Tensor) -> Tensor:
        """[B, W] to [B]."""
        return self(embeddings, self.mean.expand_as(embeddings).contiguous())

    def _judge(self, one: Tensor, two: Tensor, kept: Tensor) -> Tensor:
        hidden = self.hidden(torch.cat([one, two, one - two], -1)).relu() * kept
        judged: Tensor = self.out(hidden)[:, 0]
        return judged

    @torch.no_grad()
    def _remember(self, mean: Tensor) -> None:
        # A plain mean at first, a moving one later.
        self.seen += 1
        self.mean += (1 / self.seen).clamp(min=MOMENTUM) * (mean - self.mean)


class Siamese(nn.Module):
    """Pairs [B, 2, …] to logits [B] of P(first over second); ``score`` ranks single ones.

    Tower and head compute in float32 whatever the precision: differences of scores in half
    precision would be ties.

    Args:
        tower: of features.
        head: of embeddings.
    """

    def __init__(self, tower: Tower, head: BradleyTerry | Comparison) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.features(inputs)
        with torch.autocast(features.device.type, enabled=False):
            first, second = (photo.contiguous() for photo in features.float().unbind(1))
            logits: Tensor = self.head(*self.tower(first, second))
        return logits

    def score(self, inputs: Tensor) -> Tensor:
        """Photos [B, …] to scores [B]: the higher, the better; meant for evaluation mode."""
        features = self.features(inputs[:, None])
        with torch.autocast(features.device.type, enabled=False):
            return self.head.score(*self.tower(features.float()[:, 0]))

    def features(self, inputs: Tensor) -> Tensor:
        """[B, K, D] of what the tower takes; here the inputs are features."""
        return inputs


class SiameseImages(Siamese):
    """The same on images [B, 2, 3, S, S], with a backbone that both photos pass in one batch.

    Args:
        backbone: images [N, 3, S, S] to features [N, D].
        tower: see ``Siamese``.
        head: see ``Siamese``.
        freeze: ``none``, ``partial`` (all of the backbone but its last stage) or ``full``. What is
            frozen stays in evaluation mode, so that its norms keep their statistics.
    """

    def __init__(
        self, backbone: nn.Module, tower: Tower, head: BradleyTerry | Comparison, freeze: str
    ) -> None:
        super().__init__(tower, head)
        self.backbone = backbone
        self.frozen = backbones.frozen(backbone, freeze)
        for module in self.frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train()

    def features(self, inputs: Tensor) -> Tensor:
        flat: Tensor = self.backbone(inputs.flatten(0, 1))
        return flat.unflatten(0, inputs.shape[:2])

    def train(self, mode: bool = True) -> SiameseImages:
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's regular expressions with its name before them, as timm's models have it.

        Tower and head match nothing and so come last.

        Args:
            coarse: one group a stage instead of one a block.
        """
        matcher = getattr(self.backbone, "group_matcher", None)
        if matcher is None:
            raise UserError(
                "layer_decay", "layer_decay: this backbone does not say what its layers are"
            )
        return backbones.behind("backbone", matcher(coarse=coarse))


def siamese_frozen(
    feature_sizes: Mapping[str, int], head: str, mlp_hidden_dims: Sequence[int], dropout: float
) -> Siamese:
    """A ranker on features of frozen networks.

    Args:
        feature_sizes: widths by name, in the order in which they are concatenated.
        head: ``bradley_terry`` or ``mlp``.
        mlp_hidden_dims: widths of the shared tower's layers.
        dropout: after each of them, 0 <= x < 1.

    Raises:
        UserError: for a head that does not exist.
    """
    fusion = Fusion([*feature_sizes.values()])
    tower = Tower(fusion, fusion.width, mlp_hidden_dims, dropout)
    return Siamese(tower, _head(head, tower.width, dropout))


def siamese_e2e(
    backbone: str,
    pretrained: str | None,
    freeze: str,
    head: str,
    mlp_hidden_dims: Sequence[int],
    dropout: float,
    image_size: int,
) -> SiameseImages:
    """A ranker on images.

    Args:
        backbone: timm's name; VGG gives the second of its fully connected layers, others their
            pooled features.
        pretrained: null, ``timm``, ``torchvision`` or a file, see ``pretrained.load``.
        freeze: ``none``, ``partial`` or ``full``.
        head: ``bradley_terry`` or ``mlp``.
        mlp_hidden_dims: widths of the shared tower's layers; none: the features themselves.
        dropout: after each of them, 0 <= x < 1. The backbone drops nothing: what two photos lose
            differently is no comparison.
        image_size: S, in pixels.

    Raises:
        UserError: for a value that does not exist, or weights that do not fit.
    """
    network, features = backbones.create(backbone, image_size)
    backbones.load(network, backbone, pretrained)
    tower = Tower(nn.Identity(), features, mlp_hidden_dims, dropout)
    return SiameseImages(network, tower, _head(head, tower.width, dropout), freeze)


def _head(name: str, width: int, dropout: float) -> BradleyTerry | Comparison:
    if name not in HEADS:
        raise UserError("model.head", f"model.head={name}: expected one of {', '.join(HEADS)}")
    return BradleyTerry(width) if name == "bradley_terry" else Comparison(width, dropout)
