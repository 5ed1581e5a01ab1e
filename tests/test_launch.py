"""Environments of launchers: honoured, or refused in one line."""

from __future__ import annotations

import shlex
import sys

import psutil
import pytest
import torch

from research.config import cli
from research.engine import distributed
from research.utils.launch import Launch, launch, machines, require_one_process, train_prefix
from research.utils.secrets import hidden_word
from tests.conftest import ROOT, one_line_of, user_error

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node03",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "41234",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[03-04,7]",
}
ONE_TASK = {**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LANG": "C"},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "1"},
        ONE_TASK,
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PET_NNODES": "1", "LOCAL_RANK": "0"},
        # The script of sbatch, submitted within a step of eight tasks.
        {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        # torchrun was asked to start one process.
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "SLURM_NTASKS": "4"},
    ],
)
def test_one_process(environ: dict[str, str]) -> None:
    assert launch(environ) is None


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 1),
        ({"GROUP_WORLD_SIZE": "2"}, 1),
        (TORCHRUN, 1),
        ({**TORCHRUN, "GROUP_WORLD_SIZE": "2"}, 2),
        (SRUN, 1),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "3"}, 3),
        ({**ONE_TASK, "SLURM_STEP_NUM_NODES": "1"}, 1),
    ],
)
def test_machines(environ: dict[str, str], count: int) -> None:
    assert machines(environ) == count


@pytest.mark.parametrize(
    ("environ", "command"),
    [
        ({}, "python train.py"),
        (ONE_TASK, "python train.py"),
        (SRUN, "srun --ntasks=8 python train.py"),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "3"}, "srun --nodes=3 --ntasks=8 python train.py"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "torchrun --nproc_per_node=8 train.py"),
        # Set by hand, or by another launcher.
        (
            TORCHRUN,
            "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=node03 MASTER_PORT=29500 python train.py",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "python train.py"),  # refused elsewhere
    ],
)
def test_advice_has_the_same_launcher(environ: dict[str, str], command: str) -> None:
    assert train_prefix(environ) == command


RENDEZVOUS = [
    "--nnodes=2",
    "--nproc_per_node=4",
    "--rdzv_endpoint=node03:29500",
    "--rdzv_id",
    "a b",
]


@pytest.mark.parametrize("start", [["/venv/bin/torchrun"], ["-m", "torch.distributed.run"]])
@pytest.mark.parametrize("script", [["train.py"], ["-m", "research.train"]])
@pytest.mark.parametrize(
    "typed", [[], ["epochs=2", "run_dir=a b"], ["logging.mlflow.uri=http://me:secret@host:5000"]]
)
def test_advice_has_the_options_of_torchrun(
    start: list[str], script: list[str], typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["/venv/bin/python", *start, *RENDEZVOUS, *script, *typed]
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: words)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(hidden_word, typed)])
    environ = {**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}
    assert shlex.split(train_prefix(environ)) == ["torchrun", *RENDEZVOUS, "train.py"]
    assert train_prefix({}) == "python train.py"
    # Of another program, whose words are not those of this process.
    monkeypatch.setattr(sys, "argv", ["train.py", *typed, "seed=1"])
    assert train_prefix(environ).startswith("RANK=5 ")


def test_torchrun() -> None:
    assert launch(TORCHRUN) == Launch(5, 8, 1, "node03", 29500)


