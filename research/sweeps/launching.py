"""Runs claimed trials through one of Hydra's launchers."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from research.engine.run_folder import is_locked
from research.sweeps.launchers import JobDied
from research.sweeps.space import Space
from research.sweeps.storage import StorageError
from research.sweeps.study import MAX_ATTEMPTS, Claim, Study
from research.utils import bars
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)


class JobResult(JobReturn):
    """The result of a job; a failure is raised without Hydra's own line about it on stderr.

    The trial has logged the failure, and the exception itself is reported in one line.
    """

    @property
    def return_value(self) -> Any:
        with redirect_stderr(io.StringIO()):
            return super().return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def launch(
    launcher: Launcher, study: Study, space: Space, claims: Sequence[Claim]
) -> list[JobReturn]:
    """Run trials that this process has claimed, then release the claims.

    Returns:
        the result of each job; empty if the launcher failed after some of them had started.

    Raises:
        UserError: if no job started.
        KeyboardInterrupt: passed on; the interrupted attempts do not count.
    """
    jobs = [
        [
            *space.overrides(claim.point),
            f"hydra.sweep.dir={study.folder}",
            f"hydra.sweep.subdir={study.run_folder(claim.number, 1).name}",
        ]
        for claim in claims
    ]
    before = {claim.number: dict(study.trial(claim.number).user_attrs) for claim in claims}
    if not isinstance(launcher, BasicLauncher):
        bars.end()  # the jobs' own processes write to the terminal
    for claim in claims:
        swept = " ".join(space.overrides(claim.point)[len(space.fixed) :])
        log.info("sweep: trial %d: %s", claim.number, swept)
    try:
        launched = launcher.launch(jobs, initial_job_idx=claims[0].number)
        returns: list[JobReturn] = [JobResult(**vars(result)) for result in launched]
    except UserError:
        raise  # also a StorageError
    except Exception as error:
        log.error("sweep: the launcher failed", exc_info=error)
        if not any("run" in study.trial(claim.number).user_attrs for claim in claims):
            raise UserError(
                "hydra/launcher",
                f"hydra/launcher: no job started ({one_line(error)})",
                "run the same command again to resume these trials",
            ) from error
        return []
    except KeyboardInterrupt:
        release(claims)
        with study.locked():
            for claim in claims:
                study.forgive(claim.number)
        raise
    else:
        for claim, result in zip(claims, returns, strict=True):
            _fail_if_unreported(study, claim, result, before[claim.number])
        return returns
    finally:
        release(claims)


def release(claims: Sequence[Claim]) -> None:
    """Release the locks, so that other processes may claim the trials."""
    for claim in claims:
        claim.lock.release()


def _fail_if_unreported(
    study: Study, claim: Claim, result: JobReturn, before: Mapping[str, Any]
) -> None:
    """Record how a job ended that could not report anything itself.

    A trial whose job raised has failed. One whose job died is launched again, unless jobs have died
    too often: the job may have been killed, or the machine may be unable to run any.

    Args:
        study: of the trial.
        claim: of the trial.
        result: of the job.
        before: attributes of the trial before it was launched.
    """
    try:
        _ = result.return_value
    except StorageError:
        raise  # the trial goes on when the storage works
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        with study.locked():
            trial = study.trial(claim.number)
            attrs, run = trial.user_attrs, study.run_of(trial)
            if trial.state.is_finished() or (run is not None and is_locked(run)):
                return
            if isinstance(error, JobDied):
                log.warning("sweep: trial %d: %s", claim.number, one_line(error))
                attempts = attrs.get("attempts", 0) + 1
                if attrs != before:
                    return  # the job has counted its attempt
                if attempts < MAX_ATTEMPTS:
                    study.set_attrs(claim.number, attempts=attempts)
                    return
            trace = None if isinstance(error, UserError | JobDied) else error
            log.error("sweep: a job failed: %s", reason, exc_info=trace)
            study.fail(claim.number, reason)
