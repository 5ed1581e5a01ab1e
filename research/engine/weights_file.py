"""``final.safetensors`` and ``best.safetensors``: a checkpoint without what training needs.

The tensors are the evaluated weights; everything else is JSON in the metadata of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from research.utils.errors import Damaged
from research.utils.files import write_atomic

FORMAT = 2
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool,
    )
}  # fmt: skip
"""Allowed dtypes of tensors in the metadata."""
METADATA_KEY = "backbone_lab"
"""Entry of the metadata of the file with the rest of the checkpoint, as JSON."""
CHECKSUM = "sha256"
"""Entry of the metadata of the file."""


def with_header(
    tensors: dict[str, Tensor], metadata: Mapping[str, str], path: Path
) -> dict[str, Any]:
    """The checkpoint in a file of ``save``, from its tensors and metadata.

    Raises:
        Damaged: if it is none, or not the one that was written.
    """
    text = metadata[METADATA_KEY]
    try:
        header = json.loads(text)
        _ = header["format"]
        transform = {name: _tensor(**parts) for name, parts in header["transform"].items()}
        checked = header.pop(CHECKSUM, False) or CHECKSUM in metadata  # earlier files have none
        if checked and metadata.get(CHECKSUM) != checksum(tensors, text):
            raise ValueError("its checksum is wrong")
    except (
        ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError,
        OverflowError,
    ):  # fmt: skip
        raise Damaged(
            "checkpoint", f"{path}: damaged file (its metadata or checksum)", "use another file"
        ) from None
    return {**header, "transform": transform, "model": tensors}


def save(weights: Mapping[str, Tensor], path: Path, header: Mapping[str, Any]) -> None:
    """Write a file that ``checkpoint.load`` reads as a checkpoint without the optimizer.

    Args:
        weights: a state dict.
        path: the file.
        header: written to the metadata: ``config``, ``data``, ``state`` (plain values) and
            ``transform``, a state dict of small tensors.
    """
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()
    }
    transform = {name: _plain(tensor) for name, tensor in header["transform"].items()}
    text = json.dumps({"format": FORMAT, CHECKSUM: True, **header, "transform": transform})
    # Other readers of safetensors files expect the "format" of the tensors.
    metadata = {"format": "pt", METADATA_KEY: text, CHECKSUM: checksum(tensors, text)}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of tensors and the rest of the checkpoint, hexadecimal."""
    digest = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON; exact, since a float's shortest decimals read back as the same float."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "values": tensor.flatten().tolist()}


def _tensor(dtype: str, shape: list[int], values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=DTYPES[dtype]).reshape(shape)
