"""Frozen feature networks of torchvision, timm and open_clip, each with its own preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from research.utils.errors import UserError
from research.utils.weights import state_dict

CLIP: Final = "ViT-B-32"
NAMES: Final = ("clip", "resnet50.layer4", "resnet50.layer3", "vgg16", "quality")
"""Features by name; ``timm:NAME`` and ``clip:NAME`` select any other network."""
UNUSED_TEXT: Final = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class FeatureSpec:
    """A network and its preprocessing.

    Attributes:
        architecture: description of the network, for the cache key.
        transform: description of the preprocessing, for the cache key.
        preprocess: converts a photo to float32 [3, S, S].
        build: builds the network, which maps [B, 3, S, S] to [B, D].
        size: D; ``None`` if it is not known in advance.
        unit: scale vectors to length 1.
    """

    architecture: str
    transform: str
    preprocess: Callable[[Image.Image], Tensor]
    build: Callable[[], nn.Module]
    size: int | None
    unit: bool = False


class Visual(nn.Module):
    """The image encoder of CLIP, with the parameter names of CLIP's weight files."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, photos: Tensor) -> Tensor:
        features: Tensor = self.visual(photos)
        return features


def feature_spec(feature: str) -> FeatureSpec:
    """The network of a feature, see ``research.data.pairs.extractors.build_extractor``.

    Raises:
        UserError: for an unknown feature.
    """
    kind, _, name = feature.partition(":")
    if kind == "clip":
        return _clip(feature, name or CLIP)
    if kind == "timm":
        return _timm(feature, name)
    from torchvision.models import ResNet50_Weights, VGG16_Weights

    if feature == "vgg16":
        return _torchvision(feature, _vgg16, VGG16_Weights.IMAGENET1K_V1, 4096)
    sizes = {"layer3": 1024, "layer4": 2048}
    kind, _, layer = feature.partition(".")
    if kind == "resnet50" and layer in sizes:
        weights = ResNet50_Weights.IMAGENET1K_V1
        return _torchvision(feature, partial(_resnet50, layer), weights, sizes[layer])
    near = get_close_matches(feature, NAMES, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(NAMES)} and timm:NAME"
    raise UserError("dataset.features", f"dataset.features: no feature {feature!r}", hint)


def feature_size(spec: FeatureSpec) -> int:
    """D of a network, found without allocating its weights where possible."""
    photo = spec.preprocess(Image.new("RGB", (64, 64)))[None]
    try:
        with torch.device("meta"), torch.no_grad():
            return int(spec.build().eval()(photo.to("meta")).shape[1])
    except (RuntimeError, NotImplementedError):  # some networks compute values in their constructor
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return int(spec.build().eval()(photo).shape[1])


def load_weights(network: nn.Module, file: Path, name: str) -> None:
    """Load a network from a file, which may contain more tensors.

    Raises:
        UserError: if a tensor is missing or has another shape.
    """
    state = state_dict(file, "dataset.feature_weights")
    own = network.state_dict()
    # Old files lack these counters, which are used in training only.
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in state or state[key].shape != own[key].shape]
    if missing:
        key = missing[0]
        reason = "shape " + "×".join(map(str, state[key].shape)) if key in state else "missing"
        raise UserError(
            "dataset.feature_weights",
            f"dataset.feature_weights: {name}: {file} does not fit {len(missing)} of "
            f"{len(needed)} tensors (the first: {key}, {reason})",
            "set weights of the same architecture",
        )
    network.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _torchvision(
    feature: str, build: Callable[[], nn.Module], weights: Any, size: int
) -> FeatureSpec:
    preset = weights.transforms()
    return FeatureSpec(f"torchvision {feature}", repr(preset), preset, build, size)


def _resnet50(layer: str) -> nn.Module:
    from torchvision.models import resnet50

    network = resnet50()
    network.fc = nn.Identity()
    if layer == "layer3":
        network.layer4 = nn.Identity()
    return network


def _vgg16() -> nn.Module:
    from torchvision.models import vgg16

    network = vgg16()
    network.classifier = network.classifier[:5]  # up to the ReLU after fc7
    return network


def _timm(feature: str, name: str) -> FeatureSpec:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 3, 0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError(
            "dataset.features", f"dataset.features: {feature}: timm has no such network", hint
        )
    try:
        record = timm.get_pretrained_cfg(name)
    except RuntimeError:
        raise UserError(
            "dataset.features",
            f"dataset.features: {feature}: timm has no such tag of {architecture}",
            f"set timm:{architecture}",
        ) from None
    config = timm.data.resolve_data_config(
        {}, pretrained_cfg=record.to_dict() if record is not None else None
    )
    build = partial(timm.create_model, name, pretrained=False, num_classes=0)
    transform = timm.data.create_transform(**config)
    description = json.dumps(config, sort_keys=True)
    return FeatureSpec(f"timm {architecture}", description, transform, build, None)


def _clip(feature: str, name: str) -> FeatureSpec:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    # Only listed names: open_clip downloads names such as hf-hub:….
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None or "SigLIP" in name or "timm_model_name" in config["vision_cfg"]:
        known = [n for n in open_clip.list_models() if n.startswith(("ViT-B", "RN"))]
        near = get_close_matches(name, known, 3, 0.6) or [CLIP]
        raise UserError(
            "dataset.features",
            f"dataset.features: {feature}: open_clip has no such network with CLIP's preprocessing",
            f"did you mean {', '.join(near)}?",
        )
    preprocess = PreprocessCfg(size=config["vision_cfg"]["image_size"])
    transform = image_transform_v2(preprocess, is_train=False)
    description = json.dumps(asdict(preprocess), sort_keys=True)
    build = partial(_visual, config)
    size = config["embed_dim"]
    return FeatureSpec(f"open_clip {name}", description, transform, build, size, unit=True)


def _visual(config: dict[str, Any]) -> nn.Module:
    import open_clip

    clip = open_clip.CLIP(
        config["embed_dim"],
        config["vision_cfg"],
        UNUSED_TEXT,
        quick_gelu=config.get("quick_gelu", False),
    )
    return Visual(clip.visual)
