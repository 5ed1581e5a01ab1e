"""``tests/gpu_check.py``: its tiny form on the CPU, and what it does about failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import gpu_check
from tests.conftest import ROOT
from tests.gpu_check import Checks


def good(checks: Checks) -> None:
    checks.run("one", lambda: {"a": 1.0, "b": "x|y"})


def bad(checks: Checks) -> None:
    checks.run("raises", lambda: {"a": 1 / 0})
    checks.run("says so", lambda: {"a": 2.0, "failed": "too large"})
    checks.run("passes", lambda: {"a": 3.0})


def killed(checks: Checks) -> None:
    checks.run("first", lambda: {"a": 4.0})
    os.kill(os.getpid(), signal.SIGKILL)


def slow(checks: Checks) -> None:
    time.sleep(60)


HERE = "tests.test_gpu_check"


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("bad", "killed", "missing", "good")
    monkeypatch.setattr(gpu_check, "SECTIONS", {name: f"{HERE}:{name}" for name in names})
    monkeypatch.setattr(gpu_check, "TITLES", {name: f"Title of {name}" for name in names})


@pytest.mark.usefixtures("sections")
def test_what_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    assert gpu_check.main(["device=cpu", f"out={tmp_path}"]) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["bad"]["failures"] == [
        "raises: ZeroDivisionError: division by zero",
        "says so: too large",
    ]
    assert [row["a"] for row in content["bad"]["rows"]] == [2.0, 3.0]
    assert [row["a"] for row in content["killed"]["rows"]] == [4.0]
    assert content["killed"]["failures"] == ["killed: its process ended with status -9"]
    assert content["missing"]["failures"] == ["missing: its process ended with status 1"]
    assert content["good"]["failures"] == []
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| one | 1 | x\\|y |" in page
    assert "- **failed**: says so: too large" in page


def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SECTIONS", {"slow": f"{HERE}:slow", "good": f"{HERE}:good"})
    monkeypatch.setattr(gpu_check, "TITLES", {"slow": "", "good": ""})
    monkeypatch.setattr(gpu_check, "LIMIT", 0.0)
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    assert gpu_check.main(["device=cpu", f"out={tmp_path}"]) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["slow"]["failures"] == ["slow: its process was ended, it took too long"]
    assert content["good"]["failures"] == ["one: not run: the time is over"]


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["devise=cpu"]) == 2
    assert "devise: expected device=cuda or out=FOLDER" in capsys.readouterr().err


@pytest.mark.long
def test_its_tiny_form_on_the_cpu(tmp_path: Path) -> None:
    """Under 40 s of CPU; nothing is written outside of ``out``."""
    for name in ("cwd", "home", "tmp"):
        (tmp_path / name).mkdir()
    command = [sys.executable, str(ROOT / "tests/gpu_check.py"), "device=cpu"]
    done = subprocess.run(
        [*command, f"out={tmp_path / 'out'}"],
        cwd=tmp_path / "cwd",
        env={**os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "out/gpu_check.json").read_text())
    assert content.keys() == gpu_check.SECTIONS.keys() == gpu_check.TITLES.keys()
    empty = {name for name, section in content.items() if not section["rows"]}
    assert empty == {"compile"}
    written = [path for name in ("cwd", "home", "tmp") for path in (tmp_path / name).rglob("*")]
    assert written == []
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"gpu_check.json", "gpu_check.md"}
