"""What computes a feature of photos: CLIP, torchvision's networks, any of timm, measures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from research.data.pairs.networks import Recipe, fill, recipe_of, width_of
from research.data.pairs.quality import QUALITY, vector
from research.data.readers import to_rgb
from research.utils.errors import UserError

log = logging.getLogger(__name__)

RECIPE: Final = 1  # raise it whenever the same photos would give other numbers
SEED: Final = 0
"""Draws the networks that are given no weights."""
Photo = Image.Image | NDArray[np.uint8]
"""A PIL image of any mode, or uint8 [H, W, 3]."""


class Extractor(Protocol):
    """Photos to vectors: ``extractor(photos)`` is ``embed([ready(photo) for photo in photos])``.

    Attributes:
        name: as in the configuration.
        size: width of a vector.
        key: hexadecimal; another one wherever the same photo may give another vector.
    """

    name: str

    @property
    def size(self) -> int: ...

    @property
    def key(self) -> str: ...

    def ready(self, photo: Photo) -> Tensor:
        """One photo preprocessed; may be called from several threads."""
        ...

    def embed(self, ready: Sequence[Tensor]) -> Tensor:
        """[n, size] float32 on the CPU."""
        ...

    def release(self) -> None:
        """Let go of what ``embed`` holds in memory; it is made again when it is needed."""
        ...

    def __call__(self, photos: Sequence[Photo]) -> Tensor: ...


def extractor(
    spec: str, weights: str | None = None, device: torch.device | None = None
) -> Extractor:
    """What computes a feature.

    Args:
        spec: ``clip`` (ViT-B/32; 512), ``clip:NAME`` (any of open_clip with CLIP's own
            preprocessing, such as ``ViT-B-32-quickgelu`` for OpenAI's weights),
            ``resnet50.layer4`` (2048), ``resnet50.layer3`` (1024), ``vgg16`` (fc7; 4096),
            ``quality`` (see ``research.data.pairs.quality``) or ``timm:NAME``.
        weights: a file; null: random ones, always the same, and a warning.
        device: where networks run; null: a GPU where there is one.

    Raises:
        UserError: when there is no such feature or no such file.
    """
    if spec == "quality":
        if weights is not None:
            raise UserError(
                "dataset.feature_weights",
                f"dataset.feature_weights: {spec} has none",
                "leave it out",
            )
        return QualityExtractor()
    recipe = recipe_of(spec)
    file = None if weights is None else Path(weights)
    if file is not None and not file.is_file():
        raise UserError(
            "dataset.feature_weights",
            f"dataset.feature_weights: {spec}: no file {file}",
            "give a state dict",
        )
    if file is None:
        log.warning(
            "feature %s: without weights a random network computes it; name a file of weights in "
            "dataset.feature_weights",
            spec,
        )
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return NetworkExtractor(spec, recipe, file, device)


class QualityExtractor:
    """The measures of ``research.data.pairs.quality``, of the whole photo at its own size."""

    name = "quality"
    size = len(QUALITY)
    key = sha256(repr(("quality", QUALITY, RECIPE)).encode()).hexdigest()[:32]

    def ready(self, photo: Photo) -> Tensor:
        return torch.from_numpy(vector(np.asarray(_rgb(photo))))

    def embed(self, ready: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(ready)) if ready else torch.empty(0, self.size)

    def release(self) -> None:
        pass

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return self.embed([self.ready(photo) for photo in photos])


class NetworkExtractor:
    """A frozen network, in float32; it is built when the first vector is asked for."""

    def __init__(self, name: str, recipe: Recipe, weights: Path | None, device: torch.device):
        self.name = name
        self.recipe = recipe
        self.weights = weights
        self.device = device
        self._network: nn.Module | None = None

    @cached_property
    def size(self) -> int:
        return self.recipe.size or width_of(self.recipe)

    @cached_property
    def key(self) -> str:
        if self.weights is None:
            weights = f"random {SEED} of torch {torch.__version__}"
        else:
            with self.weights.open("rb") as file:
                weights = file_digest(file, "sha256").hexdigest()
        told = self.recipe.architecture, self.recipe.transform, weights, "float32", RECIPE
        return sha256(repr(told).encode()).hexdigest()[:32]

    def ready(self, photo: Photo) -> Tensor:
        return self.recipe.preprocess(_rgb(photo))

    @torch.inference_mode()
    def embed(self, ready: Sequence[Tensor]) -> Tensor:
        if not ready:
            return torch.empty(0, self.size)
        if self._network is None:
            self._network = self._build()
        # A key holds on every device, so the GPU must not round to 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            vectors = self._network(torch.stack(list(ready)).to(self.device))
        if self.recipe.unit:
            vectors = F.normalize(vectors, dim=1)
        # Ordinary tensors, which may take part in training.
        return torch.empty(vectors.shape).copy_(vectors)

    def release(self) -> None:
        self._network = None

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return self.embed([self.ready(photo) for photo in photos])

    def _build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the run's own chance stays as it is
            torch.manual_seed(SEED)
            network = self.recipe.build()
        if self.weights is not None:
            fill(network, self.weights, self.name)
        return network.eval().requires_grad_(False).to(self.device)


def _rgb(photo: Photo) -> Image.Image:
    return to_rgb(Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo)
