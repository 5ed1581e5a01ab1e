"""Siamese networks that predict which of two photos is better, from pixels or frozen features.

Both photos go through the same tower, and the heads are antisymmetric by construction:
P(a over b) + P(b over a) = 1 for any weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from research.utils.errors import UserError

HEADS: Final = ("bradley_terry", "mlp")
MAX_WIDTH: Final = 64
"""Wider features are projected to this width before several kinds are concatenated."""
HIDDEN: Final = 64
"""Width of the hidden layer of ``PairMLP``."""
MOMENTUM: Final = 0.01
"""Momentum of the running mean embedding."""


class FeatureConcat(nn.Module):
    """Features of several kinds, [B, sum of widths], balanced and concatenated.

    A kind wider than 64 goes through its own linear layer to 64, so that 4 quality measures are
    not outnumbered by 2048 activations. A single kind is not changed.

    Args:
        sizes: widths, in the order in which they are concatenated.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.parts = nn.ModuleList(
            nn.Linear(size, MAX_WIDTH) if size > MAX_WIDTH and len(sizes) > 1 else nn.Identity()
            for size in sizes
        )
        self.width = sizes[0] if len(sizes) == 1 else sum(min(size, MAX_WIDTH) for size in sizes)

    def forward(self, features: Tensor) -> Tensor:
        kinds = features.split(self.sizes, -1)
        return torch.cat([part(kind) for part, kind in zip(self.parts, kinds, strict=True)], -1)


