"""Random generators: seeds, states for checkpoints, and a generator per batch."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; ``deterministic`` selects deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)
    # Set in any case: torch reads it once, at the first matrix product of the process on a GPU, and
    # a later run of the process may be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def generator_for(seed: int, epoch: int, batch: int) -> torch.Generator:
    """Generator of the device transform for one batch; depends only on the position in the run.

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
    """Restore what ``rng_state`` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
