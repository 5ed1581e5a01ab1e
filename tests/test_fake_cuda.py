"""``tests.fake_cuda``: what it refuses and what it records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from tests.fake_cuda import COPY, CUDA, FakeCuda

REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda cuda, cpu: cuda + cpu,
    "linear": lambda cuda, cpu: F.linear(cuda, cpu[:3]),
    "cat": lambda cuda, cpu: torch.cat([cuda, cpu]),
    "where": lambda cuda, cpu: torch.where(cuda > 0, cuda, cpu),
    "in place": lambda cuda, cpu: cpu.add_(cuda),
    "indices on the device": lambda cuda, cpu: cpu[cuda[0].long()],
    "values on the host": lambda cuda, cpu: cuda.__setitem__(cuda > 0, cpu[0]),
    "a mask of the host's values": lambda cuda, cpu: cpu.__setitem__(cpu > 0, cuda[0]),
    "a fused optimizer": lambda cuda, cpu: torch._fused_sgd_(
        [cuda], [cpu], [], weight_decay=0.0, momentum=0.0, lr=0.1, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=False,
    ),
    "nms": lambda cuda, cpu: nms(cuda, cpu[:, 0], 0.5),
    "a generator": lambda cuda, cpu: torch.rand(3, generator=torch.Generator(), device=CUDA),
    "numpy": lambda cuda, cpu: cuda.numpy(),
}  # fmt: skip
ALLOWED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | None]] = {
    "a number of the host": (lambda cuda, cpu: cuda * cpu[0, 0], None),
    "item": (lambda cuda, cpu: cuda[0, 0].item(), "aten._local_scalar_dense"),
    "float": (lambda cuda, cpu: float(cuda.sum()), "aten._local_scalar_dense"),
    "bool": (lambda cuda, cpu: bool((cuda > 0).all()), "aten._local_scalar_dense"),
    "tolist": (lambda cuda, cpu: cuda.tolist(), "aten._local_scalar_dense"),
    "range": (lambda cuda, cpu: range(cuda.long().max()), "aten._local_scalar_dense"),
    "cpu": (lambda cuda, cpu: cuda.cpu() + cpu, "aten._to_copy"),
    "copy": (lambda cuda, cpu: cpu.copy_(cuda), "aten.copy_"),
    "nonzero": (lambda cuda, cpu: cuda.nonzero(), "aten.nonzero"),
    "where": (lambda cuda, cpu: torch.where(cuda > 0)[0], "aten.nonzero"),
    "mask": (lambda cuda, cpu: cuda[cuda[:, 0] > 0], "aten.index.Tensor"),
    "write by mask": (
        lambda cuda, cpu: cuda.__setitem__(cuda[:, 0] > 0, cuda[:1]), "aten.index_put_",
    ),
    "one value by mask": (lambda cuda, cpu: cuda.__setitem__(cuda > 0, 0.0), None),
    "equal": (lambda cuda, cpu: torch.equal(cuda, cuda), "aten.equal"),
    "to": (lambda cuda, cpu: cpu.to(CUDA), COPY),
    "non-blocking": (lambda cuda, cpu: cpu.to(CUDA, non_blocking=True), None),
    "a list": (lambda cuda, cpu: cuda.new_tensor([1.0, 2.0]), COPY),
    "indices of the host": (lambda cuda, cpu: cuda[[0, 2]], COPY),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_fake_device_refuses(name: str) -> None:
    cpu = torch.ones(4, 4)
    with FakeCuda(), pytest.raises(RuntimeError, match=r"devices|on cpu|on cuda|numpy"):
        REFUSED[name](cpu.to(CUDA), cpu)


@pytest.mark.parametrize("name", ALLOWED)
def test_the_fake_device_records(name: str) -> None:
    act, op = ALLOWED[name]
    cpu = torch.ones(4, 4)
    with FakeCuda() as mode:
        cuda = cpu.to(CUDA, non_blocking=True)
        act(cuda, cpu)
    assert {read.op for read in mode.reads} == ({op} if op else set())
