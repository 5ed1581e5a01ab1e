"""Weights and checkpoints from disk, read without running anything in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from research.utils.errors import UserError

SAFETENSORS = ".safetensors"


def read(path: Path) -> dict[str, Any]:
    """The content of a ``.safetensors`` file or of a PyTorch file of plain tensors, on the CPU.

    Raises:
        UserError: for a missing or damaged file, or one that holds pickled objects, which could
            run code of their own and are refused.
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
            "checkpoint", f"no file {path}", "give a run folder, a .pt or a .safetensors file"
        ) from None
    except UnpicklingError:
        raise UserError(
            "checkpoint",
            f"{path}: refused, it holds pickled objects that could run code, or is damaged",
            "only plain tensors are read",
        ) from None
    except Exception as error:
        # Bytes that are no pickle may make its reader fail in any way.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            "checkpoint", f"{path}: damaged file ({reason})", "use another one"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            "checkpoint", f"{path}: holds no state dict", "give a checkpoint or a dict of tensors"
        )
    return content


def metadata(path: Path) -> dict[str, str]:
    """What a ``.safetensors`` file that ``read`` could read says of itself; nothing, of others."""
    if path.suffix != SAFETENSORS:
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
