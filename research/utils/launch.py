"""How this process was launched: alone, or as one of several by ``torchrun`` or ``srun``.

A variable that says that there are several processes is honoured or refused, never ignored:
otherwise each would train the same run.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from research.utils import secrets
from research.utils.errors import UserError
from research.utils.installation import TRAIN, TRAIN_FILE

OTHER_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux run",
    "HOROVOD_SIZE": "horovodrun",
}
"""Variables with the number of processes, of launchers that are not supported."""
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which the processes of ``torchrun`` find each other."""
FOR_TORCHRUN = ("PET_NNODES", "PET_NPROC_PER_NODE")
"""Options of torchrun, set by clusters; other processes would ignore them."""


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher has started.

    Attributes:
        rank: of the process, 0 <= rank < processes; rank 0 is the main process.
        processes: number of processes.
        local_rank: of the process on its machine; the index of its GPU.
        address: host of the main process.
        port: port of the main process.
        has_own_gpu: whether the launcher may show the process no GPU but its own (Slurm's
            ``--gpus-per-task``), which then has the index 0.
    """

    rank: int
    processes: int
    local_rank: int
    address: str
    port: int
    has_own_gpu: bool = False


def launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was launched; None if it is the only one.

    Raises:
        UserError: for variables of a launcher that would be ignored.
    """
    own = _one_of_several(environ)
    if own is None and (several := _allocated(environ)):
        raise _refused(f"{several}, but this is one process", "srun")
    return own


def machines(environ: Mapping[str, str] = os.environ) -> int:
    """Number of machines with the processes of this run; 1 if the launcher does not say."""
    own = _one_of_several(environ)
    if own is None:
        return 1
    name = "GROUP_WORLD_SIZE" if "RANK" in environ else "SLURM_STEP_NUM_NODES"
    return max(1, _number(environ, name))


def require_one_process(what: str, environ: Mapping[str, str] = os.environ) -> None:
    """Check that this process was launched alone, perhaps in an allocation for several.

    Args:
        what: what runs in one process, for the message.
        environ: of the process.

    Raises:
        UserError: if it is one of several, or may be.
    """
    own = _one_of_several(environ)
    if own is not None:
        raise UserError(
            "launcher", f"{what} runs in one process, not in {own.processes}", "start it alone"
        )


def process_prefix(rank: int | None = None) -> str:
    """The prefix of the lines of a process; none for the main one.

    Args:
        rank: of the process; None: as it was launched.
    """
    if rank is None:
        try:
            own = _one_of_several(os.environ)
        except UserError:
            own = None
        rank = 0 if own is None else own.rank
    return f"[process {rank}] " if rank else ""


def torchrun(processes: int) -> str:
    """The command that trains in several processes of one machine."""
    return f"torchrun --nproc_per_node={processes} {TRAIN_FILE}"


def train_prefix(environ: Mapping[str, str] = os.environ) -> str:
    """The command that trains, launched as this process was; it can be typed on this machine."""
    try:
        own = _one_of_several(environ)
    except UserError:
        own = None
    if own is None:
        return TRAIN
    if "RANK" not in environ:
        nodes = _number(environ, "SLURM_STEP_NUM_NODES")
        return f"srun {f'--nodes={nodes} ' if nodes else ''}--ntasks={own.processes} {TRAIN}"
    if typed := _torchrun_words():
        return f"{shlex.join(typed)} {TRAIN_FILE}"
    if _number(environ, "LOCAL_WORLD_SIZE") == own.processes:
        return torchrun(own.processes)
    variables = [f"{name}={shlex.quote(environ[name])}" for name in OF_TORCHRUN]
    return " ".join([*variables, TRAIN])


def _torchrun_words() -> list[str]:
    """``torchrun`` and its options, as typed on this machine; empty if it is not the parent.

    No variable has them all: a start on several machines needs those of the rendezvous.
    """
    import psutil

    try:
        typed = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    words = [secrets.hidden_word(word) for word in typed]  # as ``sys.argv`` has them
    program = words[1:2] if words[1:2] != ["-m"] else words[2:3]
    if [Path(word).name for word in program] not in (["torchrun"], ["torch.distributed.run"]):
        return []
    script = len(words) - len(sys.argv)
    if words[script + 1 :] != sys.argv[1:]:
        return []
    options = words[words.index(program[0]) + 1 : script]
    if options[-1:] == ["-m"]:  # of a module, in place of the script
        del options[-1]
    return ["torchrun", *options]


def _one_of_several(environ: Mapping[str, str]) -> Launch | None:
    """This process among those of ``torchrun`` or ``srun``; None if it is the only one."""
    accelerate = sorted(name for name in environ if name.startswith("ACCELERATE_"))
    if accelerate:
        raise _refused(f"{accelerate[0]} is set: accelerate's settings are not used", "torchrun")
    if "RANK" in environ or _number(environ, "LOCAL_RANK") or any(
        _number(environ, name) > 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    ):  # fmt: skip
        return _torchrun(environ)
    step = _srun(environ)
    if step is not None:
        return step
    for name, launcher in OTHER_LAUNCHERS.items():
        if _number(environ, name) > 1:
            raise _refused(f"{name}={environ[name]}: {launcher} is not supported", "torchrun")
    for name in FOR_TORCHRUN:
        if environ.get(name, "1") != "1":
            raise _refused(f"{name}={environ[name]} is set, but not used by python", "torchrun")
    return None


def _torchrun(environ: Mapping[str, str]) -> Launch | None:
    missing = [name for name in OF_TORCHRUN if not environ.get(name)]
    if missing:
        present = next(name for name in (*OF_TORCHRUN, "LOCAL_WORLD_SIZE") if name in environ)
        raise _refused(
            f"{present}={environ[present]} is set, but {', '.join(missing)} is not", "torchrun"
        )
    rank, processes, local_rank = (_number(environ, name) for name in OF_TORCHRUN[:3])
    if rank >= processes:
        raise _refused(f"RANK={rank} with WORLD_SIZE={processes}", "torchrun")
    if processes == 1:
        return None
    return Launch(
        rank, processes, local_rank, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT")
    )


def _srun(environ: Mapping[str, str]) -> Launch | None:
    """A task of a step with several. A script of ``sbatch`` may have the variables of the step in
    which it was submitted, but its own ``SLURM_NTASKS``.
    """
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
    if tasks <= 1 or tasks != _number(environ, "SLURM_NTASKS") or "SLURM_PROCID" not in environ:
        return None
    job = _number(environ, "SLURM_JOB_ID")
    return Launch(
        rank=_number(environ, "SLURM_PROCID"),
        processes=tasks,
        local_rank=_number(environ, "SLURM_LOCALID"),
        address=environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"]),
        port=_number(environ, "MASTER_PORT") or 20000 + job % 20000,
        has_own_gpu="SLURM_GPUS_PER_TASK" in environ,
    )


def _allocated(environ: Mapping[str, str]) -> str:
    """The variable of a Slurm allocation for several tasks, with its value; empty if there is none,
    or if ``torchrun`` started this process.
    """
    names = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
    name = next((name for name in names if name in environ), "")
    if "RANK" in environ or not name or _number(environ, name) <= 1:
        return ""
    return f"{name}={environ[name]}"


def _refused(problem: str, launcher: str) -> UserError:
    commands = {
        "torchrun": f"start it with torchrun --nproc_per_node=N {TRAIN_FILE} …, or unset the "
        "variable",
        "srun": f"start it with srun {TRAIN} …, or set SLURM_NTASKS=1 for one process",
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
