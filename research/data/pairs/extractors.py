"""Feature extractors of photos: frozen networks, and hand-crafted quality measures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import ClassVar, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from research.data.image_modes import to_rgb
from research.data.pairs.networks import (
    FeatureSpec,
    feature_size,
    feature_spec,
    load_weights,
)
from research.data.pairs.quality import QUALITY, quality_vector
from research.utils.errors import UserError

log = logging.getLogger(__name__)

VERSION: Final = 1  # increase it whenever the features of the same photos change
SEED: Final = 0
"""Seed of networks without weights."""
Photo = Image.Image | NDArray[np.uint8]
"""A PIL image of any mode, or uint8 [H, W, 3]."""


class Extractor(Protocol):
    """Computes features: ``extractor(photos)`` is ``embed([preprocess(p) for p in photos])``.

    Attributes:
        name: name in the configuration.
        size: length of a feature.
        key: hexadecimal cache key; extractors whose features can differ have different keys.
        specification: what the key stands for, in words.
    """

    name: str

    @property
    def size(self) -> int: ...

    @property
    def key(self) -> str: ...

    @property
    def specification(self) -> dict[str, str]: ...

    def preprocess(self, photo: Photo) -> Tensor:
        """Preprocess one photo; thread-safe."""
        ...

    def embed(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features [n, size] of preprocessed photos, float32 on the CPU."""
        ...

    def release(self) -> None:
        """Free the network; ``embed`` builds it again if needed."""
        ...

    def __call__(self, photos: Sequence[Photo]) -> Tensor: ...


def build_extractor(
    feature: str, weights: str | None = None, device: torch.device | None = None
) -> Extractor:
    """The extractor of a feature.

    Args:
        feature: ``clip`` (ViT-B/32; size 512), ``clip:NAME`` (any network of open_clip with CLIP's
            own preprocessing, such as ``ViT-B-32-quickgelu`` for OpenAI's weights),
            ``resnet50.layer4`` (2048), ``resnet50.layer3`` (1024), ``vgg16`` (fc7; 4096),
            ``quality`` (see ``research.data.pairs.quality``) or ``timm:NAME``.
        weights: file of weights; ``None`` for reproducible random weights, with a warning.
        device: device of the network; ``None`` for a GPU if there is one.

    Raises:
        UserError: for an unknown feature or a missing file.
    """
    if feature == "quality":
        if weights is not None:
            raise UserError(
                "dataset.feature_weights",
                f"dataset.feature_weights: {feature} has no weights",
                f"remove {feature} from it",
            )
        return QualityExtractor()
    spec = feature_spec(feature)
    file = None if weights is None else Path(weights)
    if file is not None and not file.is_file():
        raise UserError(
            "dataset.feature_weights",
            f"dataset.feature_weights: {feature}: no file {file}",
            "set the file of a state dict",
        )
    if file is None:
        log.warning(
            "feature %s: computed by a network with random weights; set a file of weights in "
            "dataset.feature_weights",
            feature,
        )
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return NetworkExtractor(feature, spec, file, device)


class QualityExtractor:
    """The measures of ``research.data.pairs.quality``, at the photo's own size."""

    name = "quality"
    size = len(QUALITY)
    key = sha256(repr(("quality", QUALITY, VERSION)).encode()).hexdigest()[:32]
    specification: ClassVar[dict[str, str]] = {"network": " ".join(QUALITY)}

    def preprocess(self, photo: Photo) -> Tensor:
        return torch.from_numpy(quality_vector(np.asarray(_to_rgb(photo))))

    def embed(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(inputs)) if inputs else torch.empty(0, self.size)

    def release(self) -> None:
        pass

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return self.embed([self.preprocess(photo) for photo in photos])


class NetworkExtractor:
    """A frozen network in float32, built on the first call of ``embed``."""

    def __init__(self, name: str, spec: FeatureSpec, weights: Path | None, device: torch.device):
        self.name = name
        self.spec = spec
        self.weights = weights
        self.device = device
        self._network: nn.Module | None = None

    @cached_property
    def size(self) -> int:
        return self.spec.size or feature_size(self.spec)

    @cached_property
    def key(self) -> str:
        parts = *self.specification.values(), "float32", VERSION
        return sha256(repr(parts).encode()).hexdigest()[:32]

    @cached_property
    def specification(self) -> dict[str, str]:
        if self.weights is None:
            weights = f"random {SEED} of torch {torch.__version__}"
        else:
            with self.weights.open("rb") as file:
                weights = file_digest(file, "sha256").hexdigest()
        spec = self.spec
        return {"network": spec.architecture, "preprocessing": spec.transform, "weights": weights}

    def preprocess(self, photo: Photo) -> Tensor:
        return self.spec.preprocess(_to_rgb(photo))

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Tensor]) -> Tensor:
        if not inputs:
            return torch.empty(0, self.size)
        if self._network is None:
            self._network = self._build()
        # Cached features are shared by all devices: no TF32, which rounds to 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features = self._network(torch.stack(list(inputs)).to(self.device))
        if self.spec.unit:
            features = F.normalize(features, dim=1)
        # A copy that is not an inference tensor, so that autograd can use it.
        return torch.empty(features.shape).copy_(features)

    def release(self) -> None:
        self._network = None

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return self.embed([self.preprocess(photo) for photo in photos])

    def _build(self) -> nn.Module:
        # Leaves the global generators of the run alone; torch.manual_seed would set those of GPUs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            network = self.spec.build()
        if self.weights is not None:
            load_weights(network, self.weights, self.name)
        return network.eval().requires_grad_(False).to(self.device)


def _to_rgb(photo: Photo) -> Image.Image:
    return to_rgb(Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo)
