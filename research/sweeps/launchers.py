"""Launchers that run trials on other machines: on Slurm, through submitit, and on Ray.

Hydra's own plugins for them stop waiting for all jobs when the process of one dies, and leave the
others running. These wait for each job, and return a failure for one that died.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import call
from pathlib import Path
from typing import Any, Final

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from research.utils.errors import UserError, one_line
from research.utils.starting import find_modules_here

SECONDS_BETWEEN_LOOKS: Final = 5.0
"""At the queue of Slurm."""
SECONDS_FOR_RESULT: Final = 15.0
"""In which the result of a job that has left the queue must be visible on the shared disk."""
SECONDS_TO_SAVE: Final = 60.0
"""In which jobs that were cancelled save their state."""


class JobDied(Exception):
    """The process of a job ended without a result: killed, interrupted, or never started."""


@dataclass(frozen=True)
class RemoteJob:
    """A job, pickled for the machine that runs it.

    Attributes:
        launcher: with the configuration of the sweep and the function that trains.
        singletons: Hydra's global state.
        folder: working directory; ``runs/`` is in it.
        overrides: of the trial.
        number: of the trial.
    """

    launcher: RemoteLauncher
    singletons: Any
    folder: str
    overrides: Sequence[str]
    number: int

    def __call__(self) -> JobReturn:
        """Train.

        Raises:
            SystemExit: with the status 128 + signal, if a signal has interrupted it.
        """
        from research.engine.interrupts import Interrupted, Interrupts

        os.chdir(self.folder)  # Ray starts its workers elsewhere
        find_modules_here()
        Singleton.set_state(self.singletons)
        setup_globals()
        context, base = self.launcher.context, self.launcher.base
        config = context.config_loader.load_sweep_config(base, list(self.overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(self.number), self.number
        try:
            # In place of submitit's and Ray's handlers, outside of training too.
            with Interrupts():
                return run_job(
                    hydra_context=context,
                    task_function=self.launcher.task,
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
        except Interrupted as signal:
            raise SystemExit(128 + signal.args[0]) from None


class RemoteLauncher(Launcher):
    """Runs the jobs of a sweep in other processes, on machines that share the working directory."""

    def __init__(self, **settings: Any) -> None:
        self.settings = _plain(settings)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.task, self.base = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run jobs and wait for all of them; a job that died has failed with ``JobDied``."""
        state, folder = Singleton.get_state(), os.getcwd()
        return self.run(
            [
                RemoteJob(self, state, folder, list(overrides), initial_job_idx + place)
                for place, overrides in enumerate(job_overrides)
            ]
        )

    @abstractmethod
    def run(self, jobs: Sequence[RemoteJob]) -> list[JobReturn]:
        """The result of each job; if it is interrupted, jobs that are still running are stopped."""


