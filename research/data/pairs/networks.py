"""Frozen networks and the preprocessing that each was trained with, from its own library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Final

import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from research.utils.errors import UserError
from research.utils.weights import state_dict

CLIP: Final = "ViT-B-32"
PLAIN: Final = ("clip", "resnet50.layer4", "resnet50.layer3", "vgg16", "quality")
"""Features by name; ``timm:NAME`` and ``clip:NAME`` give any other network."""
UNUSED_TEXT: Final = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class Recipe:
    """A network and its preprocessing.

    Attributes:
        architecture: says which network, for the key.
        transform: says which preprocessing, for the key.
        preprocess: a photo to [3, S, S] float32.
        build: makes the network, which gives [B, D] from [B, 3, S, S].
        size: D; null: to be found out.
        unit: vectors are scaled to length 1.
    """

    architecture: str
    transform: str
    preprocess: Callable[[Image.Image], Tensor]
    build: Callable[[], nn.Module]
    size: int | None
    unit: bool = False


class Visual(nn.Module):
    """The half of a CLIP that looks, under the names that its weights have in CLIP's files."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, photos: Tensor) -> Tensor:
        vectors: Tensor = self.visual(photos)
        return vectors


def recipe_of(spec: str) -> Recipe:
    """The network of a feature, see ``research.data.pairs.extractors.extractor``.

    Raises:
        UserError: when there is none.
    """
    kind, _, name = spec.partition(":")
    if kind == "clip":
        return _clip(spec, name or CLIP)
    if kind == "timm":
        return _timm(spec, name)
    if spec == "vgg16":
        return _torchvision(spec, _vgg16, torchvision.models.VGG16_Weights.IMAGENET1K_V1, 4096)
    sizes = {"layer3": 1024, "layer4": 2048}
    kind, _, layer = spec.partition(".")
    if kind == "resnet50" and layer in sizes:
        own = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
        return _torchvision(spec, partial(_resnet50, layer), own, sizes[layer])
    near = get_close_matches(spec, PLAIN, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PLAIN)} and timm:NAME"
    raise UserError("dataset.features", f"dataset.features: no feature {spec!r}", f"{hint}")


def width_of(recipe: Recipe) -> int:
    """How wide a network's vectors are, without its numbers."""
    photo = recipe.preprocess(Image.new("RGB", (64, 64)))[None]
    try:
        with torch.device("meta"), torch.no_grad():
            return int(recipe.build().eval()(photo.to("meta")).shape[1])
    except (RuntimeError, NotImplementedError):  # some networks compute numbers as they are built
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return int(recipe.build().eval()(photo).shape[1])


def fill(network: nn.Module, file: Path, name: str) -> None:
    """Load all of a network, of a file that may hold more.

    Raises:
        UserError: when a tensor is missing or of another shape.
    """
    state = state_dict(file, "dataset.feature_weights")
    own = network.state_dict()
    # Counts that old files lack, and that a network does not use outside training.
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    lacking = [key for key in needed if key not in state or state[key].shape != own[key].shape]
    if lacking:
        key = lacking[0]
        found = "it has " + "×".join(map(str, state[key].shape)) if key in state else "not there"
        raise UserError(
            "dataset.feature_weights",
            f"dataset.feature_weights: {name}: {file} lacks {len(lacking)} of {len(needed)} "
            f"tensors (the first: {key}, {found})",
            "give weights of the same architecture",
        )
    network.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _torchvision(spec: str, build: Callable[[], nn.Module], own: Any, size: int) -> Recipe:
    preset = own.transforms()
    return Recipe(f"torchvision {spec}", repr(preset), preset, build, size)


def _resnet50(layer: str) -> nn.Module:
    network = torchvision.models.resnet50()
    network.fc = nn.Identity()
    if layer == "layer3":
        network.layer4 = nn.Identity()
    return network


def _vgg16() -> nn.Module:
    network = torchvision.models.vgg16()
    network.classifier = network.classifier[:5]  # as far as the ReLU of the second layer, fc7
    return network


def _timm(spec: str, name: str) -> Recipe:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 3, 0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them"
        raise UserError(
            "dataset.features", f"dataset.features: {spec}: timm has no such network", f"{hint}"
        )
    try:
        record = timm.get_pretrained_cfg(name)
    except RuntimeError:
        raise UserError(
            "dataset.features",
            f"dataset.features: {spec}: timm knows no such tag of {architecture}",
        ) from None
    config = timm.data.resolve_data_config(
        {}, pretrained_cfg=record.to_dict() if record is not None else None
    )
    build = partial(timm.create_model, name, pretrained=False, num_classes=0)
    transform = timm.data.create_transform(**config)
    told = json.dumps(config, sort_keys=True)
    return Recipe(f"timm {architecture}", told, transform, build, None)


def _clip(spec: str, name: str) -> Recipe:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    # A name such as hf-hub:… would be fetched.
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None or "SigLIP" in name or "timm_model_name" in config["vision_cfg"]:
        known = [n for n in open_clip.list_models() if n.startswith(("ViT-B", "RN"))]
        near = get_close_matches(name, known, 3, 0.6) or [CLIP]
        raise UserError(
            "dataset.features",
            f"dataset.features: {spec}: open_clip has no such network with CLIP's preprocessing",
            f"did you mean {', '.join(near)}?",
        )
    wanted = PreprocessCfg(size=config["vision_cfg"]["image_size"])
    transform = image_transform_v2(wanted, is_train=False)
    told = json.dumps(asdict(wanted), sort_keys=True)
    build = partial(_visual, config)
    return Recipe(f"open_clip {name}", told, transform, build, config["embed_dim"], unit=True)


def _visual(config: dict[str, Any]) -> nn.Module:
    import open_clip

    whole = open_clip.CLIP(
        config["embed_dim"],
        config["vision_cfg"],
        UNUSED_TEXT,
        quick_gelu=config.get("quick_gelu", False),
    )
    return Visual(whole.visual)
