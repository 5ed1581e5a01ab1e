"""The two sweepers that users of Hydra know, with their jobs recorded as the trials of a study.

They choose the points, as ever. Between them and the launcher stands a ``Recorder``: it gives every
job its trial, so that a sweep's folder, summary, tables and parent run are the same whichever
sweeper made it, and so that a job which has finished before is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig, OmegaConf, read_write

from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.sweeps.space import Space
    from research.sweeps.study import Study
    from research.tracking.tracker import Status

log = logging.getLogger(__name__)


class RecordedBasicSweeper(BasicSweeper):
    """Hydra's basic sweeper; see ``conf/hydra/sweeper/basic.yaml``."""

    def sweep(self, arguments: list[str]) -> Any:
        from research.sweeps.space import Space

        assert self.config is not None
        assert self.hydra_context is not None
        space = Space.of(self.params, arguments)
        if space.size is None:
            raise UserError(
                "hydra/sweeper",
                "hydra/sweeper=basic runs every combination: list values, or choose "
                "hydra/sweeper=study hydra/sweeper/sampler=tpe",
            )
        with recorded(self.config, self.hydra_context, space, space.size) as record:
            assert self.launcher is not None
            self.launcher = Recorder(self.launcher, record, space)  # type: ignore[assignment]
            self.params = {}
            return super().sweep(space.words)


class RecordedOptunaSweeper(OptunaSweeper):
    """Hydra's Optuna sweeper; see ``conf/hydra/sweeper/optuna.yaml``."""

    def sweep(self, arguments: list[str]) -> None:
        from research.sweeps.space import Space

        inner: Any = self.sweeper
        space = Space.of(inner.params or {}, arguments)
        with recorded(inner.config, inner.hydra_context, space, inner.n_trials) as record:
            (objective,) = record.about["objectives"]
            asked = inner.direction
            if asked not in (None, objective["direction"]):
                raise UserError(
                    "hydra.sweeper.direction",
                    f"hydra.sweeper.direction={asked}: {objective['name']} is to "
                    f"{objective['direction']}",
                    "leave it out",
                )
            inner.direction = objective["direction"]
            inner.launcher = Recorder(inner.launcher, record, space)
            inner.params = None
            super().sweep(space.words)


class Recorder:
    """A launcher that gives every job its trial, and leaves out those that have finished.

    Args:
        launcher: Hydra's.
        study: the record.
        space: of the sweep.
    """

    def __init__(self, launcher: Launcher, study: Study, space: Space) -> None:
        self.launcher = launcher
        self.study = study
        self.space = space

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """What each job gives: the value of the monitored metric, at once where it is known."""
        from research.sweeps.launching import launch
        from research.sweeps.study import Claim

        found = [self.study.take(self.space, self.space.point(words)) for words in job_overrides]
        claims = [each for each in found if isinstance(each, Claim)]
        ended = launch(self.launcher, self.study, self.space, claims) if claims else []
        fresh = dict(zip([claim.number for claim in claims], ended, strict=False))
        known = {each.number: each for each in found if not isinstance(each, Claim)}
        for number in known:
            log.info("sweep: trial %d was finished before", number)
        return [
            fresh.get(each.number)
            or _returned(known[each.number].values if each.number in known else None)
            for each in found
        ]


@contextmanager
def recorded(
    config: DictConfig, context: HydraContext, space: Space, total: int
) -> Iterator[Study]:
    """A study that is described, and told how the sweep inside ended.

    Args:
        config: Hydra's, of the whole sweep; jobs will lie below the study's folder.
        context: Hydra's.
        space: of the sweep.
        total: jobs.
    """
    # Imported late: Hydra makes sweepers to show a configuration, too.
    from research.config import resolved, targets
    from research.engine import run
    from research.sweeps import record
    from research.sweeps.objectives import objectives
    from research.sweeps.study import STORE, Study
    from research.utils import logs

    logs.to_terminal()
    run.terminate_as_interrupt()
    monitor = space.monitor(context, config)
    wanted = objectives(["monitor"], monitor)
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(sweeper, dict)
    search = {
        "objectives": [objective._asdict() for objective in wanted],
        "space": space.told,
        "fixed": space.compared,
        "storage": str(STORE),
        "sampler": str(sweeper["_target_"]).rpartition(".Recorded")[2],
    }
    name = sweeper.get("study_name") or name_of(config, search, sweeper)
    study = Study(str(name), None, directions=[each.direction for each in wanted])
    own = resolved(config)
    own["trust"] = targets.beyond(own)
    with study.locked():
        study.begin(search, {
            "command": sys.argv, "pruner": None, "monitor": monitor, "n_trials": total,
            "configuration": own, "started": datetime.now(UTC).isoformat(timespec="seconds"),
        })  # fmt: skip
    with read_write(config.hydra):
        config.hydra.sweep.dir = str(study.folder)
    status: Status = "FAILED"
    try:
        yield study
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with study.locked():
            summary = record.update(study, own, status)
        record.say_end(study, summary)


def name_of(config: DictConfig, search: Mapping[str, Any], settings: Any) -> str:
    """A study's name: of the preset or recipe, and a digest of what is searched and how."""
    choices = config.hydra.runtime.choices
    digest = hashlib.sha256(json.dumps([search, settings], sort_keys=True).encode())
    first = choices.get("sweep") or choices.get("experiment") or choices["hydra/sweeper"]
    return f"{first}_{digest.hexdigest()[:8]}"


def _returned(values: Sequence[float] | None) -> JobReturn:
    """Of a job that was not run: its value from the record."""
    found = JobReturn()
    found.status = JobStatus.COMPLETED
    found.return_value = values[0] if values else None
    return found
