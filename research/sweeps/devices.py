"""Assignment of GPUs to the trials that run at the same time on one machine."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def exclusive_device(device: str, folder: Path) -> Iterator[str]:
    """Reserve a GPU that no other trial on this machine uses, if one is free.

    Args:
        device: the run's ``device``; only ``auto`` leaves the choice.
        folder: shared by all sweeps; its lock files show which GPUs are reserved.
    """
    count = torch.cuda.device_count() if device == "auto" else 0
    if count < 2:
        yield device
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        # Not by its number: CUDA_VISIBLE_DEVICES and Slurm give each process numbers of its own.
        uuid = torch.cuda.get_device_properties(number).uuid
        lock = FileLock(folder / f".{platform.node()}_cuda_{uuid}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield f"cuda:{number}"
        finally:
            lock.release()
        return
    log.warning("sweep: all %d GPUs are in use by trials; this trial shares cuda:0", count)
    yield "cuda:0"
