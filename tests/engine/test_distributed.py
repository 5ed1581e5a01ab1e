"""Where processes meet: sums over all of them, and over the only one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from research.engine import distributed

SCRIPT = """
import sys
import torch.distributed as dist
from research.engine.distributed import summed
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
print(summed({"loss": 1.5, f"left_out/{rank}": 2}))
dist.destroy_process_group()
"""


def test_one_process_keeps_its_sums() -> None:
    assert distributed.summed({"loss": 1.5, "left_out/empty": 2}) == {
        "loss": 1.5,
        "left_out/empty": 2,
    }


def test_two_processes_have_the_same_sums(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    lines = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert lines == {"{'loss': 3.0, 'left_out/0': 2, 'left_out/1': 2}"}
