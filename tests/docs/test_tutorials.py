"""The tutorials, word for word."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, FirstUse, Train, verb
from tests.docs.pages import DOCS, Page

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
SHORTEST = DOCS / "tutorials" / "5_detector.md"
# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def lines(tutorial: Path) -> list[str]:
    """The commands that it runs."""
    code = "".join(Page(tutorial).blocks("bash"))
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def check(tutorial: Path, folder: Path) -> None:
    """What it says is in ``runs`` is there."""
    text = Page(tutorial).prose
    named = {
        word.strip("`").rstrip("/")
        for word in text.replace(",", " ").replace(";", " ").split()
        if word.startswith("`runs/") and not any(letter.isupper() for letter in word)
    }
    assert named
    assert [name for name in sorted(named) if not (folder / name).exists()] == []


@pytest.mark.whole
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_as_it_stands(tutorial: Path, tmp_path: Path) -> None:
    """In a shell, as a reader would type it."""
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines(tutorial))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert "error:" not in ran.stderr
    check(tutorial, tmp_path)


def test_the_shortest_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train, first_use: FirstUse
) -> None:
    """The same words, in this process, and with the tables of MLflow there already."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copy(first_use.database, tmp_path / "runs" / "mlflow.db")
    for line in lines(SHORTEST):
        words = shlex.split(line)
        assert words[0] == "python"
        if words[1] == "train.py":
            train(*words[2:])
        else:
            verb(words[2].removeprefix("research.")).main(words[3:])
    check(SHORTEST, tmp_path)
