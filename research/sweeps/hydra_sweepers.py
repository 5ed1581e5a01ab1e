"""Hydra's own sweepers, basic and Optuna, with their jobs recorded as trials of a study.

The sweepers choose the points as usual. A ``RecordingLauncher`` between sweeper and launcher
assigns each job a trial, so that folder, summary, tables and parent run are the same for every
sweeper, and a job that has finished before is not run again.
"""

from __future__ import annotations

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
        recipe = self.config.hydra.runtime.choices.get("experiment")
        space = Space.parse(self.params, arguments, recipe)
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
        for key in ("n_trials", "n_jobs"):
            if getattr(inner, key) is None:
                raise UserError(
                    f"hydra.sweeper.{key}",
                    f"hydra.sweeper.{key}=null: hydra/sweeper=optuna needs a number",
                    f"leave it out, or set hydra.sweeper.{key}=1",
                )
        recipe = inner.config.hydra.runtime.choices.get("experiment")
        space = Space.parse(inner.params or {}, arguments, recipe)
        with recorded_study(
            inner.config, inner.hydra_context, space, inner.n_trials, inner.direction
        ) as study:
            (objective,) = study.description["objectives"]
            inner.direction = objective["direction"]
            inner.launcher = RecordingLauncher(inner.launcher, study, space, needs_values=True)
            inner.params = None
            super().sweep(space.words)


class RecordingLauncher:
    """A launcher that assigns each job a trial and skips jobs that have finished.

    Args:
        launcher: Hydra's.
        study: in which trials are recorded.
        space: of the sweep.
        needs_values: whether the sweeper chooses its points by the values of others.
    """

    def __init__(
        self, launcher: Launcher, study: Study, space: Space, *, needs_values: bool = False
    ) -> None:
        self.launcher = launcher
        self.study = study
        self.space = space
        self.needs_values = needs_values

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """The value of the monitored metric for each job; from the study if it has finished.

        Raises:
            UserError: after the other jobs, if the sweeper needs the value of a trial that another
                process runs. Without a value Optuna would count the point as failed.
        """
        from research.sweeps.launching import launch
        from research.sweeps.study import Claim

        trials = [
            self.study.claim_point(self.space, self.space.point(words)) for words in job_overrides
        ]
        claims = [trial for trial in trials if isinstance(trial, Claim)]
        returns = launch(self.launcher, self.study, self.space, claims) if claims else []
        launched = dict(zip([claim.number for claim in claims], returns, strict=False))
        results, elsewhere = [], []
        for trial in trials:
            values = None
            if trial.number not in launched and not isinstance(trial, Claim):
                ended = trial.state.is_finished()
                how = "was finished before" if ended else "is run by another process"
                log.info("sweep: trial %d %s", trial.number, how)
                values = trial.values
                elsewhere += [] if ended else [str(trial.number)]
            results.append(launched.get(trial.number) or _job_return(values))
        if elsewhere and self.needs_values:
            raise UserError(
                "hydra/sweeper",
                f"hydra/sweeper=optuna: another process runs trial {', '.join(elsewhere)} of "
                f"{self.study.folder}, whose value this one needs",
                "type the command again when the other process has ended; processes share a sweep "
                "with hydra/sweeper=study",
            )
        return results


@contextmanager
def recorded_study(
    config: DictConfig,
    context: HydraContext,
    space: Space,
    total: int,
    direction: str | None = None,
) -> Iterator[Study]:
    """Create or reopen the study of a sweep and record how the sweep inside ends.

    Args:
        config: Hydra's, of the whole sweep; its jobs get folders below the study's.
        context: Hydra's.
        space: of the sweep.
        total: number of jobs.
        direction: that the user has set, if any.

    Raises:
        UserError: if the direction is not that of the monitored metric.
    """
    # Imported late: Hydra also creates sweepers to print a configuration.
    from research.config import resolved, targets
    from research.engine.interrupts import terminate_as_interrupt
    from research.sweeps import record
    from research.sweeps.identity import digest
    from research.sweeps.opening import open_study, search_of
    from research.utils import logs

    logs.to_terminal()
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(sweeper, dict)
    sampler = str(sweeper["_target_"]).rpartition(".Recorded")[2]
    # An address may contain a password, of which nothing is to be stored.
    settings = {key: value for key, value in sweeper.items() if key != "storage"}
    search = search_of(
        space, context, config, ["monitor"], storage=None, sampler=sampler, settings=settings
    )
    (objective,) = search.objectives
    if direction not in (None, objective.direction):
        raise UserError(
            "hydra.sweeper.direction",
            f"hydra.sweeper.direction={direction}: the direction of {objective.name} is "
            f"{objective.direction}",
            "leave it out",
        )
    terminate_as_interrupt()
    choices = config.hydra.runtime.choices
    prefix = choices.get("sweep") or choices.get("experiment") or choices["hydra/sweeper"]

    def legacy(known: Mapping[str, Any]) -> str:
        return f"{prefix}_{digest([known, sweeper], 8)}"

    name = sweeper.get("study_name")
    study = open_study(search, name and str(name), prefix, legacy, n_trials=total)
    own = resolved(config)
    own["trust"] = targets.user_targets(own)
    with read_write(config.hydra):
        config.hydra.sweep.dir = str(study.folder)
    with record.recorded(study, own):
        yield study


def _job_return(values: Sequence[float] | None) -> JobReturn:
    """The result of a job that was not run, with its value from the study."""
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    result.return_value = values[0] if values else None
    return result
