"""Hydra's sweeper of ours: every ``-m`` is a study that the same command continues."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from research.utils.errors import UserError, one_line

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from research.sweeps.space import Space
    from research.sweeps.study import Claim, Study
    from research.tracking.tracker import Status

log = logging.getLogger(__name__)

GRID: Final = "optuna.samplers.GridSampler"
SAMPLERS: Final = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
TRIALS: Final = 20
"""Of a space without end, when nobody says how many."""


class StudySweeper(Sweeper):
    """Asks an Optuna study for points and launches them, until there are as many as asked for.

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
        self.storage = storage
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
        self.context, self.task, self.base = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study lacks.

        Args:
            arguments: overrides, ``key=value`` each, some with several values.

        Raises:
            UserError: for a space or setting that cannot be, and when too many trials failed.
        """
        # Imported late: Hydra makes sweepers to show a configuration, too.
        from research.config import resolved, targets
        from research.sweeps.space import Space
        from research.utils import logs

        logs.to_terminal()
        space = Space.of(self.params, arguments)
        total = self._total(space)
        config = resolved(self.base)
        config["trust"] = targets.beyond(config)
        study = self._open(space, total, config)
        from research.engine import run
        from research.sweeps import record
        from research.sweeps.launching import launch
        from research.sweeps.record import failed as failed_of

        run.terminate_as_interrupt()
        status: Status = "FAILED"
        try:
            with study.locked():
                failed = failed_of(record.update(study, config))
            retry = {entry["trial"] for entry in failed} if self.retry_failed else set()
            _say_start(study, total, retry)
            launcher = self._launcher(study)
            # A failure that is yet to be tried again says nothing.
            while not self._too_many([f for f in failed if f["trial"] not in retry], total):
                claims = self._claims(study, space, total, retry)
                if not claims:
                    break
                launch(launcher, study, space, claims)
                with study.locked():
                    failed = failed_of(record.summary(study))
            if not self._too_many(failed, total):
                status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            with study.locked():
                summary = record.update(study, config, status)
        record.say_end(study, summary)
        if status == "FAILED":
            raise UserError(
                "hydra.sweeper.max_failure_rate",
                f"{len(failed)} of {total} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate:g} allows (the last: "
                f"{failed[-1]['reason']}); see {study.folder / record.NAME}",
                "hydra.sweeper.retry_failed=true tries them again",
            )

    def _too_many(self, failed: Sequence[object], total: int) -> bool:
        return len(failed) > self.max_failure_rate * total

    # -- before the first trial ------------------------------------------------------------------

    @property
    def _grid(self) -> bool:
        return bool(self.sampler._target_ == GRID)

    def _total(self, space: Space) -> int:
        from research.sweeps.space import MOST_POINTS

        size = space.size
        if size is None and self._grid:
            key = next((k for k, axis in space.axes.items() if not _finite(axis)), None)
            if key is None:
                raise UserError(
                    "hydra/sweeper/sampler",
                    f"a grid of more than {MOST_POINTS:,} points: nobody runs them all",
                    "choose hydra/sweeper/sampler=random or tpe, or fewer values",
                )
            raise UserError(
                "hydra/sweeper/sampler",
                f"{key}={space.told[key]}: a grid has no end of these values",
                "choose hydra/sweeper/sampler=random or tpe, or list values",
            )
        wanted = self.n_trials or (size if self._grid else TRIALS) or TRIALS
        return wanted if size is None else min(wanted, size)

    def _open(self, space: Space, total: int, config: dict[str, Any]) -> Study:
        """The study, made or found again, with its ``study.json``.

        Raises:
            UserError: when one of that name is of another search.
        """
        pruned = self.pruner._target_.rpartition(".")[2]
        if len(self.objectives) > 1 and pruned != "NopPruner":
            raise UserError(
                "hydra/sweeper/pruner",
                "hydra/sweeper/pruner: a sweep of several objectives cannot stop trials early",
                "choose hydra/sweeper/pruner=none",
            )
        if self.sampler._target_.endswith("CmaEsSampler") and find_spec("cmaes") is None:
            raise UserError(
                "hydra/sweeper/pruner",
                "hydra/sweeper/sampler=cmaes: it needs a package: pip install cmaes",
            )
        # Loaded late, with torch, of which such mistakes have no need.
        from hydra.utils import instantiate

        from research.sweeps.job import PRUNERS
        from research.sweeps.objectives import objectives
        from research.sweeps.study import STORE, Study, known_as

        assert self.context is not None
        monitor = space.monitor(self.context, self.base)
        wanted = objectives(self.objectives, monitor)
        try:
            pruner = instantiate(self.pruner, _execution_whitelist_=PRUNERS)
        except Exception as error:  # whatever Optuna has against a setting
            raise UserError(
                "hydra/sweeper/pruner", f"hydra/sweeper/pruner: {one_line(error)}"
            ) from error
        search = {
            "objectives": [objective._asdict() for objective in wanted],
            "space": space.told,
            "fixed": space.compared,
            "storage": self.storage or str(STORE),
            "sampler": self.sampler._target_.rpartition(".")[2],
        }
        name = self.study_name or known_as(search, self._name)
        study = Study(
            name, self.storage, self._samplers(), pruner, [each.direction for each in wanted]
        )
        with study.locked():
            study.begin(
                search,
                {
                    "command": sys.argv,
                    "pruner": None if pruned == "NopPruner" else pruned,
                    "monitor": monitor,
                    "n_trials": total,
                    "configuration": config,
                    "started": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            )
        return study

    def _samplers(self) -> Callable[[int], BaseSampler]:
        from hydra.utils import instantiate
        from optuna.samplers import QMCSampler, RandomSampler

        if self._grid:
            return RandomSampler

        def make(seed: int) -> BaseSampler:
            # Of one sequence are all points of this one; the others draw.
            one = self.sampler._target_.endswith(QMCSampler.__name__)
            node = OmegaConf.merge(self.sampler, {"seed": self.seed if one else seed})
            sampler: BaseSampler = instantiate(node, _execution_whitelist_=SAMPLERS)
            return sampler

        return make

    def _name(self, search: Mapping[str, Any]) -> str:
        choices = self.base.hydra.runtime.choices
        settings = (search, self.seed, OmegaConf.to_container(self.sampler), self.pruner._target_)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{choices.get('sweep') or choices.get('experiment') or 'grid'}_{digest}"

    # -- trials ----------------------------------------------------------------------------------

    def _launcher(self, study: Study) -> Launcher:
        assert self.context is not None
        assert self.task is not None
        with read_write(self.base.hydra):
            self.base.hydra.sweep.dir = str(study.folder)
        return Plugins.instance().instantiate_launcher(
            config=self.base, hydra_context=self.context, task_function=self.task
        )

    @property
    def _at_once(self) -> int:
        """As many trials as the launcher takes, unless somebody says how many."""
        launcher = self.base.hydra.launcher
        takes = launcher.get("n_jobs") or launcher.get("array_parallelism") or 1
        return self.n_jobs or (takes if takes > 0 else os.cpu_count() or 1)

    def _claims(self, study: Study, space: Space, total: int, retry: set[int]) -> list[Claim]:
        from research.sweeps.launching import release

        found: list[Claim] = []
        try:
            while len(found) < self._at_once:
                claim = study.claim(space, total, self.seed, retry, grid=self._grid)
                if claim is None:
                    break
                found.append(claim)
        except BaseException:
            release(found)
            raise
        return found


def _finite(axis: Any) -> bool:
    from research.sweeps.space import values_of

    return values_of(axis) is not None


def _say_start(study: Study, total: int, retry: set[int]) -> None:
    states = [trial.state.name for trial in study.trials()]
    if not states:
        log.info("sweep: study %s, %d trials, in %s", study.name, total, study.folder)
        return
    done = len(states) - states.count("RUNNING")
    again = f", {len(retry)} that failed are tried again" if retry else ""
    log.info(
        "sweep: study %s goes on: %d of %d trials are done (%d failed%s), %d were begun, in %s",
        study.name,
        done,
        total,
        states.count("FAIL"),
        again,
        states.count("RUNNING"),
        study.folder,
    )
    if done >= total and not retry:
        log.info(
            "sweep: nothing is left to do; another hydra.sweeper.study_name runs it again, of a "
            "space without end a larger n_trials more of it"
        )
