"""Checkpoints of large networks without their tensors, and the tensors made again from a seed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

SUFFIX = ".skeleton"
LARGEST = 64
"""Elements of the largest tensor that is kept as it was."""
PLACE = "tensor left out"
DTYPES = {"F32": torch.float32, "I64": torch.int64}


def strip(path: Path) -> None:
    """Put a skeleton in the place of a checkpoint or a safetensors file."""
    target = path.with_name(path.name + SUFFIX)
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            target.write_bytes(file.read(length))
    else:
        content = torch.load(path, weights_only=True)
        torch.save(_mapped(content, "", _without), target)
    path.unlink()


def fill(root: Path) -> None:
    """Make every checkpoint below ``root`` whose skeleton lies there."""
    for source in sorted(root.rglob(f"*{SUFFIX}")):
        target = source.with_name(source.name.removesuffix(SUFFIX))
        if target.suffix == ".safetensors":
            header = json.loads(source.read_bytes())
            metadata = header.pop("__metadata__")
            tensors = {
                name: _drawn(name, DTYPES[entry["dtype"]], entry["shape"])
                for name, entry in header.items()
            }
            save_file(tensors, target, metadata)
        else:
            torch.save(_mapped(torch.load(source, weights_only=True), "", _with), target)
        source.unlink()


def _without(path: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() > LARGEST:
        return {PLACE: [str(value.dtype).removeprefix("torch."), list(value.shape)]}
    return value


def _with(path: str, value: Any) -> Any:
    if isinstance(value, dict) and PLACE in value:
        dtype, shape = value[PLACE]
        return _drawn(path, getattr(torch, dtype), shape)
    return value


def _drawn(name: str, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    """Small numbers that depend on the name alone; squares and variances are positive."""
    if dtype == torch.uint8:  # the state of a generator
        return torch.Generator().manual_seed(0).get_state()
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    drawn = np.random.default_rng([*name.encode()]).standard_normal(shape, np.float32)
    positive = name.endswith(("running_var", "exp_avg_sq"))
    return torch.from_numpy(np.abs(drawn) + 0.5 if positive else 0.05 * drawn).to(dtype)


def _mapped(node: Any, path: str, change: Callable[[str, Any], Any]) -> Any:
    changed = change(path, node)
    if changed is not node:
        return changed
    if isinstance(node, dict):
        return type(node)(
            (key, _mapped(value, f"{path}.{key}", change)) for key, value in node.items()
        )
    if isinstance(node, list | tuple):
        return type(node)(_mapped(value, f"{path}.{n}", change) for n, value in enumerate(node))
    return node


def files(root: Path) -> Iterator[Path]:
    """Checkpoints and weights below ``root``."""
    yield from (path for path in sorted(root.rglob("*")) if path.suffix in (".pt", ".safetensors"))
