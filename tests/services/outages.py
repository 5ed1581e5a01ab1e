"""Sweeps of eight trials over Slurm and Ray, recorded on a server, while everything fails once.

``tests/services/run`` starts it. A process is killed; a Slurm job is requeued twice in the middle
of an epoch; PostgreSQL, which has the studies and the tracking server's runs, is stopped for 30 s.
Afterwards every trial has finished once, with the weights of an undisturbed sweep, and nothing is
missing in the study or in MLflow.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from research.engine import checkpoint
from tests.conftest import ROOT, SMALL, TINY, data_overrides, make_folders
from tests.services.daemons import Postgres, mlflow_server, postgres, ray, slurm, wait_until

EPOCHS = 16
BATCHES = 22
"""Of an epoch."""
OUTAGE = 30.0
"""Seconds for which PostgreSQL is stopped."""
SWEEP = ("seed=0,1,2,3", "optimizer.lr=0.01,0.02", f"epochs={EPOCHS}", "log_every=1")
TRACKED = ("logging=mlflow", "logging.mlflow.system_metrics=false")
PATIENCE = 1800.0


@dataclass
class Sweep:
    """A running ``train.py -m``.

    Attributes:
        folder: its working directory.
        process: of the command.
        log: its output.
        events: what was done to it.
        restarted: trials that several processes have trained.
        outage: when PostgreSQL was stopped and started.
    """

    folder: Path
    process: subprocess.Popen[str]
    log: Path
    events: list[str] = field(default_factory=list)
    restarted: set[int] = field(default_factory=set)
    outage: tuple[float, float] = (0.0, 0.0)

    def run(self, number: int) -> Path | None:
        """The run folder in which a trial has trained last."""
        found = sorted(self.folder.glob(f"runs/sweeps/*/trial_{number:04d}*"))
        return found[-1] if found else None

    def saved(self, number: int) -> Path:
        """The last checkpoint of a trial."""
        run = self.run(number)
        assert run is not None
        return run / "checkpoints" / "last.pt"

    def batches(self, number: int) -> int:
        """Rows of a trial's batches so far."""
        run = self.run(number)
        file = None if run is None else run / "batch_metrics.csv"
        return len(file.read_text().splitlines()) - 1 if file is not None and file.exists() else 0

    def trainer(self, number: int) -> psutil.Process | None:
        """The process that trains a trial: it has the lock of its folder."""
        run = self.run(number)
        for process in psutil.process_iter() if run is not None else ():
            with suppress(psutil.Error):
                if any(Path(each.path) == run / ".lock" for each in process.open_files()):
                    return process
        return None

    def wait(self, is_ready: Callable[[], bool], what: str) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"{what}: {self.log.read_text()[-3000:]}"
            return is_ready()

        wait_until(ready, what, PATIENCE)

    def wait_for_batches(self, number: int) -> None:
        """Until a trial is in the middle of another epoch."""
        before = self.batches(number)
        goal = (before // BATCHES + 1) * BATCHES + BATCHES // 4
        self.wait(lambda: self.batches(number) >= goal, f"trial {number}")

    def kill(self, number: int) -> None:
        """SIGKILL, in the middle of an epoch."""
        self.wait_for_batches(number)
        trainer = self.trainer(number)
        assert trainer is not None
        trainer.kill()
        self.restarted.add(number)
        epoch, batch = divmod(self.batches(number), BATCHES)
        self.events.append(
            f"trial {number} killed after epoch {epoch} and {batch} of {BATCHES} batches"
        )
        assert batch

    def requeue(self, number: int, environment: Mapping[str, str]) -> Callable[[], None]:
        """``scontrol requeue``, in the middle of an epoch.

        Returns:
            waits until the job runs again, without Slurm's delay of two minutes.
        """
        self.wait_for_batches(number)
        trainer = self.trainer(number)
        assert trainer is not None
        its = trainer.environ()
        job = its["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in its:
            job = f"{its['SLURM_ARRAY_JOB_ID']}_{its['SLURM_ARRAY_TASK_ID']}"
        self.restarted.add(number)
        own = {**os.environ, **environment}
        subprocess.run(["scontrol", "requeue", job], env=own, check=True)
        self.wait(lambda: not trainer.is_running(), "the end of a requeued job")
        state = checkpoint.load(self.saved(number))["state"]
        position = f"epoch {state['epoch']} and {state['samples']} of {8 * BATCHES} samples"
        self.events.append(f"trial {number} requeued after {position}")
        assert state["samples"]

        def started() -> bool:
            now = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
            subprocess.run(now, env=own, check=False, capture_output=True)
            time.sleep(2)
            return self.trainer(number) is not None

        return lambda: self.wait(started, "a requeued job")

    def stop_database(self, server: Postgres) -> None:
        """Stop PostgreSQL while a trial trains that has most of its epochs before it."""
        early = range(1, EPOCHS * BATCHES // 3)

        def training() -> list[int]:
            begun = [
                number
                for number in range(8)
                if number not in self.restarted and self.batches(number) in early
            ]
            return [number for number in begun if self.trainer(number) is not None]

        self.wait(lambda: bool(training()), "a trial that has begun")
        number = training()[0]
        begin = time.time()
        server.stop()
        time.sleep(OUTAGE)
        server.start()
        self.outage = begin, time.time()
        self.events.append(f"PostgreSQL stopped for {OUTAGE:.0f} s while trial {number} trained")

    def finish(self) -> None:
        output = self.process.wait(PATIENCE)
        assert output == 0, self.log.read_text()[-5000:]


@contextmanager
def started(
    folder: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    sweep: Sequence[str] = SWEEP,
) -> Iterator[Sweep]:
    """A sweep in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "-m", *words, *sweep],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        yield Sweep(folder, process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(90)
            process.kill()


def make_data(base: Path) -> list[str]:
    """Pictures for ``BATCHES`` in an epoch; gives the settings of a run on them."""
    make_folders(base / "data" / "train", 60)
    make_folders(base / "data" / "val", 10, seed=1)
    # Epochs of two seconds, so that there is a middle to be hit.
    return [*SMALL, *TINY, *data_overrides(base / "data"), "dataset.image_size=128"]


def trials(folder: Path) -> dict[str, dict[str, Any]]:
    """Trials of the only sweep in a working directory, by point; every point once."""
    (summary,) = folder.glob("runs/sweeps/*/final_summary.json")
    content = json.loads(summary.read_text())
    assert content["counts"] == {"FINISHED": 8}, content["counts"]
    found = {json.dumps(each["params"], sort_keys=True): each for each in content["trials"]}
    assert len(found) == len(content["trials"]) == 8
    assert len(list(folder.glob("runs/sweeps/*/trial_*/checkpoints/final.safetensors"))) == 8
    return found


def rows(folder: Path, trial: Mapping[str, Any], table: str) -> list[dict[str, str]]:
    with (folder / trial["paths"]["run"] / f"{table}_metrics.csv").open() as file:
        return list(csv.DictReader(file))


def equal_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def gaps(sweep: Sweep, found: Mapping[str, Any]) -> dict[bool, tuple[float, float]]:
    """The longest time between two batches of a process: in the outage, and otherwise.

    By whether both are of the same epoch; else validation, a checkpoint and pictures are in it.
    """
    longest = {same: ([0.0], [0.0]) for same in (True, False)}
    begin, end = sweep.outage
    for trial in found.values():
        if trial["trial"] in sweep.restarted:
            continue
        times = [
            (row["epoch"], datetime.fromisoformat(row["timestamp"]).timestamp())
            for row in rows(sweep.folder, trial, "batch")
        ]
        for (epoch, first), (next_epoch, second) in itertools.pairwise(times):
            during, otherwise = longest[epoch == next_epoch]
            (during if first < end and second > begin else otherwise).append(second - first)
    return {same: (max(during), max(other)) for same, (during, other) in longest.items()}


def check_study(url: str, password: str, found: Mapping[str, Any]) -> None:
    """Every trial once, with every epoch's value."""
    import optuna

    os.environ["PGPASSWORD"] = password
    (name,) = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8
    for trial in study.trials:
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1)), trial.number
    assert {trial.number for trial in study.trials} == {each["trial"] for each in found.values()}
    optuna.delete_study(study_name=name, storage=url)


def check_mlflow(
    experiment: str, sweep: Sweep, environment: Mapping[str, str], found: Mapping[str, Any]
) -> str:
    """One parent, eight children, every metric of every row once; gives a line."""
    os.environ.update(environment)
    from mlflow import MlflowClient

    client = MlflowClient()
    shown = client.get_experiment_by_name(experiment)
    assert shown is not None
    runs = client.search_runs([shown.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.info.run_id != parent.info.run_id]
    assert len(children) == 8
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_trial = {int(run.data.tags["trial"]): run for run in children}
    points = 0
    for trial in found.values():
        run_id = by_trial[trial["trial"]].info.run_id
        epochs = [m.step for m in client.get_metric_history(run_id, "train/loss")]
        assert epochs == list(range(1, EPOCHS + 1)), (trial["trial"], epochs)
        steps = [m.step for m in client.get_metric_history(run_id, "batch/loss")]
        batches = rows(sweep.folder, trial, "batch")
        assert sorted(steps) == list(range(1, len(batches) + 1)), trial["trial"]
        points += len(steps)
        assert client.list_artifacts(run_id, "pictures")
    return f"1 parent, {len(children)} children, {points} batches, none missing, none twice"


def line(name: str, value: object) -> None:
    print(f"  {name:<44} {value}", flush=True)


def report(
    name: str, sweep: Sweep, expected: Mapping[str, Any], base: Path, server: Postgres, user: Any
) -> None:
    found = trials(sweep.folder)
    assert found.keys() == expected.keys()
    print(f"{name}:", flush=True)
    for event in sweep.events:
        line("event", event)
    line("trials finished, of 8; folders with final weights", f"{len(found)}; 8")
    same = sum(
        equal_weights(
            base / expected[point]["paths"]["run"] / "checkpoints/final.safetensors",
            sweep.folder / found[point]["paths"]["run"] / "checkpoints/final.safetensors",
        )
        for point in expected
    )
    line("same weights as undisturbed", f"{same} of 8")
    assert same == 8
    for trial in found.values():
        assert [row["epoch"] for row in rows(sweep.folder, trial, "epoch")] == [
            str(n) for n in range(1, EPOCHS + 1)
        ]
    line("MLflow", check_mlflow(name, sweep, user, found))
    url = f"postgresql+psycopg://lab@127.0.0.1:{server.port}/studies"
    check_study(url, server.password, found)
    line("study in PostgreSQL", "8 trials, every epoch of each, none twice")
    for same, (during, otherwise) in gaps(sweep, found).items():
        what = "batches of an epoch" if same else "epochs"
        line(f"longest between {what}, outage", f"{during:.2f} s (otherwise {otherwise:.2f} s)")
        assert during < (1 if same else otherwise + 1), "training has waited for PostgreSQL"


def over_slurm(base: Path, words: list[str], server: Postgres, user: Mapping[str, str]) -> Sweep:
    on_slurm = (
        *("hydra/launcher=slurm", "hydra.launcher.partition=gpu"),
        *("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"),
    )
    with (
        slurm(base / "slurm") as cluster,
        started(base / "a", [*words, *on_slurm], {**user, **cluster}) as sweep,
    ):
        sweep.kill(1)
        runs_again = sweep.requeue(2, cluster)
        sweep.stop_database(server)
        runs_again()
        sweep.requeue(2, cluster)()
        sweep.finish()
    return sweep


def over_ray(base: Path, words: list[str], server: Postgres, user: Mapping[str, str]) -> Sweep:
    with ray(base / "r", user) as (address, own):
        on_ray = (
            *("hydra/launcher=ray", "hydra.launcher.num_cpus=1"),
            f"hydra.launcher.address={address}",
        )
        with started(base / "b", [*words, *on_ray], {**user, **own}) as sweep:
            sweep.kill(1)
            sweep.stop_database(server)
            sweep.finish()
    return sweep


def recorded(base: Path, words: list[str], undisturbed: Path) -> None:
    """Both sweeps, recorded on a server with PostgreSQL; prints what was found."""
    expected = trials(undisturbed)
    with postgres(base / "pg") as server:
        database = f"postgresql+psycopg://lab@127.0.0.1:{server.port}"
        with mlflow_server(base / "m", f"{database}/mlflow", server.environment) as tracking:
            words = [*words, *TRACKED, f"hydra.sweeper.storage={database}/studies"]
            user = {**tracking.environment, **server.environment}
            for name, run in (("Slurm", over_slurm), ("Ray", over_ray)):
                own = [*words, f"logging.mlflow.experiment={name}"]
                sweep = run(base, own, server, user)
                report(name, sweep, expected, undisturbed, server, user)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.environ["OMP_NUM_THREADS"] = "1"
    base = Path(tempfile.mkdtemp(prefix="svc", dir="/tmp"))
    base.chmod(0o711)  # PostgreSQL's user passes through
    words = make_data(base)
    try:
        with started(base / "undisturbed", words, {}) as sweep:
            sweep.finish()
        recorded(base, words, base / "undisturbed")
    except BaseException:
        print(f"the files are kept in {base}", file=sys.stderr)
        raise
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
