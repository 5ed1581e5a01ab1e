"""Which GPU a trial runs on, where a machine has several."""

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
def device_of_its_own(asked: str, folder: Path) -> Iterator[str]:
    """A GPU that no other trial of this machine uses, while there is one.

    Args:
        asked: the run's ``device``; only ``auto`` leaves the choice.
        folder: shared by all sweeps; who holds which GPU is said by locks in it.
    """
    count = torch.cuda.device_count() if asked == "auto" else 0
    if count < 2:
        yield asked
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        lock = FileLock(folder / f".{platform.node()}_cuda_{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield f"cuda:{number}"
        finally:
            lock.release()
        return
    log.warning("sweep: all %d GPUs have a trial; this one shares cuda:0", count)
    yield "cuda:0"
