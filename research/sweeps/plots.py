"""A sweep in pictures and as a table, from its ``final_summary.json`` alone."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import warnings
from collections.abc import Mapping
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from research.tracking.tracker import Rows
from research.viz.pictures import legend, render

Summary = Mapping[str, Any]

LOST: Final = {"PRUNED": "C1", "FAILED": "C3", "KILLED": "grey"}
"""Colours of trials that ended without a value."""
FEWEST: Final = 10
"""Finished trials below which an importance would be that of chance."""
TOP: Final = 5
"""Trials that importance tells from the rest, at least; the method asks for as many."""
COLUMNS: Final = 4


def pictures(summary: Summary) -> dict[str, Image]:
    """What can be drawn of a sweep as far as it has come.

    ``history`` once a trial has ended, ``learning_curves`` of one objective, ``slices``,
    ``importance`` of two keys or more from 10 finished trials on, ``pareto`` of two objectives or
    more.
    """
    return {name: render(figure) for name, figure in figures(summary).items()}


def figures(summary: Summary) -> dict[str, Figure]:
    """The pictures before they are rendered."""
    names = [objective["name"] for objective in summary["objectives"]]
    judged = any(values(summary, name) for name in names)
    found = {}
    if judged or any(trial["status"] in LOST for trial in summary["trials"]):
        found["history"] = _history(summary)
    if any(_curve(trial) for trial in summary["trials"]):
        found["learning_curves"] = _learning_curves(summary)
    if judged:
        if summary["space"]:
            found["slices"] = _slices(summary)
        if len(names) > 1:
            found["pareto"] = _pareto(summary)
    shares = importance(summary)
    if shares:
        found["importance"] = _importance(shares)
    return found


def values(summary: Summary, objective: str) -> dict[int, float]:
    """What the finished trials reached, by their numbers; those that are not finite left out."""
    found = {
        trial["trial"]: trial["values"].get(objective)
        for trial in summary["trials"]
        if trial["status"] == "FINISHED"
    }
    return {n: value for n, value in found.items() if value is not None and math.isfinite(value)}


def trials_table(summary: Summary) -> Rows:
    """A row a trial, with the same columns in each: what it was given and what came of it."""
    objectives = [objective["name"] for objective in summary["objectives"]]
    return [
        {
            "trial": trial["trial"],
            "status": trial["status"],
            "reason": trial["reason"],
            **{key: _choice(trial["params"].get(key, "")) for key in summary["space"]},
            **{name: trial["values"].get(name, "") for name in objectives},
            "epochs": trial.get("epochs_done", len(trial["epochs"])),
            "seconds": trial["seconds"],
            "run": trial.get("paths", {}).get("run", ""),
        }
        for trial in summary["trials"]
    ]


def importance(summary: Summary) -> dict[str, dict[str, float]]:
    """How much each swept key decides which trials come out on top, by PED-ANOVA.

    Returns:
        of each objective, by key, shares that sum to 1; an objective that has too few finished
        trials, or the same value in all, is left out.
    """
    if len(summary["space"]) < 2:
        return {}
    found = {}
    for objective in summary["objectives"]:
        reached = values(summary, objective["name"])
        if len(reached) >= FEWEST:
            raw = _ped_anova(summary, reached, objective["direction"])
            if sum(raw.values()):
                found[objective["name"]] = {
                    key: raw[key] / sum(raw.values()) for key in summary["space"]
                }
    return found


def _ped_anova(summary: Summary, reached: Mapping[int, float], direction: str) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.study import StudyDirection

    given = {trial["trial"]: trial["params"] for trial in summary["trials"]}
    space: dict[str, BaseDistribution] = {}
    params: dict[int, dict[str, Any]] = {number: {} for number in reached}
    for key in summary["space"]:
        column = {number: _choice(given[number][key]) for number in reached}
        scale = _scale(summary, key)
        if scale == "choice":
            space[key] = CategoricalDistribution(sorted(set(column.values()), key=str))
        else:
            column = {number: float(value) for number, value in column.items()}
            ends = min(column.values()), max(column.values())
            space[key] = FloatDistribution(*ends, log=scale == "log")
        for number, value in column.items():
            params[number][key] = value
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction=StudyDirection[direction.upper()])
    finally:
        optuna.logging.set_verbosity(said)
    study.add_trials(
        [
            optuna.trial.create_trial(value=value, params=params[number], distributions=space)
            for number, value in reached.items()
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, TOP / len(reached))
    )
    with warnings.catch_warnings():
        # That all values are the same, which the caller sees.
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)


def _scale(summary: Summary, key: str) -> str:
    """``linear`` or ``log`` for a key drawn from an interval, ``choice`` for one from a list."""
    space = summary["space"][key]
    if not re.search(r"\b(interval|range)\(", space):
        return "choice"
    return "log" if re.search(r"\blog\b", space) else "linear"


def _choice(value: Any) -> Any:
    """A value as it may stand in a table."""
    return value if isinstance(value, int | float | str) else str(value)


# -- figures -----------------------------------------------------------------------------------


def _panels(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    width = 7.0 if columns == 1 else 3.6 * columns
    figure = Figure(figsize=(width, (3.8 if columns == 1 else 3.2) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, panels.tolist()


def _history(summary: Summary) -> Figure:
    """Values trial by trial and the best so far, a panel an objective.

    A pruned trial stands at the value at which it was stopped; what has none is on the floor.
    """
    figure, panels = _panels(len(summary["objectives"]), 1)
    for (axes,), objective in zip(panels, summary["objectives"], strict=True):
        reached = values(summary, objective["name"])
        if reached:
            better = max if objective["direction"] == "maximize" else min
            best = list(itertools.accumulate(reached.values(), better))
            axes.plot(list(reached), best, drawstyle="steps-post", color="C2", label="best so far")
            axes.plot(list(reached), list(reached.values()), "o", color="C0", label="finished")
        for status, colour in LOST.items():
            lost = [trial for trial in summary["trials"] if trial["status"] == status]
            curves = {trial["trial"]: _curve(trial) for trial in lost}
            stopped = {
                number: list(curve.values())[-1] for number, curve in curves.items() if curve
            }
            bare = [number for number in curves if number not in stopped]
            if stopped:
                at = list(stopped), list(stopped.values())
                axes.plot(*at, "o", color=colour, mfc="none", label=status.lower())
            if bare:
                at = bare, [0.02] * len(bare)
                name = None if stopped else status.lower()
                axes.plot(*at, "x", color=colour, transform=axes.get_xaxis_transform(), label=name)
        axes.set_xlabel("trial")
        axes.set_ylabel(objective["name"])
        axes.set_xlim(-0.5, max(trial["trial"] for trial in summary["trials"]) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    return figure


def _learning_curves(summary: Summary) -> Figure:
    """The monitored metric epoch by epoch, a curve a trial; lost ones end in a cross."""
    figure, [[axes]] = _panels(1, 1)
    best = (summary["best"] or {}).get("trial")
    named = set()
    for trial in summary["trials"]:
        curve = _curve(trial)
        if not curve:
            continue
        lost, is_best = trial["status"] in LOST, trial["trial"] == best
        colour = "C2" if is_best else LOST.get(trial["status"], "C0")
        name = "best" if is_best else trial["status"].lower()
        width, alpha = (2.5, 1.0) if is_best else (1.0, 0.6)
        label = None if name in named else name
        axes.plot(
            *zip(*curve.items(), strict=True), color=colour, lw=width, alpha=alpha, label=label
        )
        named.add(name)
        end = list(curve.items())[-1]
        axes.plot(*end, "x" if lost else ".", color=colour)
        axes.annotate(
            str(trial["trial"]), end, (4, -2), textcoords="offset points",
            fontsize="x-small", color=colour,
        )  # fmt: skip
    legend(axes)
    axes.set_xlabel("epoch (numbers: trials)")
    axes.set_ylabel(summary["objectives"][0]["name"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _curve(trial: Mapping[str, Any]) -> dict[int, float]:
    """The monitored metric by epoch, where it was finite."""
    return {
        int(epoch): value
        for epoch, value in trial["epochs"].items()
        if value is not None and math.isfinite(value)
    }


def _slices(summary: Summary) -> Figure:
    """Values over each swept key, a row an objective; of choices the median as a bar."""
    keys = list(summary["space"])
    lines = -(-len(keys) // COLUMNS)
    figure, panels = _panels(lines * len(summary["objectives"]), min(COLUMNS, len(keys)))
    for number, objective in enumerate(summary["objectives"]):
        cells = [axes for row in panels[number * lines : (number + 1) * lines] for axes in row]
        reached = values(summary, objective["name"])
        for axes, key in itertools.zip_longest(cells, keys):
            if key is None:
                axes.set_axis_off()
            else:
                _slice(axes, summary, key, reached)
                axes.set_ylabel(objective["name"])
    return figure


def _slice(axes: Axes, summary: Summary, key: str, reached: Mapping[int, float]) -> None:
    given = {trial["trial"]: trial["params"][key] for trial in summary["trials"]}
    places = {number: given[number] for number in reached}
    scale = _scale(summary, key)
    if scale == "choice":
        choices = sorted({_choice(value) for value in places.values()}, key=_order)
        places = {number: choices.index(_choice(value)) for number, value in places.items()}
        for place in range(len(choices)):
            middle = statistics.median(reached[n] for n, at in places.items() if at == place)
            axes.hlines(middle, place - 0.3, place + 0.3, color="grey")
        axes.set_xticks(range(len(choices)), labels=[_short(choice) for choice in choices])
        axes.margins(x=0.2)
    else:
        axes.set_xscale(scale)
    axes.plot(list(places.values()), list(reached.values()), "o", color="C0", alpha=0.6)
    if summary["best"]:
        best = summary["best"]["trial"]
        axes.plot(places[best], reached[best], "o", color="C2", markersize=9)
    axes.set_xlabel(key)


def _order(choice: Any) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    number = isinstance(choice, int | float)
    return not number, float(choice) if number else 0.0, str(choice)


def _short(choice: Any) -> str:
    return f"{choice:g}" if isinstance(choice, float) else str(choice)[-14:]


def _importance(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of ``importance``, the most important key on top."""
    keys = sorted(
        next(iter(shares.values())), key=lambda key: -sum(s[key] for s in shares.values())
    )
    figure = Figure(figsize=(7, 1 + 0.35 * len(keys) * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(shares)
    for number, (objective, of_key) in enumerate(shares.items()):
        at = [place + (number - (len(shares) - 1) / 2) * height for place in range(len(keys))]
        bars = axes.barh(at, [of_key[key] for key in keys], height, label=objective)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize="small")
    axes.set_yticks(range(len(keys)), labels=keys)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share in what sets the best trials apart (PED-ANOVA)")
    legend(axes)
    return figure


def _pareto(summary: Summary) -> Figure:
    """Each pair of objectives; trials by number, the front in colour.

    Of more than two objectives a panel shows two, so its front looks like none.
    """
    objectives = summary["objectives"]
    pairs = list(itertools.combinations(objectives, 2))
    front = {trial["trial"] for trial in summary["pareto"]}
    figure = Figure(figsize=(6 * len(pairs), 4.5), layout="constrained")
    for axes, pair in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        across, up = (values(summary, objective["name"]) for objective in pair)
        points = {number: (across[number], up[number]) for number in across if number in up}
        others = [point for number, point in points.items() if number not in front]
        best = sorted(point for number, point in points.items() if number in front)
        if others:
            axes.plot(*zip(*others, strict=True), "o", color="C0", alpha=0.6, label="dominated")
        if best:
            # The edge of what the front dominates.
            steps = "steps-post" if pair[0]["direction"] == "minimize" else "steps-pre"
            line = "-" if len(objectives) == 2 else ""
            axes.plot(
                *zip(*best, strict=True), f"o{line}", drawstyle=steps, color="C2", label="front"
            )
        for number, point in points.items():
            axes.annotate(
                str(number), point, (5, 4), textcoords="offset points", fontsize="x-small"
            )
        for objective, set_label in zip(pair, (axes.set_xlabel, axes.set_ylabel), strict=True):
            set_label(f"{objective['name']} ({objective['direction']})")
        legend(axes)
        axes.grid(alpha=0.3)
    return figure
