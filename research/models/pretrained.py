"""Weights that others trained: from timm, torchvision or a file, into any of our networks."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn
from torchvision import models

from research.utils import weights
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

TIMM: Final = "timm"
TORCHVISION: Final = "torchvision"
SHOWN: Final = 3
"""How many tensors a line names before it counts the rest."""
WRAPPERS: Final = (
    "ema",
    "state_dict_ema",
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
)
"""Keys under which training scripts keep the weights in their checkpoints; averages come first."""


@dataclass(frozen=True)
class Loaded:
    """What became of a state dict.

    Attributes:
        tensors: (loaded, of the network).
        parameters: numbers in trainable parameters: (loaded, of the network).
        left: tensors of the network that keep their start, and why.
        unused: tensors of the source that found no place.
    """

    tensors: tuple[int, int]
    parameters: tuple[int, int]
    left: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        line = "loaded {} of {} tensors, {:,} of {:,} parameters".format(
            *self.tensors, *self.parameters
        )
        left = [f"{name}: {reason}" for name, reason in self.left.items()]
        line += f"; left at their start: {_some(left)}" if left else ""
        return line + (f"; unused: {_some(self.unused)}" if self.unused else "")


def load(
    network: nn.Module, name: str, source: str | None, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Fill a network with what fits by name and shape, and log what does not.

    Args:
        network: ours; a classifier of another width and a stem of ours keep their start.
        name: the network's, for the libraries.
        source: null for none, ``timm`` or ``torchvision`` (their weights of that name, which are
            downloaded), or a file, see ``of_file``.
        kwargs: more arguments of ``timm.create_model``, such as ``img_size``, to which timm fits
            its weights.

    Raises:
        UserError: when there are no such weights or none of them fits.
    """
    if source is None:
        return
    if source == TIMM:
        state = of_timm(name, kwargs or {})
    elif source == TORCHVISION:
        state = of_torchvision(name)
    else:
        state = of_file(Path(source))
    loaded = fill(network, state)
    found, of = loaded.parameters
    level = logging.INFO if 2 * found >= of else logging.WARNING
    log.log(level, "model.pretrained=%s: %s", source, loaded)


def of_file(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Checkpoints are unwrapped, names freed of ``module.`` and ``_orig_mod.``, and the names of
    torchvision's first DenseNet files (``norm.1``) brought up to date.

    Raises:
        UserError: for a file that holds no plain tensors.
    """
    content: Any = weights.read(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {_renamed(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(
            "model.pretrained", f"model.pretrained={path}: holds no tensors", "give a state dict"
        )
    return state


def of_timm(name: str, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """timm's own weights of a network of this name, downloaded on first use.

    Args:
        name: timm's name.
        kwargs: more arguments of ``timm.create_model``, such as ``img_size``.

    Raises:
        UserError: when there are none.
    """
    if not timm.is_model(name.partition(".")[0]) or not timm.models.is_model_pretrained(name):
        raise UserError(
            "model.pretrained",
            f"model.pretrained={TIMM}: timm has no weights of {name}",
            "give a file",
        )
    return _fetched(TIMM, name, lambda: timm.create_model(name, pretrained=True, **kwargs))


def of_torchvision(name: str) -> dict[str, Tensor]:
    """torchvision's own weights of a network of this name, downloaded on first use.

    Raises:
        UserError: when there are none.
    """
    if name not in models.list_models(module=models):
        raise UserError(
            "model.pretrained",
            f"model.pretrained={TORCHVISION}: torchvision has no weights of {name}",
            "give a file",
        )
    return _fetched(TORCHVISION, name, lambda: models.get_model(name, weights="DEFAULT"))


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> Loaded:
    """Load what fits by name and shape.

    A network behind a stem of ours (``backbone.`` before its names) takes the weights of the
    plain network, and the other way round.

    Raises:
        UserError: when no trainable parameter fits.
    """
    own = network.state_dict()
    placed: dict[str, Tensor] = {}
    left = dict.fromkeys(own, "not in the source")
    unused = []
    for key, value in state.items():
        names = (key, f"backbone.{key}", key.removeprefix("backbone."))
        place = next((name for name in names if name in own), None)
        if place is None:
            unused.append(key)
        elif value.shape == own[place].shape:
            placed[place] = value
            left.pop(place, None)
        else:
            left[place] = f"{_shape(value)} in the source, {_shape(own[place])} here"
    sizes = {key: p.numel() for key, p in network.named_parameters()}
    loaded = sum(size for key, size in sizes.items() if key in placed)
    if not loaded:
        first = next(iter(state))
        raise UserError(
            "model.pretrained",
            f"model.pretrained: none of the {len(state)} tensors there fits this network by name "
            f"and shape (the first is {first}, {_shape(state[first])})",
            "give weights of the same architecture",
        )
    with torch.no_grad():
        network.load_state_dict(placed, strict=False)
    return Loaded((len(placed), len(own)), (loaded, sum(sizes.values())), left, unused)


def _fetched(library: str, name: str, make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights of a network that a library makes and fills.

    Raises:
        UserError: when they cannot be had.
    """
    # Drawing a start that is overwritten must not change the run's own.
    with torch.random.fork_rng(devices=[]):
        try:
            return make().state_dict()
        except Exception as error:
            # Downloads fail in many ways; each library has exceptions of its own for them.
            raise UserError(
                "model.pretrained",
                f"model.pretrained={library}: cannot get the weights of {name} ({one_line(error)})",
                "give a local file",
            ) from None


def _renamed(key: str) -> str:
    """A tensor's name without wrappers, and as torchvision writes it today."""
    key = re.sub(r"(^|\.)(?:(?:module|_orig_mod)\.)+", r"\1", key)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)


def _some(entries: list[str]) -> str:
    more = len(entries) - SHOWN
    return ", ".join(entries[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: Tensor) -> str:
    return " × ".join(str(side) for side in tensor.shape) or "a number"
