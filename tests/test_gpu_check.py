"""``tests/gpu_check.py``: its tiny form on the CPU, and what it does about failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import gpu_check, gpu_speed, gpu_training
from tests.conftest import ROOT
from tests.gpu_check import Checks, Settings


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
    monkeypatch.setattr(gpu_check, "MODULES", ())


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
    monkeypatch.setattr(gpu_check, "MODULES", ())
    monkeypatch.setattr(gpu_check, "LIMIT", 0.0)
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    assert gpu_check.main(["device=cpu", f"out={tmp_path}"]) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["slow"]["failures"] == ["slow: its process was ended, it took too long"]
    assert content["good"]["failures"] == ["one: not run: the time is over"]


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["devise=cpu"]) == 2
    assert "devise: expected device=cuda or out=FOLDER" in capsys.readouterr().err


NEEDED = ("torch", "torchvision", "timm", "hydra-core", "torchmetrics", "faster-coco-eval")
NEEDED += ("scipy", "pydantic", "pyjpegio", "psutil", "matplotlib")
"""The distributions that it needs, with theirs; docs/performance.md lists them."""
SITE = """
import sys
from importlib.machinery import PathFinder

class Few(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {modules!r}:
            return super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        for found in super().find_distributions(context):
            name = context.name or found.metadata["Name"]
            if name.lower().replace("_", "-").replace(".", "-") not in {distributions!r}:
                yield found

sys.meta_path[:] = [Few if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""Run by Python at its start: it does not find these packages."""


def with_their_needs(names: Iterable[str]) -> set[str]:
    """Distributions and everything that they require, without extras."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        try:
            lines = requires(name) or ()
        except PackageNotFoundError:
            continue  # of another system
        if name not in found:
            found.add(name)
            known = [Requirement(line) for line in lines]
            wanted = [
                one for one in known if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
            left += [canonicalize_name(one.name) for one in wanted]
    return found


def site(names: Iterable[str]) -> str:
    """``SITE`` with nothing but these distributions, theirs, the options of Hydra's sweeper (but
    not Optuna) and this project.
    """
    needed = with_their_needs(names) | {"hydra-optuna-sweeper", "backbone-lab"}
    owners = {
        module: {canonicalize_name(owner) for owner in those}
        for module, those in packages_distributions().items()
    }
    gone = set().union(*owners.values()) - needed
    assert {"mlflow", "optuna", "tensorboard", "av", "open-clip-torch", "pytest"} <= gone
    modules = {module for module, those in owners.items() if not those & needed}
    return SITE.format(modules=modules, distributions=gone)


@pytest.mark.long
def test_its_tiny_form_on_the_cpu(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """About 20 s of CPU. It needs few packages; nothing is written outside of ``out``."""
    temporary = tmp_path_factory.mktemp("t")  # a short path
    for name in ("cwd", "home", "site"):
        (tmp_path / name).mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(site(NEEDED))
    command = [sys.executable, str(ROOT / "tests/gpu_check.py"), "device=cpu"]
    folders = {"HOME": "home", "PYTHONPATH": "site"}
    done = subprocess.run(
        [*command, f"out={tmp_path / 'out'}"],
        cwd=tmp_path / "cwd",
        env={
            **os.environ,
            **{name: str(tmp_path / folder) for name, folder in folders.items()},
            "TMPDIR": str(temporary),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "out/gpu_check.json").read_text(), parse_constant=pytest.fail)
    assert content.keys() == gpu_check.SECTIONS.keys() == gpu_check.TITLES.keys()
    empty = {name for name, section in content.items() if not section["rows"]}
    assert empty == {"compile"}
    folders_left = (tmp_path / "cwd", tmp_path / "home", temporary)
    assert [path for folder in folders_left for path in folder.rglob("*")] == []
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"gpu_check.json", "gpu_check.md"}


class Whole(Settings):
    """On the CPU, but not tiny."""

    tiny = False  # type: ignore[assignment]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "checks"), [("losses", 60), ("waits", 11), ("resume", 6), ("data", 8)]
)
def test_all_of_its_checks_on_the_cpu(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    checks: int,
) -> None:
    """Those that need no GPU: not fp16, compilation and the times of large batches."""
    monkeypatch.delitem(gpu_training.VARIANTS, "fp16")
    work = tmp_path_factory.mktemp("w")
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    section = gpu_check._in_a_process(name, Whole("cpu", work, time.monotonic() + 900))
    assert section.failures == []
    assert len(section.rows) == checks


@pytest.mark.whole
@pytest.mark.parametrize("name", gpu_speed.MODELS)
def test_every_measured_network_takes_a_step(name: str) -> None:
    _, words = gpu_speed.MODELS[name]
    small = ["dataset.image_size=64" for word in words if "image_size" in word]
    row = gpu_speed.measured((*words, "precision=fp32", "channels_last=false", *small), 2, "cpu", 1)
    assert row["steps"] == 1
    assert row["samples/s"] > 0


def test_a_folder_too_long_for_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's worker processes would wait for ever."""
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert gpu_check.main(["device=cpu", f"out={tmp_path}"]) == 2
    assert "TMPDIR" in capsys.readouterr().err
    assert list(deep.iterdir()) == []
