from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.data.warehouse import reused_memory
from research.data.warehouse.reused_memory import MOST, SMALLEST, empty

SIDE = 1024
assert SIDE * SIDE >= SMALLEST


@pytest.fixture(autouse=True)
def unused(monkeypatch: pytest.MonkeyPatch) -> dict[int, NDArray[np.uint8]]:
    found: dict[int, NDArray[np.uint8]] = {}
    monkeypatch.setattr(reused_memory, "_unused", found)
    return found


def batch(value: int, rows: int = SIDE) -> Tensor:
    array = empty((rows, SIDE), np.uint8)
    array[:] = value
    return torch.from_numpy(array)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_arrays_are_as_those_of_numpy(dtype: type) -> None:
    for shape in ((3,), (2, SIDE, SIDE)):
        array = empty(shape, dtype)
        wanted: NDArray[Any] = np.empty(shape, dtype)
        assert (array.shape, array.dtype, array.strides) == (shape, wanted.dtype, wanted.strides)
        assert array.flags.writeable
        assert array.flags.aligned


def test_memory_of_a_batch_that_is_gone_is_used_again() -> None:
    first = batch(1)
    address = first.data_ptr()
    second = batch(2)
    assert second.data_ptr() != address
    del first
    assert batch(3).data_ptr() == address
    assert batch(4, rows=SIDE).data_ptr() == address
    assert (second == 2).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[5:],
        lambda t: t.view(torch.int16),
        Tensor.numpy,
        Tensor.t,
        lambda t: t.numpy()[3],
    ],
    ids=["slice", "type", "array", "transposed", "row of an array"],
)
def test_memory_is_kept_as_long_as_something_shows_it(view: Callable[[Tensor], Any]) -> None:
    shown = torch.as_tensor(view(batch(7)))
    before = shown.clone()
    others = [batch(value) for value in range(3)]
    assert len(others) == 3
    assert shown.equal(before)


def test_little_memory_is_kept(unused: dict[int, NDArray[np.uint8]]) -> None:
    batches = [batch(value) for value in range(MOST + 3)]
    newest = [each.data_ptr() for each in batches[-MOST:]]
    while batches:
        del batches[0]
    assert [*unused] == newest
    assert empty((SMALLEST - 1,), np.uint8).base is None  # small arrays are NumPy's


def test_the_smallest_piece_that_is_large_enough_is_used() -> None:
    batches = [batch(0, rows=rows) for rows in (4 * SIDE, 2 * SIDE, SIDE)]
    addresses = [each.data_ptr() for each in batches]
    del batches
    assert batch(0, rows=SIDE + 1).data_ptr() == addresses[1]
    assert batch(0, rows=5 * SIDE).data_ptr() not in addresses


def test_threads_get_memory_of_their_own() -> None:
    def rounds(value: int) -> bool:
        kept = [batch(value) for _ in range(2)]
        for number in range(20):
            kept[number % 2] = batch(value)
            if not all(bool((each == value).all()) for each in kept):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(rounds, range(4)))
