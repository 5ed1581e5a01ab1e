"""Runs claimed trials through one of Hydra's launchers."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from research.engine.run_folder import is_locked
from research.sweeps.space import Space
from research.sweeps.storage import StorageError
from research.sweeps.study import Claim, Study
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
    for claim in claims:
        swept = " ".join(space.overrides(claim.point)[len(space.fixed) :])
        log.info("sweep: trial %d: %s", claim.number, swept)
    try:
        launched = launcher.launch(jobs, initial_job_idx=claims[0].number)
        returns: list[JobReturn] = [JobResult(**vars(result)) for result in launched]
    except StorageError:
        raise
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
            _fail_if_unreported(study, claim, result)
        return returns
    finally:
        release(claims)


def release(claims: Sequence[Claim]) -> None:
    """Release the locks, so that other processes may claim the trials."""
    for claim in claims:
        claim.lock.release()


def _fail_if_unreported(study: Study, claim: Claim, result: JobReturn) -> None:
    """Mark a trial as failed whose job raised before it could report anything itself."""
    try:
        _ = result.return_value
    except StorageError:
        raise  # the trial goes on when the storage works
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        with study.locked():
            trial = study.trial(claim.number)
            run = study.run_of(trial)
            if not trial.state.is_finished() and (run is None or not is_locked(run)):
                trace = None if isinstance(error, UserError) else error
                log.error("sweep: a job failed: %s", reason, exc_info=trace)
                study.fail(claim.number, reason)
