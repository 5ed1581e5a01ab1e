"""Weights and checkpoint files, read without running any code in them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from research.utils.conditions import explain
from research.utils.errors import UserError

SAFETENSORS: Final = ".safetensors"
WRAPPERS: Final = (
    "ema",
    "state_dict_ema",
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
)
"""Keys under which training scripts store the weights in a checkpoint; averaged weights first."""


def read(path: Path, key: str = "checkpoint") -> dict[str, Any]:
    """Read a ``.safetensors`` file, or a PyTorch file of plain tensors, onto the CPU.

    Args:
        path: the file.
        key: the configuration key or kind of file, for ``UserError.key``.

    Raises:
        UserError: for a missing or damaged file, or one with pickled objects, which could run
            code and are refused.
    """
    try:
        if path.suffix == SAFETENSORS:
            return dict(load_file(path))
        with warnings.catch_warnings():
            # PyTorch warns of files that are not its own before it refuses them.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            key, f"no file {path}", "use an existing .pt, .pth or .safetensors file"
        ) from None
    except UnpicklingError:
        raise UserError(
            key,
            f"{path}: refused, it holds pickled objects that could run code, or is damaged",
            "use a file of plain tensors",
        ) from None
    except Exception as error:
        if explain(error) is not None:
            raise
        # Bytes that are no pickle may make its reader fail in any way.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(key, f"{path}: damaged file ({reason})", "use another file") from None
    if not isinstance(content, dict):
        raise UserError(
            key, f"{path}: contains no state dict", "use a checkpoint or a dict of tensors"
        )
    return content


def state_dict(path: Path, key: str) -> dict[str, Tensor]:
    """The state dict in a weights file or in a checkpoint of another training script.

    Checkpoints are unwrapped, the prefixes ``module.`` and ``_orig_mod.`` are removed, and the
    names in torchvision's first DenseNet files (``norm.1``) are replaced by today's (``norm1``).

    Args:
        path: a ``.safetensors``, ``.pt`` or ``.pth`` file.
        key: the configuration key of the file, for ``UserError.key``.

    Raises:
        UserError: if the file cannot be read or contains no tensors.
    """
    content: Any = read(path, key)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {_clean(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(key, f"{path}: contains no tensors", "use a file with a state dict")
    return state


def _clean(name: str) -> str:
    """A tensor's name without the prefixes of wrappers, as torchvision writes it today."""
    name = re.sub(r"(^|\.)(?:(?:module|_orig_mod)\.)+", r"\1", name)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def shape_text(tensor: Tensor) -> str:
    """The shape of a tensor for a message, such as ``64 × 3 × 7 × 7``."""
    return " × ".join(str(size) for size in tensor.shape) or "a number"


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; empty for other formats."""
    if path.suffix != SAFETENSORS:
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
