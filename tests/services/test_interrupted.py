"""Jobs that are interrupted on Slurm and Ray save their state, and their trials go on."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from research.engine import checkpoint
from tests.services.daemons import needs, ray, slurm, wait_until
from tests.services.outages import BATCHES, Sweep, make_data, rows, started
from tests.sweeps.conftest import summaries

EPOCHS = 10
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1")
RAY = ("hydra/launcher=ray", "hydra.launcher.num_cpus=1")
TO_SAVE = 60.0
"""Seconds."""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short name, since sockets are below it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = Path(tempfile.mkdtemp(prefix="svc", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes in the background of a shell ignore Ctrl-C, and so do those that they start."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@contextmanager
def cluster(name: str, base: Path) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Words of the launcher, and the environment of its commands."""
    if name == "slurm":
        with slurm(base / "s") as environment:
            yield SLURM, environment
    else:
        with ray(base / "r") as (address, environment):
            yield (*RAY, f"hydra.launcher.address={address}"), environment


def check_finished(sweep: Sweep, trials: int, epochs: int) -> None:
    """Every trial has finished, and has trained every batch once."""
    (summary,) = summaries(sweep.folder)
    assert summary["counts"] == {"FINISHED": trials}
    for trial in summary["trials"]:
        steps = [row["epoch"] for row in rows(sweep.folder, trial, "batch")]
        assert len(steps) == epochs * BATCHES, sweep.log.read_text()


@needs("slurmctld", "munged")
@pytest.mark.parametrize("name", ["slurm", "ray"])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_the_sweep(base: Path, name: str) -> None:
    words = ("seed=0,1", f"epochs={EPOCHS}", "log_every=1", "save_every_minutes=null")
    with cluster(name, base) as (launcher, environment):
        own = [*make_data(base), *launcher]
        with started(base / "a", own, environment, words) as sweep:
            sweep.wait_for_batches(1)
            jobs = [sweep.trainer(number) for number in (0, 1)]
            sweep.process.send_signal(signal.SIGINT)
            assert sweep.process.wait(2 * TO_SAVE) == 130, sweep.log.read_text()
            _, alive = psutil.wait_procs([job for job in jobs if job is not None], timeout=TO_SAVE)
            assert not alive
            state = checkpoint.load(sweep.saved(1))["state"]
            assert state["samples"] > 0, "the position in the epoch"
        with started(base / "a", own, environment, words) as sweep:
            sweep.finish()
    check_finished(sweep, 2, EPOCHS)


@needs("slurmctld", "munged")
def test_the_time_limit_of_slurm(base: Path) -> None:
    epochs = 240  # 0.6 s each on a machine that does nothing else
    words = ("seed=0", f"epochs={epochs}", "log_every=1", "save_every_minutes=null")
    # Slurm gives the signal up to a minute earlier.
    limit = ("hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=60")
    with (
        slurm(base / "s") as environment,
        started(base / "a", [*make_data(base), *SLURM, *limit], environment, words) as sweep,
    ):
        sweep.finish()
        assert "ended without a result" in sweep.log.read_text()
    check_finished(sweep, 1, epochs)


@needs("slurmctld", "munged")
@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_job_that_is_killed_before_it_trains(base: Path, name: str) -> None:
    """The trial is launched again, although the job could not count its attempt."""
    words = ("seed=0", "epochs=2", "log_every=1")
    with (
        cluster(name, base) as (launcher, environment),
        started(base / "a", [*make_data(base), *launcher], environment, words) as sweep,
    ):

        def loading() -> list[psutil.Process]:
            found = []
            for process in psutil.process_iter(["cmdline"]):
                line = " ".join(process.info["cmdline"] or ())
                mine = "submitit.core._submit" in line and str(base) in line
                if mine and "srun" not in line:
                    found.append(process)
                if line.startswith("ray::_call"):
                    found.append(process)
            return found

        wait_until(lambda: bool(loading()), "a job")
        assert sweep.run(0) is None
        for process in loading():
            process.kill()
        sweep.finish()
        assert "without a result" in sweep.log.read_text()
    check_finished(sweep, 1, 2)