class Tower(nn.Module):
    """The layers shared by both photos, with the same dropout mask for both.

    The photos are computed in separate calls: the rounding of a row of a matrix product depends on
    its index, and swapping the photos must change only the sign of the logit.

    Args:
        start: module before the layers, [B, D] to [B, V].
        width: V.
        dims: widths of the layers.
        dropout: after each layer, 0 <= x < 1.

    Attributes:
        width: width W of an embedding.
    """

    def __init__(self, start: nn.Module, width: int, dims: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.start = start
        self.dropout = dropout
        widths = [width, *dims]
        self.layers = nn.ModuleList(nn.Linear(*both) for both in pairwise(widths))
        self.width = widths[-1]

    def forward(self, *photos: Tensor) -> list[Tensor]:
        """Photos [B, D] to embeddings [B, W]."""
        outputs = [self.start(photo) for photo in photos]
        for layer in self.layers:
            outputs = [layer(output).relu() for output in outputs]
            mask = F.dropout(torch.ones_like(outputs[0]), self.dropout, self.training)
            outputs = [output * mask for output in outputs]
        return outputs


class BradleyTerry(nn.Module):
    """A score per photo, s = w·e; the logit is s(a) − s(b) (Bradley and Terry, 1952)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, 1, bias=False)  # a bias would cancel out

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings [B, W] to logits [B]."""
        return self.score(first) - self.score(second)

    def score(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, W] to scores [B]."""
        scores: Tensor = self.value(embeddings)[:, 0]
        return scores


class PairMLP(nn.Module):
    """An MLP g on [e1, e2, e1 − e2]; the logit is g(a, b) − g(b, a).

    The comparisons need not be transitive. ``score`` defines an order: the logit against the mean
    embedding of the training photos, of which a running average is updated during training.

    Args:
        width: width W of an embedding.
        dropout: of the hidden layer, 0 <= x < 1, with the same mask for both orders.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * width, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1, bias=False)
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings [B, W] to logits [B]."""
        if self.training:
            self._update_mean((first.detach().mean(0) + second.detach().mean(0)) / 2)
        mask = F.dropout(first.new_ones(len(first), HIDDEN), self.dropout, self.training)
        return self._compare(first, second, mask) - self._compare(second, first, mask)

    def score(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, W] to scores [B]."""
        return self(embeddings, self.mean.expand_as(embeddings).contiguous())

    def _compare(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """g(first, second), [B]."""
        hidden = self.hidden(torch.cat([first, second, first - second], -1)).relu() * mask
        outputs: Tensor = self.out(hidden)[:, 0]
        return outputs

    @torch.no_grad()
    def _update_mean(self, mean: Tensor) -> None:
        # The mean of all batches at first, an exponential moving average later.
        self.seen += 1
        self.mean += (1 / self.seen).clamp(min=MOMENTUM) * (mean - self.mean)


class Siamese(nn.Module):
    """Pairs [B, 2, …] to logits [B] of P(first over second); ``score`` rates single photos.

    Tower and head compute in float32 in any precision, because in half precision many differences
    of scores would be ties.

    Args:
        tower: features to embeddings.
        head: embeddings to logits and scores.
    """

    def __init__(self, tower: Tower, head: BradleyTerry | PairMLP) -> None:
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
        """Photos [B, …] to scores [B], higher is better; for evaluation mode."""
        features = self.features(inputs[:, None])
        with torch.autocast(features.device.type, enabled=False):
            return self.head.score(*self.tower(features.float()[:, 0]))

    def export_form(self) -> NoReturn:
        """Raises UserError: ``score`` and ``forward`` would be two files."""
        raise UserError("RUN", "rankers of photos cannot be exported yet", "use research.load(RUN)")

    def features(self, inputs: Tensor) -> Tensor:
        """Inputs [B, K, …] to features [B, K, D]; here the inputs are features already."""
        return inputs


class SiameseImages(Siamese):
    """A ``Siamese`` on images [B, 2, 3, S, S], whose backbone takes both photos in one batch.

    Args:
        backbone: images [N, 3, S, S] to features [N, D].
        tower: see ``Siamese``.
        head: see ``Siamese``.
        freeze: ``none``, ``partial`` (all of the backbone but its last stage) or ``full``. Frozen
            modules stay in evaluation mode, so that their norms keep their statistics.
    """

    def __init__(
        self, backbone: nn.Module, tower: Tower, head: BradleyTerry | PairMLP, freeze: str
    ) -> None:
        super().__init__(tower, head)
        self.backbone = backbone
        from research.models import backbones  # timm, which frozen features do not need

        self.frozen = backbones.frozen_modules(backbone, freeze)
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
        """timm's ``group_matcher`` of the backbone, with ``backbone.`` before its patterns.

        Tower and head match no pattern and form the last group.

        Args:
            coarse: one group per stage instead of one per block.
        """
        matcher = getattr(self.backbone, "group_matcher", None)
        if matcher is None:
            raise UserError(
                "layer_decay",
                "layer_decay: this backbone does not list its layers",
                "use layer_decay=null",
            )
        from research.models import backbones

        return backbones.prefix_matcher("backbone", matcher(coarse=coarse))


def siamese_frozen(
    feature_sizes: Mapping[str, int], head: str, mlp_hidden_dims: Sequence[int], dropout: float
) -> Siamese:
    """Build a ranking network on features of frozen networks.

    Args:
        feature_sizes: widths by name, in the order in which they are concatenated.
        head: ``bradley_terry`` or ``mlp``.
        mlp_hidden_dims: widths of the shared tower's layers.
        dropout: after each layer, 0 <= x < 1.

    Raises:
        UserError: for an unknown head.
    """
    concat = FeatureConcat([*feature_sizes.values()])
    tower = Tower(concat, concat.width, mlp_hidden_dims, dropout)
    return Siamese(tower, _head(head, tower.width, dropout))


def siamese_e2e(
    backbone: str,
    pretrained: str | bool | None,
    freeze: str,
    head: str,
    mlp_hidden_dims: Sequence[int],
    dropout: float,
    image_size: int,
) -> SiameseImages:
    """Build a ranking network on images.

    Args:
        backbone: timm's name. The features are those of the second fully connected layer of VGG,
            and the pooled features of other networks.
        pretrained: of the backbone, see ``load_pretrained``.
        freeze: ``none``, ``partial`` or ``full``.
        head: ``bradley_terry`` or ``mlp``.
        mlp_hidden_dims: widths of the shared tower's layers; if empty, the head gets the features.
        dropout: after each layer of the tower, 0 <= x < 1. The backbone has no dropout, because
            it would drop different features of the two photos.
        image_size: S, in pixels.

    Raises:
        UserError: for an unknown value, or weights that do not fit.
    """
    from research.models import backbones
    from research.models.pretrained import load_pretrained

    network, features = backbones.create(backbone, image_size)
    load_pretrained(network, backbone, pretrained)
    tower = Tower(nn.Identity(), features, mlp_hidden_dims, dropout)
    return SiameseImages(network, tower, _head(head, tower.width, dropout), freeze)


def _head(name: str, width: int, dropout: float) -> BradleyTerry | PairMLP:
    if name not in HEADS:
        raise UserError("model.head", f"model.head={name}: expected one of {', '.join(HEADS)}")
    return BradleyTerry(width) if name == "bradley_terry" else PairMLP(width, dropout)
