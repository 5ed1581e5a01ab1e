"""A CUDA device without a GPU: its tensors are fake, mixes with the CPU's are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import ROOT

aten = torch.ops.aten
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
CODE = {
    "research": str(ROOT / "research"),
    "torchvision": str(Path(torchvision.__file__).parent),
}
COPY = "blocking copy"


@dataclass(frozen=True, order=True)
class Read:
    """An operation for which the host waits for the device.

    Attributes:
        op: name of the operation; ``COPY`` for a copy to the device without ``non_blocking``.
        where: the innermost function of this project or of torchvision.
        evaluation: whether it was in ``torch.inference_mode``.
    """

    op: str
    where: str
    evaluation: bool = False


class FakeCuda(FakeTensorMode):
    """Inside, tensors on ``cuda`` are fake: they have shapes and types, but no values.

    Unlike in a ``FakeTensorMode``, tensors on the CPU are real. An operation that mixes devices
    raises as on a GPU. What the host reads is 0 in training (no gradient has overflowed) and 1 in
    evaluation (such as the size of a picture), a size that depends on values is as large as it can
    be; both are recorded.

    Attributes:
        reads: what the host had to wait for, without repetitions.
    """

    avoid_device_init = True  # torch decides by torch.cuda.is_available, which tests set

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.reads: set[Read] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:  # composite operations arrive undivided in inference mode
                return func.decompose(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        if not any(map(_on_cuda, leaves)):
            return func(*args, **kwargs)
        for leaf in leaves:
            if isinstance(leaf, torch.Generator):
                raise RuntimeError(f"{func}: a generator on {leaf.device} for a tensor on cuda")
        if func in FUSED:  # in place; torch has no form of them for fake tensors
            if not all(_on_cuda(leaf) for leaf in leaves if isinstance(leaf, Tensor)):
                raise RuntimeError(f"{func}: tensors on cuda and on cpu")
            return None
        if func in INDEXING:
            args = self._indexing(func, *args)
        if func in READS:
            self._record(func)
            return READS[func](self, *args, **kwargs)
        if func in COPIES:
            source, target, non_blocking = COPIES[func](*args, **kwargs)
            if not _on_cuda(target):
                self._record(func)
                dtype = kwargs.get("dtype") or source.dtype
                return target if isinstance(target, Tensor) else _read(source.shape, dtype)
            if not _on_cuda(source):
                if not non_blocking:
                    self._record(COPY)
                if func is aten._to_copy.default:  # torch's conversion of real tensors is slow
                    dtype = kwargs.get("dtype") or source.dtype
                    with self:
                        return torch.empty_strided(
                            source.shape, source.stride(), dtype=dtype, device=CUDA
                        )
        return super().__torch_dispatch__(func, types, args, kwargs)

    def empty(self, *size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        with self:
            return torch.empty(size, dtype=dtype, device=CUDA)

    def _indexing(self, func: Any, tensor: Tensor, indices: Any, *rest: Any) -> tuple[Any, ...]:
        """Arguments of an indexing operation, with integers in the place of masks."""
        known = [index for index in indices if index is not None]
        masks = [index for index in known if index.dtype in (torch.bool, torch.uint8)]
        for index in known:
            if index.device != CPU and index.device != tensor.device:
                raise RuntimeError(f"{func}: indices on {index.device} of {tensor.device}")
        if rest and rest[0].dim() and rest[0].device != tensor.device:
            raise RuntimeError(f"{func}: values on {rest[0].device} for {tensor.device}")
        if any(index.device == CPU for index in known) and _on_cuda(tensor):
            self._record(COPY)
        # One value is written by masked_fill, which does not count the mask.
        if masks and not (rest and len(masks) == 1 and rest[0].numel() == 1):
            self._record(func)
        integers: list[Any] = []
        for index in indices:
            if any(index is mask for mask in masks):
                integers += [self.empty(index.numel()) for _ in range(index.dim())]
            else:
                integers.append(index)
        return (tensor, integers, *rest)

    def _record(self, func: Any) -> None:
        name = func if isinstance(func, str) else func.name().replace("::", ".")
        self.reads.add(Read(name, place(), torch.is_inference_mode_enabled()))


class CountReads(TorchDispatchMode):
    """Records reads of tensors of any device, such as those of a backward pass on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: set[Read] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in READS:
            self.reads.add(Read(func.name().replace("::", "."), place()))
        return func(*args, **(kwargs or {}))


def _nms(mode: FakeCuda, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    if boxes.device != scores.device:
        raise RuntimeError(f"nms: boxes on {boxes.device}, scores on {scores.device}")
    return mode.empty(len(boxes))


FUSED = {aten._fused_sgd_.default, aten._fused_adagrad_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
COPIES: dict[Any, Callable[..., tuple[Tensor, Any, bool]]] = {
    aten._to_copy.default: lambda x, device=CUDA, non_blocking=False, **_: (
        x,
        device,
        non_blocking,
    ),
    aten.copy_.default: lambda target, x, non_blocking=False: (x, target, non_blocking),
}
READS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: lambda mode, x: _read((), x.dtype).item(),
    aten.equal.default: lambda mode, x, y: True,
    aten.nonzero.default: lambda mode, x: mode.empty(x.numel(), x.dim()),
    aten.masked_select.default: lambda mode, x, mask: mode.empty(x.numel(), dtype=x.dtype),
    aten.bincount.default: lambda mode, x, weights=None, minlength=0: mode.empty(minlength),
    torch.ops.torchvision.nms.default: _nms,
}
"""Operations that wait for the device, and what they return."""


def _read(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, int(torch.is_inference_mode_enabled()), dtype=dtype)


def _on_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, FakeTensor)


def place() -> str:
    """The innermost function of ``CODE``."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        for name, folder in CODE.items():
            if file.startswith(folder):
                module = ".".join((name, *Path(file).relative_to(folder).with_suffix("").parts))
                return f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return ""


class CpuGenerator(torch.Generator):
    """A generator on the CPU, whatever device is asked for."""

    def __new__(cls, device: Any = "cpu") -> CpuGenerator:
        return super().__new__(cls, device="cpu")


def copied(self: FakeTensor, memo: Any) -> Tensor:
    """``FakeTensor.__deepcopy__``: torch's own looks for the memory."""
    values = self.detach().clone()
    return nn.Parameter(values, self.requires_grad) if isinstance(self, nn.Parameter) else values
