"""Runs on several processes of which one dies: the cause is said, and the run can go on.

pytest -m whole tests/engine/test_deaths.py        # six deaths, a quarter of an hour
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from research.config import compose_config
from research.tracking.files import read_rows
from tests.conftest import ROOT, prepared
from tests.engine.test_interrupts import final, same
from tests.golden.configurations import DATA, NARROW, PICTURES

WORKER = Path(__file__).with_name("deaths_worker.py")
PROCESSES = 3
WORDS = (
    *NARROW, *PICTURES, "device=cpu", "logging=csv", "epochs=2", "log_every=2", "ema=0.9",
    "model.dropout=0.2", "batch_size=2", "save_every_minutes=0.001",
)  # fmt: skip
LOST = "error: another process of this run has ended"


@dataclass(frozen=True)
class Job:
    """What came of a job.

    Attributes:
        status: exit status of the launcher.
        seconds: from the death to the end.
        lines: of standard error.
        order: samples of each step, of all processes.
    """

    status: int
    seconds: float
    lines: list[str]
    order: list[list[int]]

    def lines_of(self, process: int, start: str) -> list[int]:
        """Numbers of the lines of a process that start so."""
        prefix = f"[process {process}] " * bool(process) + start
        return [number for number, line in enumerate(self.lines) if line.startswith(prefix)]


def job(folder: Path, *words: str, processes: int = PROCESSES, death: str = "") -> Job:
    """Train on several processes, of which one may die.

    Args:
        folder: of the run, ``PROJECT/runs/NAME``; the command is typed in ``PROJECT``.
        words: options of torchrun, and settings.
        processes: number of processes.
        death: how, in which process, and at which step.
    """
    about = folder.with_name(f"{folder.name}_{processes}")
    moment = about.with_suffix(".time")
    environment = {**os.environ, "ORDER": str(about.with_suffix(".order")), "OMP_NUM_THREADS": "1"}
    if death:
        environment["DEATH"] = f"{death} {moment}"
    options = [word for word in words if word.startswith("--")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    command += [f"--nproc_per_node={processes}", str(WORKER)]
    done = subprocess.run(
        [*command, *(word for word in words if word not in options)],
        cwd=folder.parents[1],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    ended = time.time()
    seconds = ended - float(moment.read_text()) if moment.exists() else 0.0
    parts = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(about.parent.glob(f"{about.name}.order.*"))
    ]
    order = [[i for part in step for i in part] for step in zip(*parts, strict=False)]
    return Job(done.returncode, seconds, done.stderr.splitlines(), order)


def project(folder: Path) -> Path:
    """A folder with the data of the runs."""
    shutil.copytree(DATA / "data" / "pictures", folder / "data" / "pictures")
    (folder / "runs").mkdir()
    return folder


def damage_one_part(folder: Path) -> None:
    """Cut the files that the second of three processes reads in the second batch."""
    data = prepared(compose_config(WORDS).config)
    samples = data.dataset("train", seed=0, train=True, device=torch.device("cpu"))
    order = job(folder / "runs" / "sound", "run_dir=runs/sound", *WORDS).order
    for index in order[1][2:4]:
        path = Path(samples.sample_name(index))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """A run that nobody disturbs, in a folder with the data."""
    folder = project(tmp_path_factory.mktemp("deaths"))
    return folder, job(folder / "runs" / "whole", "run_dir=runs/whole", *WORDS)


def status(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["status"])


def check_lines(done: Job, kind: str, died: int) -> None:
    """The cause is in one line, before those of the other processes, which have no traceback."""
    others = [process for process in range(PROCESSES) if process != died]
    text = "\n".join(done.lines)
    assert "Connection" not in text
    assert "pair.cc" not in text
    if kind == "launcher":
        for process in range(PROCESSES):
            assert len(done.lines_of(process, "interrupted by SIGTERM")) == 1
        return
    if kind == "infinite":
        causes = [
            done.lines_of(process, "error: the loss is no longer") for process in range(PROCESSES)
        ]
        (said,) = {done.lines[number].partition("error: ")[2] for (number,) in causes}
        assert said.count(".jpg") == 2
        return
    lost = [done.lines_of(process, LOST) for process in others]
    assert [len(numbers) for numbers in lost] == [1, 1], text
    if kind == "exception":
        (cause,) = (
            number for number, line in enumerate(done.lines)
            if line.endswith("ZeroDivisionError: nothing to divide")
        )  # fmt: skip
        assert cause < min(min(numbers) for numbers in lost)
        assert text.count(f"[rank{died}]: Traceback") == text.count("]: Traceback") == 1
    else:
        assert "]: Traceback" not in text
        assert "SIGKILL" in text


@pytest.mark.whole
@pytest.mark.parametrize(
    ("death", "ending"),
    [
        ("kill 1 6", "FAILED"),
        ("kill 0 7", "KILLED"),
        ("exception 2 6", "FAILED"),
        ("launcher 0 6", "KILLED"),
        ("infinite 1 6", "FAILED"),
    ],
)
def test_a_death(death: str, ending: str, undisturbed: tuple[Path, Job]) -> None:
    folder, whole = undisturbed
    dies(folder, whole, death, ending)


@pytest.mark.whole
def test_a_death_among_damaged_samples_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp_path)
    monkeypatch.chdir(folder)
    damage_one_part(folder)
    whole = job(folder / "runs" / "whole", "run_dir=runs/whole", *WORDS)
    assert len(whole.order[1]) == 4
    rows = read_rows(folder / "runs" / "whole" / "epoch_metrics.csv")
    assert [int(row["train/left_out/truncated"]) for row in rows] == [2, 2]
    dies(folder, whole, "kill 2 6", "FAILED")


def dies(project: Path, whole: Job, death: str, ending: str) -> None:
    """A job dies, and goes on with 3, 2 and 1 processes."""
    assert whole.status == 0, "\n".join(whole.lines)
    kind, died, _ = death.split()
    folder = project / "runs" / death.replace(" ", "_")
    done = job(folder, f"run_dir=runs/{folder.name}", *WORDS, death=death)
    assert done.status != 0
    assert done.seconds < 20
    check_lines(done, kind, int(died))
    assert status(folder) == ending
    for processes in (3, 2, 1):
        copy = folder.with_name(f"{folder.name}_on_{processes}")
        shutil.copytree(folder, copy)
        again = job(copy, f"resume=runs/{copy.name}", processes=processes)
        assert again.status == 0, "\n".join(again.lines)
        assert status(copy) == "FINISHED"
        assert 0 < len(again.order) < len(whole.order)
        assert again.order == whole.order[-len(again.order) :]
        if processes == PROCESSES:
            assert same(final(copy), final(folder.with_name("whole")))
    print(f"{death}: ended after {done.seconds:.1f} s as {ending}")


@pytest.mark.whole
def test_the_launcher_starts_the_run_again(undisturbed: tuple[Path, Job]) -> None:
    runs = undisturbed[0] / "runs"
    words = "--max-restarts=2", "run_dir=runs/again", "resume=auto", *WORDS
    done = job(runs / "again", *words, death="kill 1 6")
    assert done.status == 0, "\n".join(done.lines)
    assert status(runs / "again") == "FINISHED"
    assert same(final(runs / "again"), final(runs / "whole"))


@pytest.mark.whole
def test_a_killed_process_ends_the_others_in_one_line(tmp_path: Path) -> None:
    run = project(tmp_path) / "runs" / "killed"
    done = job(run, "run_dir=runs/killed", *WORDS, processes=2, death="kill 1 6")
    assert done.status != 0
    assert done.seconds < 20
    assert len(done.lines_of(0, f"{LOST}; see its error")) == 1
    assert "]: Traceback" not in "\n".join(done.lines)
    assert status(run) == "FAILED"
