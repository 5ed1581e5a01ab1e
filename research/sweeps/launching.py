"""Trials on their way through a launcher of Hydra's, and back into the study."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from research.sweeps.space import Space
from research.sweeps.study import Claim, Study
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)


def launch(
    launcher: Launcher, study: Study, space: Space, claims: Sequence[Claim]
) -> list[JobReturn]:
    """Run trials that this process has claimed, and let go of them.

    Returns:
        what each job gave; nothing when the launcher failed after some of them had begun.

    Raises:
        UserError: when no job began.
        KeyboardInterrupt: as it came; the interrupted attempts do not count.
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
        told = " ".join(space.overrides(claim.point)[len(space.fixed) :])
        log.info("sweep: trial %d: %s", claim.number, told)
    try:
        returns = list(launcher.launch(jobs, initial_job_idx=claims[0].number))
    except Exception as error:
        log.error("sweep: the launcher failed", exc_info=error)
        if not any("run" in study.trial(claim.number).user_attrs for claim in claims):
            raise UserError(
                "hydra/launcher",
                f"hydra/launcher: no job began ({one_line(error)})",
                "the same command goes on with these trials",
            ) from error
        return []
    except KeyboardInterrupt:
        release(claims)
        with study.locked():
            for claim in claims:
                study.excuse(claim.number)
        raise
    else:
        for claim, ended in zip(claims, returns, strict=True):
            _settle(study, claim, ended)
        return returns
    finally:
        release(claims)


def release(claims: Sequence[Claim]) -> None:
    """Let other processes have the trials."""
    for claim in claims:
        claim.held.release()


def _settle(study: Study, claim: Claim, ended: JobReturn) -> None:
    """Fail a trial whose job ended by an exception before it could tell of itself."""
    from research.engine.run_folder import busy

    try:
        _ = ended.return_value
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        with study.locked():
            trial = study.trial(claim.number)
            run = trial.user_attrs.get("run")
            if not trial.state.is_finished() and (run is None or not busy(Path(run))):
                trace = None if isinstance(error, UserError) else error
                log.error("sweep: a job broke off: %s", reason, exc_info=trace)
                study.fail(claim.number, reason)
