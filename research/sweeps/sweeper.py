"""The default sweeper: every ``-m`` is a study that the same command resumes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from research.config.compose import without_secrets
from research.utils import secrets
from research.utils.counts import counted
from research.utils.errors import UserError, one_line
from research.utils.progress import Phase

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from research.sweeps.space import Space
    from research.sweeps.study import Claim, Study

log = logging.getLogger(__name__)

GRID: Final = "optuna.samplers.GridSampler"
SAMPLERS: Final = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
TRIALS: Final = 20
"""Default of ``n_trials`` for an infinite space."""


class StudySweeper(Sweeper):
    """Launches trials at points of an Optuna study until the study has ``n_trials``.

    Args: see ``conf/hydra/sweeper/study.yaml``.
    """

    def __init__(
        self,
        sampler: DictConfig,
        pruner: DictConfig,
        study_name: str | None,
        storage: str | None,
        params: DictConfig | None,
        objectives: Sequence[str],
        n_trials: int | None,
        seed: int,
        n_jobs: int | None,
        max_failure_rate: float,
        retry_failed: bool,
    ) -> None:
        self.sampler = sampler
        self.pruner = pruner
        self.study_name = study_name
        self.storage = None if storage is None else secrets.hide(storage)
        self.params = {str(key): value for key, value in (params or {}).items()}
        self.objectives = list(objectives)
        self.n_trials = n_trials
        self.seed = seed
        self.n_jobs = n_jobs
        self.max_failure_rate = max_failure_rate
        self.retry_failed = retry_failed
        self.base = DictConfig({})
        self.context: HydraContext | None = None
        self.task: TaskFunction | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        # Launchers store or send this configuration; each job composes its own.
        self.context, self.task, self.base = hydra_context, task_function, without_secrets(config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the remaining trials of the study.

        Args:
            arguments: overrides, ``key=value`` each, some with several values.

        Raises:
            UserError: for an invalid space or setting, and if too many trials failed.
        """
        # Imported late: Hydra also creates sweepers to print a configuration.
        from research.config import resolved, targets
        from research.sweeps.description import SUMMARY
        from research.sweeps.space import Space
        from research.utils import logs

        logs.to_terminal()
        recipe = self.base.hydra.runtime.choices.get("experiment")
        space = Space.parse(self.params, arguments, recipe)
        total = self._total(space)
        config = resolved(self.base)
        config["trust"] = targets.user_targets(config)
        study = self._open(space, total)
        from research.engine.interrupts import terminate_as_interrupt
        from research.sweeps import record
        from research.sweeps.launching import launch

        terminate_as_interrupt()
        with record.recorded(study, config), Phase("sweep", unit="trials") as phase:
            trials, failed = study.trials(), study.failed()
            retry = {trial.number for trial in failed} if self.retry_failed else set()
            _log_start(study, total, retry)
            launcher = self._launcher(study)
            # A smaller n_trials than before does not undo trials.
            phase.total = planned = max(total, len(trials))
            phase.first = sum(trial.state.is_finished() for trial in trials)
            # Failures that are about to be retried do not count.
            while not self._too_many([f for f in failed if f.number not in retry], planned):
                phase.update(sum(trial.state.is_finished() for trial in study.trials()))
                claims = self._claims(study, space, total, retry)
                if not claims:
                    break
                launch(launcher, study, space, claims)
                failed = study.failed()
            if self._too_many(failed, planned):
                raise UserError(
                    "hydra.sweeper.max_failure_rate",
                    f"{len(failed)} of {planned} trials failed, more than "
                    f"hydra.sweeper.max_failure_rate={self.max_failure_rate:g} allows (the last: "
                    f"{failed[-1].user_attrs.get('reason', '')}); see {study.folder / SUMMARY}",
                    "hydra.sweeper.retry_failed=true tries them again",
                )

    def _too_many(self, failed: Sequence[object], total: int) -> bool:
        return len(failed) > self.max_failure_rate * total

    # -- before the first trial ------------------------------------------------------------------

    @property
    def _grid(self) -> bool:
        return bool(self.sampler._target_ == GRID)

    def _total(self, space: Space) -> int:
        from research.sweeps.space import MAX_POINTS, axis_values

        size = space.size
        if size is None and self._grid:
            continuous = [key for key, axis in space.axes.items() if axis_values(axis) is None]
            if not continuous:
                raise UserError(
                    "hydra/sweeper/sampler",
                    f"the grid has more than {MAX_POINTS:,} points",
                    "choose hydra/sweeper/sampler=random or tpe, or fewer values",
                )
            key = continuous[0]
            raise UserError(
                "hydra/sweeper/sampler",
                f"{key}={space.expressions[key]}: a grid needs a finite number of values",
                "choose hydra/sweeper/sampler=random or tpe, or list values",
            )
        wanted = self.n_trials or (size if self._grid else TRIALS) or TRIALS
        return wanted if size is None else min(wanted, size)

    def _open(self, space: Space, total: int) -> Study:
        """Create or reopen the study and write its ``study.json``.

        Raises:
            UserError: for settings that cannot be used, and if a study of that name belongs to
                another search.
        """
        from research.sweeps.objectives import MONITOR

        pruner_name = self.pruner._target_.rpartition(".")[2]
        if self.objectives != [MONITOR] and pruner_name != "NopPruner":
            raise UserError(
                "hydra/sweeper/pruner",
                "hydra/sweeper/pruner: trials are stopped early by the monitored metric, which is "
                f"not what hydra.sweeper.objectives=[{','.join(self.objectives)}] asks for alone",
                "choose hydra/sweeper/pruner=none",
            )
        points = self.sampler.get("reference_points") or []
        if any(len(point) != len(self.objectives) for point in points):
            raise UserError(
                "hydra.sweeper.sampler.reference_points",
                f"hydra.sweeper.sampler.reference_points={list(map(list, points))}: each point "
                f"needs {len(self.objectives)} values, one of each objective",
                "leave it out",
            )
        if pruner_name == "HyperbandPruner" and self.pruner.min_resource == "auto":
            raise UserError(
                "hydra.sweeper.pruner.min_resource",
                "hydra.sweeper.pruner.min_resource=auto: only successive_halving takes it",
                "set a number of epochs",
            )
        if self.sampler._target_.endswith("CmaEsSampler") and find_spec("cmaes") is None:
            raise UserError(
                "hydra/sweeper/sampler",
                "hydra/sweeper/sampler=cmaes: needs the package cmaes",
                "pip install cmaes",
            )
        # Imported late, with torch, which the checks above do not need.
        from hydra.utils import instantiate

        from research.sweeps.identity import digest
        from research.sweeps.job import PRUNERS
        from research.sweeps.opening import open_study, search_of

        assert self.context is not None
        samplers = self._samplers()
        with _refused("hydra/sweeper/pruner"):
            pruner = instantiate(self.pruner, _execution_whitelist_=PRUNERS)
        with _refused("hydra/sweeper/sampler"):
            samplers(self._sampler_seed)
        sampler = OmegaConf.to_container(self.sampler)
        search = search_of(
            space,
            self.context,
            self.base,
            self.objectives,
            storage=self.storage,
            sampler=self.sampler._target_.rpartition(".")[2],
            settings=[self.seed, sampler, self.pruner._target_],
        )

        choices = self.base.hydra.runtime.choices
        prefix = choices.get("sweep") or choices.get("experiment") or "grid"

        def legacy(known: Mapping[str, Any]) -> str:
            return f"{prefix}_{digest((known, *search.settings), 8)}"

        return open_study(
            search,
            self.study_name,
            prefix,
            legacy,
            url=self.storage,
            sampler=samplers,
            pruner=None if pruner_name == "NopPruner" else pruner,
            n_trials=total,
        )

    @property
    def _sampler_seed(self) -> int:
        """``hydra.sweeper.seed``, or that of the sampler itself, as Optuna calls it."""
        own = self.sampler.get("seed")
        return self.seed if own is None else int(own)

    def _samplers(self) -> Callable[[int], BaseSampler]:
        from hydra.utils import instantiate
        from optuna.samplers import QMCSampler, RandomSampler

        if self._grid:
            return RandomSampler

        def make(seed: int) -> BaseSampler:
            # QMC points belong to one sequence, which a new seed would restart.
            sequence = self.sampler._target_.endswith(QMCSampler.__name__)
            own = self._sampler_seed if sequence else seed
            node = OmegaConf.merge(self.sampler, {"seed": own})
            sampler: BaseSampler = instantiate(node, _execution_whitelist_=SAMPLERS)
            return sampler

        return make

    # -- trials ----------------------------------------------------------------------------------

    def _launcher(self, study: Study) -> Launcher:
        assert self.context is not None
        assert self.task is not None
        with read_write(self.base.hydra):
            self.base.hydra.sweep.dir = str(study.folder)
        with _refused("hydra/launcher"):
            return Plugins.instance().instantiate_launcher(
                config=self.base, hydra_context=self.context, task_function=self.task
            )

    @property
    def _parallel(self) -> int:
        """Trials at a time: ``n_jobs``, by default as many as the launcher runs in parallel."""
        launcher = self.base.hydra.launcher
        jobs = launcher.get("n_jobs") or launcher.get("array_parallelism") or 1
        return self.n_jobs or (jobs if jobs > 0 else os.cpu_count() or 1)

    def _claims(self, study: Study, space: Space, total: int, retry: set[int]) -> list[Claim]:
        from research.sweeps.launching import release

        claims: list[Claim] = []
        try:
            while len(claims) < self._parallel:
                seed = self._sampler_seed
                claim = study.claim_trial(space, total, seed, retry, grid=self._grid)
                if claim is None:
                    break
                claims.append(claim)
        except BaseException:
            release(claims)
            raise
        return claims


@contextmanager
def _refused(key: str) -> Iterator[None]:
    """Explain that Optuna refuses the settings of a sampler or pruner."""
    try:
        yield
    except Exception as error:  # of Optuna, for an invalid setting
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(key, f"{key}: {one_line(cause)}") from error


def _log_start(study: Study, total: int, retry: set[int]) -> None:
    states = [trial.state.name for trial in study.trials()]
    if not states:
        trials = counted(total, "trials")
        log.info("sweep: study %s, %s, in %s", study.name, trials, study.folder)
        return
    done = len(states) - states.count("RUNNING")
    again = f", {len(retry)} of them to be retried" if retry else ""
    log.info(
        "sweep: resuming study %s: %d of %d trials done (%d failed%s), %d unfinished, in %s",
        study.name,
        done,
        max(total, len(states)),
        states.count("FAIL"),
        again,
        states.count("RUNNING"),
        study.folder,
    )
    if total < len(states):
        log.info("sweep: n_trials=%d is less than the trials of earlier commands", total)
    if done >= max(total, len(states)) and not retry:
        log.info(
            "sweep: nothing left to do; set hydra.sweeper.study_name=NAME to run it again, or a "
            "larger hydra.sweeper.n_trials for more points of an infinite space"
        )
