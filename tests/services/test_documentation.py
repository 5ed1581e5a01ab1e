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
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY, data_overrides, make_folders
from tests.mlflow_ui import free_port
from tests.services.daemons import (
    PAGE,
    commands,
    mlflow_server,
    needs,
    postgres,
    ray,
    sections,
    slurm,
)
from tests.sweeps.conftest import summaries

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
    own = [*SMALL, *TINY[1:], *data_overrides(tmp_path / "data"), "dataset.batch_size=2"]
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


@pytest.mark.services
def test_a_server_behind_basic_authentication(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    *_, command = commands("A shared tracking server")
    # The documentation's database is PostgreSQL, see outages.py.
    with mlflow_server(folder / "server", "sqlite:///mlflow.db") as server:
        command = command.replace("http://127.0.0.1:5000", server.address)
        password = server.environment["MLFLOW_TRACKING_PASSWORD"]
        quiet = [*words, "logging.mlflow.system_metrics=false"]
        small = ["model=resnet34_compressed", *quiet]
        output = train(command, folder, small, {"MLFLOW_TRACKING_PASSWORD": password})
        assert server.address in output
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        client = MlflowClient()
        experiment = client.get_experiment_by_name("backbone-lab")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        assert client.list_artifacts(run.info.run_id, "pictures")
        assert any((server.folder / "artifacts").rglob("*.png"))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{server.address}/ajax-api/2.0/mlflow/experiments/search")
    for file in (folder / "runs").rglob("*"):
        assert not file.is_file() or password.encode() not in file.read_bytes()


@pytest.mark.services
def test_a_sweep_on_ray_has_one_gpu_for_each_trial(
    folder: Path, words: list[str], short: Path
) -> None:
    command = commands("Sweeps on Ray")[0].splitlines()[-1]
    with ray(short / "r") as (address, environment):
        command = command.replace("127.0.0.1:6379", address).replace("0,1,2,3", "0,1")
        train(command, folder, ["model=resnet34_compressed", *words, "logging=csv"], environment)
    check_sweep(folder, 2)