def _died(reason: str) -> JobReturn:
    result = JobReturn()
    result.status = JobStatus.FAILED
    result.return_value = JobDied(reason)
    return result


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are set, as plain values; ``launchers_rules`` has checked them."""
    plain = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if value is not None}


class SlurmLauncher(RemoteLauncher):
    """Submits jobs to Slurm as an array; see ``conf/hydra/launcher/slurm.yaml``.

    A job that Slurm interrupts before its time limit, or to requeue it, saves its state. A requeued
    job resumes its trial; that of any other interrupted job is resumed by the sweep.
    """

    def run(self, jobs: Sequence[RemoteJob]) -> list[JobReturn]:
        # By default submitit requeues a job on this signal, without letting it save.
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
        import submitit

        generic = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
        folder = Path(self.base.hydra.sweep.dir, ".submitit", "%j")
        executor = submitit.AutoExecutor(folder, cluster="slurm")
        executor.update_parameters(
            **{key if key in generic else f"slurm_{key}": v for key, v in self.settings.items()},
            nodes=1,
            tasks_per_node=1,
        )
        submitted = executor.map_array(call, jobs)
        try:
            _wait([(job.job_id, Path(job.paths.result_pickle)) for job in submitted])
        except BaseException:
            command = ["scancel", *(job.job_id for job in submitted)]
            subprocess.run(command, check=False)  # noqa: S603 - our words
            raise
        return [self._result(job) for job in submitted]

    @staticmethod
    def _result(job: Any) -> JobReturn:
        from submitit.core.utils import pickle_load

        path = Path(job.paths.result_pickle)
        if not path.exists():
            return _died(f"Slurm job {job.job_id} ended without a result, see {job.paths.stderr}")
        outcome, result = pickle_load(path)
        if outcome == "success":
            assert isinstance(result, JobReturn)
            return result
        return _died(f"Slurm job {job.job_id}: {str(result).strip().splitlines()[-1]}")


def _wait(jobs: Iterable[tuple[str, Path]]) -> None:
    """Wait until each Slurm job has a result or has left the queue.

    Unlike submitit this needs no accounting database, without which it would wait for ever.

    Args:
        jobs: the id and the file of the result of each.
    """
    waiting = dict.fromkeys(jobs, time.monotonic())
    while waiting:
        queued, now = _queued(), time.monotonic()
        for job, seen in list(waiting.items()):
            number, path = job
            if path.exists():
                del waiting[job]
            elif queued is None or number in queued:
                waiting[job] = now
            elif now - seen > SECONDS_FOR_RESULT:
                del waiting[job]
        if waiting:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _queued() -> set[str] | None:
    """The user's jobs that wait, run or are requeued; None if Slurm does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        answer = subprocess.run(  # noqa: S603 - our words
            command, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return set(answer.stdout.split())


class RayLauncher(RemoteLauncher):
    """Runs each job as a task of a Ray cluster; see ``conf/hydra/launcher/ray.yaml``.

    Each has a process of its own, which Ray does not start again: the sweep resumes its trial.
    """

    def run(self, jobs: Sequence[RemoteJob]) -> list[JobReturn]:
        import ray

        if not ray.is_initialized():
            self._connect()
        resources = {key: self.settings[key] for key in ("num_cpus", "num_gpus")}
        self._check_resources([each["Resources"] for each in ray.nodes() if each["Alive"]])
        task = ray.remote(max_calls=1, max_retries=0, **resources)(_call)
        running = [task.remote(job) for job in jobs]
        try:
            return [self._result(each) for each in running]
        except BaseException:
            for each in running:
                ray.cancel(each)
            ray.wait(running, num_returns=len(running), timeout=SECONDS_TO_SAVE)
            raise

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sent to Ray's authors
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # of trials, which say similar things
        import ray

        address = self.settings.get("address")
        try:
            ray.init(address=address)
        except Exception as error:
            raise UserError(
                "hydra.launcher.address",
                f"hydra.launcher.address={address}: {one_line(error)}",
                "ray status says whether it runs; with a token it needs RAY_AUTH_MODE=token",
            ) from error

    def _check_resources(self, machines: Sequence[dict[str, float]]) -> None:
        """Refuse what no machine has; Ray would wait for it for ever."""
        for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            wanted = self.settings[key]
            most = max((machine.get(name, 0.0) for machine in machines), default=0.0)
            if wanted > most:
                raise UserError(
                    f"hydra.launcher.{key}",
                    f"hydra.launcher.{key}={wanted:g}: no machine of the Ray cluster has more than "
                    f"{most:g} {name}s",
                    f"set hydra.launcher.{key}={most:g}, or add a machine with ray start",
                )

    @staticmethod
    def _result(running: Any) -> JobReturn:
        import ray

        try:
            result = ray.get(running)
        except ray.exceptions.RayError as error:
            return _died(f"its Ray task ended without a result ({one_line(error)})")
        assert isinstance(result, JobReturn)
        return result


def _call(job: RemoteJob) -> JobReturn:
    return job()