@pytest.mark.parametrize(
    ("bound", "visible", "index"), [(True, 1, 0), (True, 4, 1), (False, 4, 1), (False, 1, None)]
)
def test_the_gpu_of_a_process(
    bound: bool, visible: int, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``srun --gpus-per-task=1`` shows each task its own alone, where Slurm binds them."""
    selected: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    own = launch({**SRUN, **({"SLURM_GPUS_PER_TASK": "1"} if bound else {})})
    assert own is not None
    if index is None:
        with user_error("device", "process 1 of this machine has no GPU"):
            distributed._select_gpu(own, "cuda")
    else:
        distributed._select_gpu(own, "cuda")
    assert selected == ([] if index is None else [index])


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-04,7]", "node03"),
        ("localhost", "localhost"),
        ("a1,b2", "a1"),
        ("gpu-[7,9],cpu-3", "gpu-7"),
    ],
)
def test_srun_is_translated(nodes: str, first: str) -> None:
    own = launch({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert own == Launch(5, 8, 1, first, 21234)
    given = {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}
    assert launch({**SRUN, **given}) == Launch(5, 8, 1, "head", 4000)


def test_srun_with_a_library_of_mpi_is_srun() -> None:
    assert launch({**SRUN, "PMI_SIZE": "8"}) == launch(SRUN)


def test_torchrun_within_a_task_of_srun_counts() -> None:
    assert launch({**ONE_TASK, "SLURM_NTASKS": "2", **TORCHRUN}) == launch(TORCHRUN)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORLD_SIZE": "4"}, ("WORLD_SIZE=4", "RANK")),
        ({"RANK": "0"}, ("RANK=0", "WORLD_SIZE")),
        ({**TORCHRUN, "MASTER_PORT": ""}, ("MASTER_PORT",)),
        ({**TORCHRUN, "RANK": "first"}, ("RANK=first", "whole number")),
        ({"SLURM_NTASKS": "4"}, ("SLURM_NTASKS=4", "one process")),
        # The script of sbatch, and a shell of salloc, are one process of an allocation for four.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, ("SLURM_NTASKS=4",)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, ("SLURM_NTASKS=8",)),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ("OMPI_COMM_WORLD_SIZE=2", "mpirun")),
        ({"PMI_SIZE": "2"}, ("PMI_SIZE=2",)),
        ({"SLURM_NTASKS_PER_NODE": "4"}, ("SLURM_NTASKS_PER_NODE=4", "one process")),
        ({"LOCAL_RANK": "1"}, ("LOCAL_RANK=1", "RANK")),
        ({"LOCAL_WORLD_SIZE": "2"}, ("LOCAL_WORLD_SIZE=2", "RANK")),
        ({**TORCHRUN, "RANK": "8"}, ("RANK=8 with WORLD_SIZE=8",)),
        ({"PET_NNODES": "1:4"}, ("PET_NNODES=1:4", "torchrun")),
        ({"PET_NPROC_PER_NODE": "gpu"}, ("PET_NPROC_PER_NODE=gpu",)),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ("ACCELERATE_MIXED_PRECISION", "accelerate")),
        ({**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, ("ACCELERATE_USE_FSDP",)),
    ],
)
def test_what_would_be_ignored_is_refused(environ: dict[str, str], words: tuple[str, ...]) -> None:
    with user_error("launcher", *words):
        launch(environ)


ALLOCATION = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (TORCHRUN, ("predict runs in one process, not in 8", "start it alone")),
        (SRUN, ("predict runs in one process, not in 8",)),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ("mpirun",)),
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE=2",)),
    ],
)
def test_a_command_in_one_process(environ: dict[str, str], words: tuple[str, ...]) -> None:
    require_one_process("predict", {})
    require_one_process("predict", ALLOCATION)  # which training refuses
    with user_error("launcher", *words):
        require_one_process("predict", environ)


@pytest.mark.parametrize("environ", [TORCHRUN, {"PMI_SIZE": "2"}])
def test_every_command_refuses_several_processes(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path for path in (ROOT / "research").glob("*.py") if path.stem != "lab"}
    modules = [path.read_text() for path in files]  # lab.py runs the others
    commands = [text for text in modules if "__main__" in text]
    assert len(commands) > 10
    assert all("cli.command(" in text for text in commands)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["predict", "RUN"])
    line = one_line_of(lambda: cli.command("usage", lambda words: None))
    assert next(iter(environ)) in line or "runs in one process, not in 8" in line
