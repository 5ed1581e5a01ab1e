"""How this process was launched: alone, or as one of several by ``torchrun`` or ``srun``.

A variable that says that there are several processes is honoured or refused, never ignored:
otherwise each would train the same run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from research.utils.errors import UserError

OTHER_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
}
"""Variables with the number of processes, of launchers that are not supported."""


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher has started.

    Attributes:
        rank: of the process, 0 <= rank < processes; rank 0 is the main process.
        processes: number of processes.
        local_rank: of the process on its machine; the index of its GPU.
        address: host of the main process.
        port: port of the main process.
    """

    rank: int
    processes: int
    local_rank: int
    address: str
    port: int


def launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was launched; None if it is the only one.

    Raises:
        UserError: for variables of a launcher that would be ignored.
    """
    for name, launcher in OTHER_LAUNCHERS.items():
        if _number(environ, name) > 1 and "RANK" not in environ:
            raise _refused(f"{name}={environ[name]}: {launcher} is not supported", "torchrun")
    accelerate = sorted(name for name in environ if name.startswith("ACCELERATE_"))
    if accelerate:
        raise _refused(f"{accelerate[0]} is set: accelerate's settings are not used", "torchrun")
    if "RANK" in environ or _number(environ, "WORLD_SIZE") > 1:
        return _torchrun(environ)
    tasks = _number(environ, "SLURM_NTASKS")
    if tasks <= 1:
        return None
    if _number(environ, "SLURM_STEP_NUM_TASKS") != tasks or "SLURM_PROCID" not in environ:
        raise _refused(f"SLURM_NTASKS={tasks}, but this is one process", "srun")
    job = _number(environ, "SLURM_JOB_ID")
    return Launch(
        rank=_number(environ, "SLURM_PROCID"),
        processes=tasks,
        local_rank=_number(environ, "SLURM_LOCALID"),
        address=environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"]),
        port=_number(environ, "MASTER_PORT") or 20000 + job % 20000,
    )


def require_one_process(what: str) -> None:
    """Check that this process was launched alone.

    Args:
        what: what runs in one process, for the message.

    Raises:
        UserError: if it is one of several.
    """
    try:
        own = launch()
    except UserError:
        own = None  # one process in an allocation for several, which only training refuses
    if own is not None:
        raise UserError(
            "launcher", f"{what} runs in one process, not in {own.processes}", "start it alone"
        )


def _torchrun(environ: Mapping[str, str]) -> Launch | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        present = next(name for name in names if name in environ)
        raise _refused(
            f"{present}={environ[present]} is set, but {', '.join(missing)} is not", "torchrun"
        )
    rank, processes, local_rank = (_number(environ, name) for name in names[:3])
    if processes == 1:
        return None
    return Launch(
        rank, processes, local_rank, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT")
    )


def _refused(problem: str, launcher: str) -> UserError:
    commands = {
        "torchrun": "start it with torchrun --nproc_per_node=N train.py …, or unset the variable",
        "srun": "start it with srun python train.py …, or set SLURM_NTASKS=1 for one process",
    }
    return UserError("launcher", problem, commands[launcher])


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0")
    if not text.isdecimal():
        raise UserError("launcher", f"{name}={text}: expected a whole number", "start it again")
    return int(text)


def _first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it, ``node[03-07,09],other``."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    if match is None:
        raise UserError("launcher", f"SLURM_STEP_NODELIST={nodes}: not a list of hosts")
    return match[1] + (match[2] or "")
