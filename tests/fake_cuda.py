"""A CUDA device without a GPU: its tensors are fake, mixes with the CPU's are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from tests.conftest import ROOT

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
CODE = {"research": ROOT / "research", "torchvision": Path(torchvision.__file__).parent}
TORCH = {"torch": Path(torch.__file__).parent}


@dataclass(frozen=True)
class Read:
    """An operation for which the host waits for the device.

    Attributes:
        op: name of the operation.
        where: the innermost function of this project or torchvision, else of torch.
        training: whether it was outside of evaluation (``torch.inference_mode``).
    """

    op: str
    where: str
    training: bool


class FakeCuda(FakeTensorMode):
    """Inside, tensors on ``cuda`` are fake: they have shapes and types, but no values.

    Unlike in a ``FakeTensorMode``, tensors on the CPU are real. An operation that mixes devices
    raises as on a GPU. A value that is read on the host is 0, one whose size depends on values is
    as large as it can be; both are recorded.

    Attributes:
        reads: without repetitions.
    """

    avoid_device_init = True  # torch decides by torch.cuda.is_available, which tests may set

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.reads: set[Read] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        if not any(map(_on_cuda, leaves)):
            return func(*args, **kwargs)
        for leaf in leaves:
            if isinstance(leaf, torch.Generator) and leaf.device.type == "cpu":
                raise RuntimeError(f"{func}: a generator of the CPU for a tensor on cuda")
        if func in INDEXING:
            args = self._indices(func, *args)
        if func in READS:
            self._record(func)
            return READS[func](self, *args, **kwargs)
        if func in COPIES and not _to_cuda(func, args, kwargs):
            self._record(func)
            return _on_host(func, args, kwargs)
        if func in COPIES and not _from_cuda(func, args) and not _non_blocking(func, args, kwargs):
            self._record("blocking copy")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def fake(self, *size: int, dtype: torch.dtype) -> Tensor:
        with self:
            return torch.empty(size, dtype=dtype, device=CUDA)

    def _indices(self, func: Any, tensor: Tensor, indices: Any, *rest: Any) -> tuple[Any, ...]:
        """Arguments of an indexing operation with integers in the place of masks."""
        found: list[Any] = []
        masks = 0
        for index in indices:
            if index is not None and index.device not in (tensor.device, torch.device("cpu")):
                raise RuntimeError(f"{func}: {index.device} indices of a tensor on {tensor.device}")
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                masks += 1
                count = index.numel()
                found += [self.fake(count, dtype=torch.int64) for _ in range(index.dim())]
            else:
                found.append(index)
        # A single value is written by masked_fill, which does not count the mask.
        fill = func is not aten.index.Tensor and masks == 1 and rest[0].numel() == 1
        if masks and not fill:
            self._record(func)
        if func is not aten.index.Tensor and rest[0].dim() and rest[0].device != tensor.device:
            raise RuntimeError(f"{func}: {rest[0].device} values for a tensor on {tensor.device}")
        return (tensor, found, *rest)

    def _record(self, func: Any) -> None:
        training = not torch.is_inference_mode_enabled()
        self.reads.add(Read(str(func).removesuffix(".default"), _place(), training))


def _nms(mode: FakeCuda, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    if boxes.device != scores.device:
        raise RuntimeError(f"nms: boxes on {boxes.device}, scores on {scores.device}")
    return mode.fake(len(boxes), dtype=torch.int64)


INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
COPIES = {aten._to_copy.default, aten.copy_.default}
READS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: lambda mode, x: torch.ones((), dtype=x.dtype).item(),
    aten.equal.default: lambda mode, x, y: False,
    aten.nonzero.default: lambda mode, x: mode.fake(x.numel(), x.dim(), dtype=torch.int64),
    aten.masked_select.default: lambda mode, x, mask: mode.fake(x.numel(), dtype=x.dtype),
    aten.bincount.default: lambda mode, x, weights=None, minlength=0: mode.fake(
        minlength, dtype=torch.int64
    ),
    torch.ops.torchvision.nms.default: _nms,
}


def _on_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, FakeTensor)


def _to_cuda(func: Any, args: Sequence[Any], kwargs: Any) -> bool:
    if func is aten.copy_.default:
        return args[0].device.type == "cuda"
    return kwargs.get("device", CUDA).type == "cuda"


def _from_cuda(func: Any, args: Sequence[Any]) -> bool:
    return _on_cuda(args[1] if func is aten.copy_.default else args[0])


def _non_blocking(func: Any, args: Sequence[Any], kwargs: Any) -> bool:
    return bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _on_host(func: Any, args: Sequence[Any], kwargs: Any) -> Tensor:
    """What a copy to the CPU returns: zeros."""
    if func is aten.copy_.default:
        return args[0]
    return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


def _place() -> str:
    """The innermost function of ``CODE``, else of torch outside of its tensor classes."""
    for code in (CODE, TORCH):
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            for name, folder in code.items():
                if path.is_relative_to(folder) and "_subclasses" not in path.parts:
                    module = ".".join((name, *path.relative_to(folder).with_suffix("").parts))
                    return f"{module}.{frame.f_code.co_qualname}"
            frame = frame.f_back
    return "?"
