"""Hydra's own sweepers, basic and Optuna, with their jobs recorded as trials of a study.

The sweepers choose the points as usual. A ``RecordingLauncher`` between sweeper and launcher
assigns each job a trial, so that folder, summary, tables and parent run are the same for every
sweeper, and a job that has finished before is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig, OmegaConf, read_write

from research.config.compose import without_secrets
from research.utils import secrets
from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.sweeps.space import Space
    from research.sweeps.study import Study

log = logging.getLogger(__name__)


class RecordedBasicSweeper(BasicSweeper):
    """Hydra's basic sweeper; see ``conf/hydra/sweeper/basic.yaml``."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        super().setup(
            hydra_context=hydra_context,
            task_function=task_function,
            config=without_secrets(config),  # written to multirun.yaml
        )

    def sweep(self, arguments: list[str]) -> Any:
        from research.sweeps.space import Space

        assert self.config is not None
        assert self.hydra_context is not None
        space = Space.parse(self.params, arguments)
        if space.size is None:
            raise UserError(
                "hydra/sweeper",
                "hydra/sweeper=basic runs every combination of listed values",
                "list values, or choose hydra/sweeper=study hydra/sweeper/sampler=tpe",
            )
        with recorded_study(self.config, self.hydra_context, space, space.size) as study:
            assert self.launcher is not None
            self.launcher = RecordingLauncher(self.launcher, study, space)  # type: ignore[assignment]
            self.params = {}
            return super().sweep(space.words)


class RecordedOptunaSweeper(OptunaSweeper):
    """Hydra's Optuna sweeper; see ``conf/hydra/sweeper/optuna.yaml``."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        super().setup(
            hydra_context=hydra_context,
            task_function=task_function,
            config=without_secrets(config),
        )

    def sweep(self, arguments: list[str]) -> None:
        from research.sweeps.space import Space

        inner: Any = self.sweeper
        if isinstance(inner.storage, str):
            inner.storage = secrets.reveal(secrets.hide(inner.storage)) or inner.storage
        space = Space.parse(inner.params or {}, arguments)
        with recorded_study(inner.config, inner.hydra_context, space, inner.n_trials) as study:
            (objective,) = study.description["objectives"]
            name, direction = objective["name"], objective["direction"]
            if inner.direction not in (None, direction):
                raise UserError(
                    "hydra.sweeper.direction",
                    f"hydra.sweeper.direction={inner.direction}: the direction of {name} is "
                    f"{direction}",
                    "leave it out",
                )
            inner.direction = direction
            inner.launcher = RecordingLauncher(inner.launcher, study, space)
            inner.params = None
            super().sweep(space.words)


class RecordingLauncher:
    """A launcher that assigns each job a trial and skips jobs that have finished.

    Args:
        launcher: Hydra's.
        study: in which trials are recorded.
        space: of the sweep.
    """

    def __init__(self, launcher: Launcher, study: Study, space: Space) -> None:
        self.launcher = launcher
        self.study = study
        self.space = space

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """The value of the monitored metric for each job; from the study if it has finished."""
        from research.sweeps.launching import launch
        from research.sweeps.study import Claim

        trials = [
            self.study.claim_point(self.space, self.space.point(words)) for words in job_overrides
        ]
        claims = [trial for trial in trials if isinstance(trial, Claim)]
        returns = launch(self.launcher, self.study, self.space, claims) if claims else []
        launched = dict(zip([claim.number for claim in claims], returns, strict=False))
        results = []
        for trial in trials:
            values = None
            if not isinstance(trial, Claim):
                log.info("sweep: trial %d was finished before", trial.number)
                values = trial.values
            results.append(launched.get(trial.number) or _job_return(values))
        return results


@contextmanager
def recorded_study(
    config: DictConfig, context: HydraContext, space: Space, total: int
) -> Iterator[Study]:
    """Create or reopen the study of a sweep and record how the sweep inside ends.

    Args:
        config: Hydra's, of the whole sweep; its jobs get folders below the study's.
        context: Hydra's.
        space: of the sweep.
        total: number of jobs.
    """
    # Imported late: Hydra also creates sweepers to print a configuration.
    from research.config import resolved, targets
    from research.engine.interrupts import terminate_as_interrupt
    from research.sweeps import record
    from research.sweeps.objectives import objectives
    from research.sweeps.study import Study, search_settings
    from research.utils import logs

    logs.to_terminal()
    terminate_as_interrupt()
    monitor = space.monitor(context, config)
    wanted = objectives(["monitor"], monitor)
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(sweeper, dict)
    sampler = str(sweeper["_target_"]).rpartition(".Recorded")[2]
    search = search_settings(wanted, space, None, sampler)
    name = sweeper.get("study_name") or study_name(config, search, sweeper)
    study = Study(str(name), None, directions=[each.direction for each in wanted])
    own = resolved(config)
    own["trust"] = targets.user_targets(own)
    with study.locked():
        study.describe(search, pruner=None, monitor=monitor, n_trials=total, configuration=own)
    with read_write(config.hydra):
        config.hydra.sweep.dir = str(study.folder)
    with record.recorded(study, own):
        yield study


def study_name(config: DictConfig, search: Mapping[str, Any], settings: Any) -> str:
    """Name of the preset or experiment, and a digest of search and sweeper settings."""
    choices = config.hydra.runtime.choices
    digest = hashlib.sha256(json.dumps([search, settings], sort_keys=True).encode())
    first = choices.get("sweep") or choices.get("experiment") or choices["hydra/sweeper"]
    return f"{first}_{digest.hexdigest()[:8]}"


def _job_return(values: Sequence[float] | None) -> JobReturn:
    """The result of a job that was not run, with its value from the study."""
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    result.return_value = values[0] if values else None
    return result
