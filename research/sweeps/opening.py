"""Opens the study of a sweep: composes what identifies it, finds it, restores what it has lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import AwareDatetime, ConfigDict, NonNegativeInt, with_config

from research.config import resolved, targets
from research.sweeps.description import SUMMARY, describe, find_name, read_json
from research.sweeps.identity import Search
from research.sweeps.objectives import check_monitored, monitor, objectives
from research.sweeps.space import Space
from research.sweeps.storage import STORE
from research.sweeps.study import CLAIMED, Study
from research.utils.documents import validate
from research.utils.errors import UserError, one_line

log = logging.getLogger(__name__)

STATES = {
    "FINISHED": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
    "RUNNING": TrialState.RUNNING,
    "KILLED": TrialState.RUNNING,
}
MAX_GAP = 1000
"""Numbers without a trial, before a trial of a summary is not believed."""


def search_of(
    space: Space,
    context: HydraContext,
    base: DictConfig,
    names: Sequence[str],
    *,
    storage: str | None,
    sampler: str,
    settings: Any,
) -> Search:
    """What identifies the study of a sweep.

    Args:
        space: of the sweep.
        context: Hydra's.
        base: Hydra's configuration of the whole sweep.
        names: of the objectives.
        storage: URL of the storage; ``None`` for the journal under ``runs/``.
        sampler: the name of its class.
        settings: of sampler and pruner.

    Raises:
        UserError: if no trial logs the monitored metric, or trials of several tasks are swept.
    """
    options = {
        words: _plain(config) for words, config in space.configurations(context, base).items()
    }
    monitors = dict.fromkeys(monitor(config) for config in options.values())
    if len(monitors) > 1:
        raise UserError(
            "monitor",
            f"monitor: the trials monitor {' and '.join(monitors)}, which cannot be compared",
            "sweep over models of one task",
        )
    for config in options.values():
        check_monitored(config)
    (monitored,) = monitors
    return Search(
        objectives(names, monitored),
        monitored,
        space,
        storage or str(STORE),
        sampler,
        _plain(base),
        options if any(options) else {},
        settings,
    )


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = resolved(config)
    plain["trust"] = targets.user_targets(plain)
    return plain


def open_study(
    search: Search,
    name: str | None,
    prefix: str,
    legacy: Callable[[Mapping[str, Any]], str],
    *,
    url: str | None = None,
    sampler: Callable[[int], BaseSampler] | None = None,
    pruner: BasePruner | None = None,
    n_trials: int,
) -> Study:
    """Create or reopen the study of a search.

    Args:
        search: from ``search_of``.
        name: that the user has chosen.
        prefix: of any other name.
        legacy: see ``find_name``.
        url: of the storage.
        sampler: see ``Study``.
        pruner: see ``Study``.
        n_trials: trials in all.

    Raises:
        UserError: if the study of that name belongs to another search.
        StorageError: if the storage cannot be used.
    """
    study = Study(
        name or find_name(search, prefix, legacy),
        url,
        sampler,
        pruner,
        [each.direction for each in search.objectives],
    )
    with study.locked():
        trials = study.trials()
        describe(
            study.folder,
            search,
            named=name is not None,
            has_trials=bool(trials) or any(study.folder.glob("trial_*")),
            pruner=None if pruner is None else type(pruner).__name__,
            n_trials=max(n_trials, len(trials)),
        )
        restore_trials(study, search.space, [each.name for each in search.objectives])
    return study


@with_config(ConfigDict(extra="allow"))
@dataclass(frozen=True)
class _Entry:
    """A trial in ``final_summary.json``."""

    trial: Annotated[int, Ge(0), Le(1_000_000)]
    overrides: list[str]
    status: Literal["FINISHED", "PRUNED", "FAILED", "RUNNING", "KILLED"]
    reason: str
    values: dict[str, float | None]
    epochs: dict[NonNegativeInt, float | None]
    seconds: float
    attempts: NonNegativeInt
    started: AwareDatetime | None = None
    paths: dict[str, str] | None = None


@with_config(ConfigDict(extra="allow"))
@dataclass(frozen=True)
class _Summary:
    trials: list[_Entry]


def restore_trials(study: Study, space: Space, names: Sequence[str]) -> None:
    """Add the trials of ``final_summary.json`` that the storage has lost.

    Numbers of trials that the summary does not have (they were retried) are filled up with trials
    that nobody claimed.
    """
    path = study.folder / SUMMARY
    known = len(study.optuna.get_trials(deepcopy=False))
    try:
        document = validate(_Summary, read_json(path), "study", path, "")
    except FileNotFoundError:
        return
    except UserError as error:
        log.warning("sweep: %s", error)  # the next trial writes it anew
        return
    lost = sorted((e for e in document.trials if e.trial >= known), key=lambda e: e.trial)
    restored = 0
    for entry in lost:
        try:
            trial = _trial(study, space, entry, names)
        except (KeyError, ValueError, TypeError, HydraException) as error:
            log.warning("sweep: %s: trial %d is damaged (%s)", path, entry.trial, one_line(error))
            continue
        if not 0 <= entry.trial - known <= MAX_GAP:
            continue
        for _ in range(entry.trial - known):
            study.optuna.add_trial(create_trial(state=TrialState.FAIL))
        study.optuna.add_trial(trial)
        known, restored = entry.trial + 1, restored + 1
    if lost:
        log.info("sweep: %d of %d lost trials restored from %s", restored, len(lost), path)


def _trial(study: Study, space: Space, entry: _Entry, names: Sequence[str]) -> FrozenTrial:
    state = STATES[entry.status]
    attributes = {
        CLAIMED: True,
        "attempts": entry.attempts,
        "seconds": entry.seconds,
        "reason": entry.reason,
    }
    run = Path((entry.paths or {}).get("run", "")).name
    if run:
        attributes |= {"run": run, "beginnings": study.beginning(run)}
    values = [entry.values[name] for name in names] if state is TrialState.COMPLETE else None
    trial = create_trial(
        state=state,
        values=values,  # type: ignore[arg-type] # create_trial refuses None
        params=study.stored_keys(space.point(entry.overrides)),
        distributions=study.stored_keys(space.axes),
        user_attrs=attributes,
        intermediate_values={e: v for e, v in entry.epochs.items() if v is not None},
    )
    if entry.started is not None:
        trial.datetime_start = datetime.fromtimestamp(entry.started.timestamp())
    return trial
