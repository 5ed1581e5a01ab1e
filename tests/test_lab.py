"""One name for all commands, and a copy of the package that is installed without the checkout."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from research import lab
from research.utils.installation import CONF, IS_COPY, TRAIN
from tests.conftest import ROOT, SMALL, TINY, data_overrides, user_error


def test_verbs_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    lab.run([])
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    assert listed == {"train", *(path.stem for path in lab.verbs().values())}
    assert {"evaluate", "prepare", "summary"} < listed
    assert not listed & {"judge", "lab", "batch"}
    with user_error("VERB", "evalute", "did you mean 'evaluate'"):
        lab.run(["evalute"])


def test_a_verb_runs_its_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lab"])
    monkeypatch.setattr(sys, "path", sys.path)
    with pytest.raises(SystemExit) as stop:
        lab.run(["evaluate", "--help"])
    assert stop.value.code == 0
    assert sys.argv == ["lab evaluate", "--help"]  # what a run records of its command
    assert capsys.readouterr().out.startswith("python -m research.evaluate RUN")
    with pytest.raises(SystemExit) as stop:
        lab.run(["train", "epochs=x"])
    assert stop.value.code == 2
    assert "epochs=x: expected a whole number" in capsys.readouterr().err


def test_in_a_checkout_the_command_is_train_py() -> None:
    assert (IS_COPY, TRAIN, CONF) == (False, "python train.py", ROOT / "conf")


def test_elsewhere_the_command_has_the_path_of_train_py(tmp_path: Path) -> None:
    def command() -> str:
        code = "from research.utils.installation import TRAIN; print(TRAIN)"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip

    assert shlex.split(command()) == ["python", str(ROOT / "train.py")]
    (tmp_path / "train.py").touch()  # somebody's own
    assert shlex.split(command()) == ["python", str(ROOT / "train.py")]
    (tmp_path / "train.py").unlink()
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    assert command() == "python train.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, in an environment inside of somebody's repository."""
    folder = tmp_path_factory.mktemp("installed")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "theirs"], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.long
def test_a_copy_has_every_file(copy: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}

    own = {f"conf/{name}" for name in files(ROOT / "conf")} | {"train.py"}
    assert files(copy / "research") == files(ROOT / "research") | own
    (scripts,) = copy.glob("*.dist-info/entry_points.txt")
    assert "lab = research.lab:main" in scripts.read_text()


@pytest.mark.long
def test_a_copy_works_from_any_folder(copy: Path, folders: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        code = "from research.lab import main; main()"
        return subprocess.run(
            [sys.executable, "-P", "-c", code, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    wrong = run("train", "epoch=1")
    assert "lab train --help lists all keys" in wrong.stderr
    trained = run("train", *SMALL, *TINY, *data_overrides(folders), "name=copied")
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "runs").glob("*_copied")
    assert (folder / "checkpoints/final.safetensors").exists()
    record = json.loads((folder / "environment.json").read_text())
    assert (record["command"][0], record["git"]) == ("lab train", {})
    evaluated = run("evaluate", str(folder), "device=cpu")
    assert json.loads(evaluated.stdout)["metrics"] == json.loads(evaluated.stdout)["logged"]
    script = f"import research; print(research.load({str(folder)!r}, 'cpu').classes)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.split() == ["['bars',", "'field',", "'spots']"]
