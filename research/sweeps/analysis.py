"""The table, the values and the importances of a sweep, from its ``final_summary.json`` alone."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any, Final

from research.tracking.tracker import Rows

Summary = Mapping[str, Any]

MIN_TRIALS: Final = 10
"""Finished trials below which importances are not computed: they would be mostly noise."""
TOP_TRIALS: Final = 5
"""The least number of best trials that PED-ANOVA compares with all trials."""


def finished_values(summary: Summary, objective: str) -> dict[int, float]:
    """The finite values of the finished trials, by trial number."""
    values = {
        trial["trial"]: trial["values"].get(objective)
        for trial in summary["trials"]
        if trial["status"] == "FINISHED"
    }
    return {n: value for n, value in values.items() if value is not None and math.isfinite(value)}


def trials_table(summary: Summary) -> Rows:
    """One row for each trial, all with the same columns: parameters and results."""
    objectives = [objective["name"] for objective in summary["objectives"]]
    return [
        {
            "trial": trial["trial"],
            "status": trial["status"],
            "reason": trial["reason"],
            **{key: shown_choice(trial["params"].get(key, "")) for key in summary["space"]},
            **{name: trial["values"].get(name, "") for name in objectives},
            "n": "" if trial.get("best_n") is None else trial["best_n"],
            "epochs": trial.get("epochs_done", len(trial["epochs"])),
            "seconds": trial["seconds"],
            "run": trial.get("paths", {}).get("run", ""),
        }
        for trial in summary["trials"]
    ]


def importance(summary: Summary) -> dict[str, dict[str, float]]:
    """The importance of each swept key for each objective, by PED-ANOVA.

    Returns:
        by objective and key, fractions that sum to 1; without objectives that have too few
        finished trials or the same value in all of them.
    """
    if len(summary["space"]) < 2:
        return {}
    importances = {}
    for objective in summary["objectives"]:
        values = finished_values(summary, objective["name"])
        if len(values) >= MIN_TRIALS:
            raw = _ped_anova(summary, values, objective["direction"])
            total = sum(raw.values())
            if total:
                importances[objective["name"]] = {key: raw[key] / total for key in summary["space"]}
    return importances


def _ped_anova(summary: Summary, values: Mapping[int, float], direction: str) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.study import StudyDirection

    params_of = {trial["trial"]: trial["params"] for trial in summary["trials"]}
    space: dict[str, BaseDistribution] = {}
    params: dict[int, dict[str, Any]] = {number: {} for number in values}
    for key in summary["space"]:
        column = {number: shown_choice(params_of[number][key]) for number in values}
        scale = scale_of(summary, key)
        if scale == "choice":
            space[key] = CategoricalDistribution(sorted(set(column.values()), key=str))
        else:
            column = {number: float(value) for number, value in column.items()}
            ends = min(column.values()), max(column.values())
            space[key] = FloatDistribution(*ends, log=scale == "log")
        for number, value in column.items():
            params[number][key] = value
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction=StudyDirection[direction.upper()])
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        [
            optuna.trial.create_trial(value=value, params=params[number], distributions=space)
            for number, value in values.items()
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, TOP_TRIALS / len(values))
    )
    with warnings.catch_warnings():
        # Optuna warns if all values are the same; the caller leaves the objective out.
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)


def scale_of(summary: Summary, key: str) -> str:
    """``linear`` or ``log`` for a key with an interval or a range, ``choice`` for a list."""
    space = summary["space"][key]
    if not re.search(r"\b(interval|range)\(", space):
        return "choice"
    return "log" if re.search(r"\blog\b", space) else "linear"


def shown_choice(value: Any) -> Any:
    """A value that a table or an axis can show."""
    return value if isinstance(value, int | float | str) else str(value)
