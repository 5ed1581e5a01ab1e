"""The commands of ``docs/distributed.md`` with MLflow's server and Ray, which pip installs.

Those with PostgreSQL and Slurm are run by ``tests/services/run``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TINY, data_overrides, make_folders
from tests.services.daemons import commands, mlflow_server, ray
from tests.sweeps.conftest import summaries

pytestmark = pytest.mark.services


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    make_folders(tmp_path / "data" / "train", 4)
    make_folders(tmp_path / "data" / "val", 2, seed=1)
    own = [*SMALL, *TINY, *data_overrides(tmp_path / "data")]
    return [word for word in own if not word.startswith("logging")]


def train(command: str, folder: Path, words: list[str], environment: Mapping[str, str]) -> str:
    """Run a command of the documentation on small data; gives its output."""
    command = command.replace("python train.py", f"{sys.executable} {ROOT / 'train.py'}")
    ended = subprocess.run(
        ["bash", "-ec", f'{command.rstrip()} "$@"', "bash", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_a_server_behind_basic_authentication(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    *_, command = commands("A shared tracking server")
    with mlflow_server(tmp_path / "server", "sqlite:///mlflow.db") as server:
        command = command.replace("http://127.0.0.1:5000", server.address)
        password = server.environment["MLFLOW_TRACKING_PASSWORD"]
        quiet = [*words, "logging.mlflow.system_metrics=false"]
        output = train(command, tmp_path, quiet, {"MLFLOW_TRACKING_PASSWORD": password})
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
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or password.encode() not in file.read_bytes()


def test_a_sweep_on_ray_has_one_gpu_for_each_trial(tmp_path: Path, words: list[str]) -> None:
    command = commands("Sweeps on Ray")[0].splitlines()[-1]
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # its sockets need a short name
    try:
        with ray(folder / "r") as (address, environment):
            command = command.replace("127.0.0.1:6379", address).replace("0,1,2,3", "0,1")
            train(command, tmp_path, [*words, "logging=csv"], environment)
    finally:
        shutil.rmtree(folder)
    (summary,) = summaries(tmp_path)
    assert summary["counts"] == {"FINISHED": 2}
