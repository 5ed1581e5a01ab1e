"""The commands of ``docs/distributed.md``, as written, with the real services on loopback.

Only hosts and ports are replaced, and the settings of a small run on the CPU are added. Those with
MLflow's server and Ray, which pip installs, are run by ``.ci/run``; ``tests/services/run`` runs
all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT, SMALL, TINY, data_overrides, make_folders
from tests.mlflow_ui import free_port
from tests.services.daemons import (
    PAGE,
    Tracking,
    commands,
    mlflow_server,
    needs,
    postgres,
    ray,
    sections,
    slurm,
)
from tests.sweeps.conftest import summaries

QUIET = "logging.mlflow.system_metrics=false"
TESTED = {
    "": 5,
    "Sweeps on Slurm": 1,
    "Sweeps on Ray": 1,
    "A shared tracking server": 3,
    "PostgreSQL": 2,
}
"""How many commands of each section the tests below run."""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    make_folders(tmp_path / "data" / "train", 12)
    make_folders(tmp_path / "data" / "val", 3, seed=1)
    own = [*SMALL, *TINY[1:], *data_overrides(tmp_path / "data"), "batch_size=2"]
    return [word for word in own if not word.startswith("logging")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with ``train.py``."""
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    return tmp_path


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, since sockets are below it, that other users may pass through."""
    path = Path(tempfile.mkdtemp(prefix="svc", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def start(
    command: str, folder: Path, words: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """A command of the documentation, with more words at its end."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-ec", f'{command.rstrip()} "$@"', "bash", *words],
        cwd=folder,
        env={**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(
    command: str,
    folder: Path,
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    machines: int = 1,
) -> str:
    """Run a command of the documentation, on several machines if wanted; gives its output."""
    running = [start(command, folder, words, environment or {}) for _ in range(machines)]
    output = "".join(process.communicate(timeout=300)[0] for process in running)
    assert [process.returncode for process in running] == [0] * machines, output
    return output


def check_one_run(folder: Path, output: str, processes: int) -> None:
    (summary,) = folder.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "FINISHED"
    says = f"{processes} processes, batches of {processes} × 2 = {2 * processes}"
    assert (says in output) == (processes > 1), output


def search(server: Tracking, words: Mapping[str, Any], user: Any) -> requests.Response:
    address = f"{server.address}/api/2.0/mlflow/runs/search"
    return requests.post(address, json=words, auth=user, timeout=60)


def recorded(server: Tracking) -> list[dict[str, Any]]:
    """Id, status and parent of the runs of the first experiment, asked without MLflow's client."""
    user = (server.environment[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    answer = search(server, {"experiment_ids": ["1"]}, (*user,))
    answer.raise_for_status()
    found = []
    for run in answer.json()["runs"]:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        info = run["info"]
        parent = tags.get("mlflow.parentRunId")
        found.append({"id": info["run_id"], "status": info["status"], "parent": parent})
    return found


def check_sweep(folder: Path, trials: int) -> None:
    (summary,) = summaries(folder)
    assert summary["counts"] == {"FINISHED": trials}


def test_every_command_of_the_page_has_a_test() -> None:
    assert {title: len(each) for title, each in sections().items()} == TESTED


def test_every_extra_of_the_page_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith('pip install -e ".['):
            assert line[18:].rstrip(']"') in extras["optional-dependencies"], line


@needs()
@pytest.mark.parametrize(("place", "processes"), [(0, 1), (1, 4), (4, 2)])
def test_one_machine(folder: Path, words: list[str], place: int, processes: int) -> None:
    command = commands("")[place]
    check_one_run(folder, train(command, folder, [*words, "logging=csv"]), processes)


@needs()
def test_two_machines(folder: Path, words: list[str]) -> None:
    command = commands("")[2].replace("HOST:29500", f"127.0.0.1:{free_port()}")
    output = train(command, folder, [*words, "logging=csv"], machines=2)
    check_one_run(folder, output, 8)


@needs("slurmctld", "munged")
def test_an_allocation_and_a_sweep_on_slurm(folder: Path, words: list[str], short: Path) -> None:
    words = [*words, "logging=csv"]
    with slurm(short / "s", gpus=4) as cluster:
        output = train(commands("")[3], folder, [*words, "run_dir=runs/one"], cluster)
        check_one_run(folder, output, 4)
        of_machine = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
        train(commands("Sweeps on Slurm")[0], folder, [*words, *of_machine], cluster)
    check_sweep(folder, 4)


@needs("initdb", "psql")
def test_a_study_in_postgresql(folder: Path, words: list[str], short: Path) -> None:
    with postgres(short / "pg") as server:
        command = commands("PostgreSQL")[1].replace(":5432", f":{server.port}")
        train(command, folder, [*words, "logging=csv"], server.environment)
    check_sweep(folder, 4)
    assert not (folder / "runs" / "studies.journal").exists()


@needs()
def test_a_run_on_a_server(folder: Path, words: list[str]) -> None:
    *_, command = commands("A shared tracking server")
    with mlflow_server(folder / "server", "sqlite:///mlflow.db") as server:
        command = command.replace("http://127.0.0.1:5000", server.address)
        password = {name: server.environment[name] for name in ("MLFLOW_TRACKING_PASSWORD",)}
        train(command, folder, ["model=resnet34_compressed", *words, QUIET], password)
        (run,) = recorded(server)
        assert run["status"] == "FINISHED"


@pytest.mark.whole
@pytest.mark.services
def test_a_sweep_on_ray_is_recorded_on_a_server_behind_basic_authentication(
    folder: Path, words: list[str], short: Path
) -> None:
    command = commands("Sweeps on Ray")[0].splitlines()[-1]
    with (
        # The documentation's database is PostgreSQL, see outages.py.
        mlflow_server(folder / "server", "sqlite:///mlflow.db") as server,
        ray(short / "r", server.environment) as (address, environment),
    ):
        # A single trial, which takes 10 s; outages.py has eight.
        command = command.replace("127.0.0.1:6379", address).replace("0,1,2,3", "0")
        own = {**server.environment, **environment}
        output = train(command, folder, ["model=resnet34_compressed", *words, QUIET], own)
        assert server.address in output
        trial, parent = sorted(recorded(server), key=lambda run: run["parent"] is None)
        assert (trial["parent"], parent["parent"]) == (parent["id"], None)
        assert {trial["status"], parent["status"]} == {"FINISHED"}
        assert any((server.folder / "artifacts").rglob("*.png"))
        assert search(server, {}, None).status_code == 401
    check_sweep(folder, 1)
    password = server.environment["MLFLOW_TRACKING_PASSWORD"].encode()
    for file in (folder / "runs").rglob("*"):
        assert not file.is_file() or password not in file.read_bytes()
