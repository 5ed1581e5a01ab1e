"""Random generators: seeds, states for checkpoints, and a generator per batch."""

from __future__ import annotations

import math
import os
import random
from typing import Any, Final

import numpy as np
import torch

NUMPY_WORDS: Final = 624


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; ``deterministic`` selects deterministic algorithms."""
    seed_generators(seed)
    # Set in any case: torch reads it once, at the first matrix product of the process on a GPU, and
    # a later run of the process may be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed the generators of a process other than the main one, from step ``step``.

    Every process draws its own random numbers, such as those of dropout.
    """
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1)
    seed_generators(int(words[0]))


def generator_for(seed: int, epoch: int, batch: int) -> torch.Generator:
    """Generator of the device transform for one batch; depends only on the position in the run.

    Args:
        batch: number of the batch in the epoch; with several processes, that of its part.

    Always on the CPU, so that augmentation does not depend on the device.
    """
    words = np.random.SeedSequence((seed, epoch, batch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))


def rng_state() -> dict[str, Any]:
    """State of all global generators, in types that ``torch.load(weights_only=True)`` accepts."""
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    kind, keys, position, has_gauss, cached = numpy
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: for anything else.
    """
    version, words, gauss = state["python"]
    kind, keys, position, has_gauss, cached = state["numpy"]
    if not all(_is_half(value) for value in (gauss, cached)) or has_gauss not in (0, 1):
        raise ValueError("the state of the random generators is invalid")
    # NumPy would read beyond its words.
    if type(position) is not int or not 0 <= position <= len(keys) == NUMPY_WORDS:
        raise ValueError("the state of NumPy's random generator is invalid")
    if not all(type(word) is int and 0 <= word < 2**32 for word in (*words, *keys)):
        raise ValueError("the state of the random generators has no numbers of 32 bits")
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _is_half(value: Any) -> bool:
    """Whether it may be the second of a pair of normal numbers."""
    return value is None or (type(value) is float and math.isfinite(value))
