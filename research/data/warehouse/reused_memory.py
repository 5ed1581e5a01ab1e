"""Memory for batches, used again when a batch is no longer needed.

The system clears new memory page by page, and large arrays go back to it when they are freed. With
batches of a store, whose reading is nothing but copying, that takes a third of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final
from weakref import finalize

import numpy as np
from numpy.typing import DTypeLike, NDArray

SMALLEST: Final = 2**20
"""Bytes from which memory is kept; smaller arrays are left to the allocator."""
MOST: Final = 4
"""Pieces of unused memory that are kept; the one that has been unused longest is freed first."""
_unused: dict[int, NDArray[np.uint8]] = {}
"""By address, oldest first. Batches are dropped in any thread, so each access is one operation."""


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """As ``np.empty``. The memory is used again when neither the array nor a tensor of it is left.

    A view that NumPy makes of the array does not keep it: pass it to ``torch.from_numpy`` itself.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    memory = _of_size(size)
    array: NDArray[Any] = np.ndarray(shape, dtype, memory)
    finalize(array, _keep, memory).atexit = False
    return array


def _of_size(size: int) -> NDArray[np.uint8]:
    """The smallest unused piece that is large enough, or a new one."""
    fitting = [(piece.nbytes, key) for key, piece in [*_unused.items()] if piece.nbytes >= size]
    found = _unused.pop(min(fitting)[1], None) if fitting else None
    return np.empty(size, np.uint8) if found is None else found


def _keep(memory: NDArray[np.uint8]) -> None:
    _unused[memory.ctypes.data] = memory
    for key in [*_unused][:-MOST]:
        _unused.pop(key, None)
