"""``train.py`` in which a process dies: ``python tests/engine/deaths_worker.py WORD…``.

The environment variable ``DEATH`` says how, in which process, and at which call of the losses:
``kill 1 4``.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from research.engine import distributed

KIND, PROCESS, CALL = (os.environ.get("DEATH") or "none 0 0").split()
forward = distributed.Losses.forward
calls = 0


def dying(self: distributed.Losses, batch: Any) -> Any:
    global calls
    calls += 1
    losses = forward(self, batch)
    if distributed.rank() != int(PROCESS) or calls != int(CALL):
        return losses
    if KIND == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND == "exception":
        raise ZeroDivisionError("division by zero")
    if KIND == "launcher":
        os.kill(os.getppid(), signal.SIGTERM)
    if KIND == "infinite":
        return {name: loss * torch.inf for name, loss in losses.items()}
    return losses


if __name__ == "__main__":
    distributed.Losses.forward = dying  # type: ignore[method-assign]
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
