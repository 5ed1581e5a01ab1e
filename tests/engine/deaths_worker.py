"""``train.py`` in which a process may die: ``torchrun … tests/engine/deaths_worker.py WORD…``.

The environment says what happens:
    ``DEATH``: how, in which process, at which call of the losses (``kill 1 4``), and a file that
        gets the time; if the file is there, nobody dies.
    ``ORDER``: the start of the names of files, one a process, with the samples of each batch.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from research.batch import Batch
from research.data.loader import EpochLoader
from research.engine import distributed
from research.tasks.task import LossTerms

KIND, PROCESS, CALL, TIME = os.environ.get("DEATH", "none 0 0 none").split()
forward = distributed.Losses.forward
epoch = EpochLoader.epoch
calls = 0


def recording(self: EpochLoader, *position: int) -> Iterator[Batch]:
    """The batches of an epoch."""
    for batch in epoch(self, *position):
        if self.sampler.train and "ORDER" in os.environ:
            with open(f"{os.environ['ORDER']}.{self.shard.rank}", "a", encoding="utf-8") as file:
                file.write(f"{json.dumps(batch.index.tolist())}\n")
        yield batch


def dying(self: distributed.Losses, batch: Any) -> LossTerms:
    """The losses of the network; or not."""
    global calls
    if batch is None and not calls:
        return forward(self, batch)  # that of ``distributed.parallel``
    calls += 1
    losses = forward(self, batch)
    if distributed.rank() == int(PROCESS) and calls == int(CALL) and not Path(TIME).exists():
        Path(TIME).write_text(str(time.time()), encoding="utf-8")
        if KIND == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if KIND == "exception":
            raise ZeroDivisionError("nothing to divide")
        if KIND == "launcher":
            os.kill(os.getppid(), signal.SIGTERM)
        if KIND == "infinite":
            infinite = {name: loss * torch.inf for name, loss in losses.items()}
            return LossTerms(infinite, losses.metrics)
    return losses


if __name__ == "__main__":
    distributed.Losses.forward = dying  # type: ignore[method-assign]
    EpochLoader.epoch = recording  # type: ignore[method-assign]
    sys.argv[0] = str(Path(__file__).parents[2] / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
