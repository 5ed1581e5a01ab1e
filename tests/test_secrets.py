"""A secret of a command line is in nothing that training or a sweep writes or prints."""

from __future__ import annotations

import os
import secrets as random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from research.engine.run_folder import changed
from research.utils import secrets
from tests.conftest import ROOT, SMALL, TINY, data_overrides, run
from tests.mlflow_ui import mlflow_ui

Compose = Callable[..., dict[str, Any]]


def forms(secret: str) -> list[bytes]:
    return [form.encode() for form in dict.fromkeys((secret, quote(secret, safe="")))]


def holders(folder: Path, secret: str, but: str = "") -> list[Path]:
    """Files that contain a secret."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != but)
    return [path for path in files if any(form in path.read_bytes() for form in forms(secret))]


def command(
    words: list[str], folder: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), secrets.INHERITED: "{}", **(env or {})},
        capture_output=True,
    )


def test_a_run_on_a_dead_server(
    small: Compose, dead: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = f"pw!{random.token_hex(6)}"
    address = dead.replace("://", f"://me:{quote(secret, safe='')}@")
    settings = (*TINY, "logging=mlflow", "logging.mlflow.system_metrics=false")
    config = small(*settings, f"logging.mlflow.uri={address}")
    folder = run(config, overrides=[f"logging.mlflow.uri={secrets.hide(address)}"])
    assert config["logging"]["mlflow"]["uri"] == dead.replace("://", "://me:***@")
    assert "does not answer" in caplog.text
    assert holders(tmp_path, secret) == []
    assert not any(form.decode() in caplog.text for form in forms(secret))
    assert changed(config, folder) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "logging.mlflow.uri=http://me:{}@h"],
        ["--help", "logging.mlflow.uri=http://me:{}@h"],
        ["logging.mlflow.ur=http://me:{}@h"],
        ["logging.mlflow.uri=[http://me:{}@h]"],
        ["logging.mlflow.uri=http://me:{}@h:[", "epochs=1"],
        ["-m", "hydra.sweeper.storage=postgresql://me:{}@127.0.0.1:1/x", "seed=0,1"],
        ["-m", "hydra.sweeper.storage=nonsense://me:{}@127.0.0.1:1/x", "seed=0,1"],
        ["-m", "hydra.sweeper.storag=postgresql://me:{}@127.0.0.1:1/x", "seed=0,1"],
    ],
)
@pytest.mark.long
def test_a_mistake_is_reported_without_it(words: list[str], tmp_path: Path) -> None:
    secret = f"pw{random.token_hex(6)}"
    done = command(["device=cpu", *(word.format(secret) for word in words)], tmp_path)
    assert secret.encode() not in done.stdout + done.stderr, done.stdout + done.stderr
    assert holders(tmp_path, secret) == []
    assert b"Traceback" not in done.stderr


@pytest.mark.whole
def test_a_run_and_a_sweep_on_a_real_server(folders: Path, tmp_path: Path) -> None:
    secret, other = f"pw!{random.token_hex(6)}", f"pw{random.token_hex(6)}"
    (tmp_path / "work").mkdir()
    (tmp_path / "store").mkdir()
    words = [*SMALL, *data_overrides(folders), *TINY, "logging=mlflow"]
    storage = f"sqlite:///file:study.db?mode=rwc&uri=true&password={other}"
    with mlflow_ui(f"sqlite:///{tmp_path}/store/mlflow.db", tmp_path / "ui.log") as address:
        whole = address.replace("://", f"://me:{quote(secret, safe='')}@")
        single = command([*words, f"logging.mlflow.uri={whole}", "run_dir=one"], tmp_path / "work")
        assert single.returncode == 0, single.stderr
        swept = command(
            [
                *(
                    "-m",
                    *words,
                    f"logging.mlflow.uri={whole}",
                    f"hydra.sweeper.storage='{storage}'",
                ),
                *("hydra.sweeper.study_name=two", "seed=0,1"),
            ],
            tmp_path / "work",
        )
        assert swept.returncode == 0, swept.stderr
        basic = command(
            ["-m", *words, f"logging.mlflow.uri={whole}", "hydra/sweeper=basic", "seed=2,3"],
            tmp_path / "work",
        )
        assert basic.returncode == 0, basic.stderr
        # Resumed by the folder, with the password from the environment.
        again = command(
            [*words, "epochs=2", "resume=one"], tmp_path / "work", {secrets.TRACKING_URI: whole}
        )
        assert again.returncode == 0, again.stderr
        from mlflow import MlflowClient

        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("backbone-lab")
        shown = client.search_runs([experiment.experiment_id])
        assert [entry.info.status for entry in shown] == ["FINISHED"] * 7
    printed = b"".join(done.stdout + done.stderr for done in (single, swept, basic, again))
    for each in (secret, other):
        assert not any(form in printed for form in forms(each))
        assert holders(tmp_path, each) == []
    assert not (tmp_path / "work/one/mlflow_spool.jsonl").exists()
