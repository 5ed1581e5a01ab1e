"""Weights and checkpoint files, read without running any code in them."""

from __future__ import annotations

import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from research.utils.conditions import explain
from research.utils.errors import Damaged, UserError, one_line

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


MAX_PICKLE: Final = 2**24
"""Bytes of the pickle in a PyTorch file: names, numbers and the history, without the tensors."""
MAX_VALUES: Final = 2_000_000
MAX_DEPTH: Final = 20
SHARED: Final = 4
"""Size of all tensors over the size of the file, at most: tensors may share their memory."""
SMALL: Final = 2**20
"""Bytes that tensors may have in any case."""
BUILTIN: Final = re.compile(rb"c(builtins|__builtin__)\n")
"""In a pickle: a function such as ``bytearray``, which takes any amount of memory."""
ENCRYPTED: Final = 1
FOLDER: Final = 0x10


def read(path: Path, key: str = "checkpoint") -> dict[str, Any]:
    """Read a ``.safetensors`` file, or a PyTorch file of plain tensors, onto the CPU.

    The checksums that ``torch.save`` writes are compared with the content, which ``torch.load``
    does not do.

    Args:
        path: the file.
        key: the configuration key or kind of file, for ``UserError.key``.

    Raises:
        Damaged: for a missing or damaged file.
        UserError: for one with pickled objects, which could run code and are refused.
    """
    with _damage_of(path, key):
        content = dict(load_file(path)) if path.suffix == SAFETENSORS else _load(path)
    if not isinstance(content, dict):
        raise UserError(
            key, f"{path}: contains no state dict", "use a checkpoint or a dict of tensors"
        )
    return content


def check(path: Path, key: str = "checkpoint") -> None:
    """Check that a file is one of ``torch.save``, with the right checksums, without loading it.

    Raises:
        Damaged: if it is not.
    """
    with _damage_of(path, key):
        _verify(path)


@contextmanager
def _damage_of(path: Path, key: str) -> Iterator[None]:
    """Raise ``Damaged`` for whatever the readers of a file raise; arguments as for ``read``."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            raise ValueError("not a regular file")
        yield
    except FileNotFoundError:
        raise Damaged(
            key, f"no file {path}", "use an existing .pt, .pth or .safetensors file"
        ) from None
    except UnpicklingError:
        refusal = UserError if zipfile.is_zipfile(path) else Damaged
        raise refusal(
            key,
            f"{path}: refused, it holds pickled objects that could run code, or is damaged",
            "use a file of plain tensors",
        ) from None
    except Exception as error:
        if explain(error) is not None:
            raise
        # Bytes that are no pickle may make its reader fail in any way.
        raise Damaged(
            key, f"{path}: damaged file ({one_line(error)})", "use another file"
        ) from None


def _load(path: Path) -> Any:
    """The content of a PyTorch file; its tensors own their memory.

    Raises:
        Exception: of any type if the file is damaged.
    """
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _verify(path)
    elif BUILTIN.search(path.read_bytes()):
        raise ValueError("it calls a function")
    with warnings.catch_warnings():
        # PyTorch warns of files that are not its own before it refuses them.
        warnings.simplefilter("ignore")
        # Without mmap, torch.load trusts the sizes that a zip file claims, and reads beyond it.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    return _owned(content, [SHARED * path.stat().st_size + SMALL], [MAX_VALUES])


def _verify(path: Path) -> None:
    """Compare the records of a zip file with their checksums (CRC-32).

    Raises:
        ValueError, BadZipFile: if they differ, or for what ``torch.save`` does not write and what
            could take any amount of memory.
    """
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
        if len({record.filename for record in records}) < len(records):
            raise ValueError("a record is there twice")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records are larger than the file")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & ENCRYPTED:
                raise ValueError(f"{record.filename} is compressed")
            if record.external_attr & FOLDER:  # torch.load would read nothing
                raise ValueError(f"{record.filename} is a folder")
            if record.filename.endswith("data.pkl") and record.file_size > MAX_PICKLE:
                raise ValueError(f"{record.filename} has {record.file_size:,} bytes")
            if record.filename.endswith("data.pkl") and BUILTIN.search(file.read(record)):
                raise ValueError("it calls a function")
        wrong = file.testzip()
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong.partition('/')[2]} is wrong")


def _owned(node: Any, bytes_left: list[int], values_left: list[int], depth: int = 0) -> Any:
    """A copy of plain values in which tensors own their memory.

    Args:
        node: values and containers of them.
        bytes_left: one number, of bytes that tensors may still have.
        values_left: one number, of values that may still come.
        depth: of ``node``.

    Raises:
        ValueError: for more than that, and tensors that are not dense or larger than their storage.
    """
    values_left[0] -= 1
    if values_left[0] < 0 or depth > MAX_DEPTH:
        raise ValueError("too many values, or too deep")
    if isinstance(node, Tensor):
        if type(node) not in (Tensor, torch.nn.Parameter) or not is_dense(node):
            raise ValueError("a tensor that is not dense")
        bytes_left[0] -= node.nbytes
        if bytes_left[0] < 0:
            raise ValueError("tensors larger than the file")
        return node.detach().clone()
    inner = (bytes_left, values_left, depth + 1)
    if isinstance(node, dict):
        # Not node.items(): a pickle can replace the methods of an OrderedDict.
        return {name: _owned(value, *inner) for name, value in dict.items(node)}
    if type(node) in (list, tuple):
        return type(node)(_owned(value, *inner) for value in node)
    return node


def is_dense(tensor: Tensor) -> bool:
    """Whether it is a usual tensor in memory: not sparse, quantized, nested or without data."""
    return not (
        tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested
    )


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
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if unnamed := [name for name in tensors if not isinstance(name, str)]:
        raise UserError(
            key,
            f"{path}: the tensor {unnamed[0]!r:.60} has a name that is no text",
            "use a file with a state dict",
        )
    state = {_clean(name): value for name, value in tensors.items()}
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
