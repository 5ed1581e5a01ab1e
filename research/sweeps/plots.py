"""Plots of a sweep, drawn from its ``final_summary.json`` alone.

Optuna's own plots (``optuna.visualization.matplotlib``, compared with version 5.0) show less: the
history has no pruned or failed trials, and no best value with several objectives; learning curves
have a colour for each trial and none for its status; slices have no medians and no mark of the
best, the Pareto front has no trial numbers. Importances for several objectives stand beside the
keys of the last objective, so that most bars are labelled wrongly. All are experimental and change
matplotlib's style for the whole process.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from PIL.Image import Image

from research.sweeps.analysis import Summary, finished_values, importance, scale_of, shown_choice
from research.utils.counts import with_n
from research.viz.colours import LINES, QUIET
from research.viz.figures import (
    label_points,
    legend,
    new_figure,
    render,
    shown,
    subplots,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DONE, BEST = LINES[:2]
"""Colours of finished trials, and of the best."""
UNFINISHED: Final = {
    "PRUNED": (LINES[2], "v"),
    "FAILED": (LINES[4], "s"),
    "KILLED": (QUIET, "D"),
}
"""Colours and markers of trials that ended without a value."""
COLUMNS: Final = 4
MOST: Final = 100
"""Trials with a curve or a number of their own; more could not be told apart."""


def pictures(summary: Summary) -> dict[str, Image]:
    """The plots for which there is data so far, by file name.

    ``history`` once a trial has ended; ``learning_curves`` of one objective; ``slices``;
    ``importance`` of at least two keys, from 10 finished trials; ``pareto`` of at least two
    objectives.
    """
    return {name: render(figure) for name, figure in figures(summary).items()}


def figures(summary: Summary) -> dict[str, Figure]:
    """The plots as figures."""
    names = [objective["name"] for objective in summary["objectives"]]
    any_values = any(finished_values(summary, name) for name in names)
    plots = {}
    if any_values or any(trial["status"] in UNFINISHED for trial in summary["trials"]):
        plots["history"] = _history(summary)
    if any(_curve(trial) for trial in summary["trials"]):
        plots["learning_curves"] = _learning_curves(summary)
    if any_values:
        if summary["space"]:
            plots["slices"] = _slices(summary)
        if len(names) > 1:
            plots["pareto"] = _pareto(summary)
    importances = importance(summary)
    if importances:
        plots["importance"] = _importance(importances)
    return plots


def _subplots(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    width = 7.0 if columns == 1 else 3.6 * columns
    figure = new_figure(width, (3.8 if columns == 1 else 3.2) * rows)
    return figure, subplots(figure, rows, columns)


def _label(summary: Summary, objective: str) -> str:
    """The objective; the monitored metric with the number of samples that it is of."""
    if objective != _monitored(summary):
        return objective
    units = {trial["unit"] for trial in summary["trials"] if "unit" in trial}
    counts = (trial.get("best_n") for trial in summary["trials"])
    return with_n(objective, *counts, unit=units.pop() if len(units) == 1 else "samples")


def _monitored(summary: Summary) -> str:
    """The metric of which the values of epochs are."""
    return str(summary["monitor"].rpartition(":")[0])


def _history(summary: Summary) -> Figure:
    """Value of each trial and the best so far, one panel for each objective.

    A pruned trial is drawn at its last value, a trial without any value of the objective at the
    bottom.
    """
    figure, panels = _subplots(len(summary["objectives"]), 1)
    for (axes,), objective in zip(panels, summary["objectives"], strict=True):
        values = finished_values(summary, objective["name"])
        if values:
            better = max if objective["direction"] == "maximize" else min
            best = list(itertools.accumulate(values.values(), better))
            axes.plot(list(values), best, drawstyle="steps-post", color=BEST, label="best so far")
            axes.plot(list(values), list(values.values()), "o", color=DONE, label="finished")
        for status, (colour, marker) in UNFINISHED.items():
            curves = {
                trial["trial"]: _curve(trial) if objective["name"] == _monitored(summary) else {}
                for trial in summary["trials"]
                if trial["status"] == status
            }
            stopped = {
                number: list(curve.values())[-1] for number, curve in curves.items() if curve
            }
            without_value = [number for number in curves if number not in stopped]
            if stopped:
                at = list(stopped), list(stopped.values())
                axes.plot(*at, marker, color=colour, mfc="none", label=status.lower())
            if without_value:
                at = without_value, [0.02] * len(without_value)
                name = None if stopped else status.lower()
                axes.plot(*at, "x", color=colour, transform=axes.get_xaxis_transform(), label=name)
        axes.set_xlabel("trial")
        axes.set_ylabel(_label(summary, objective["name"]))
        axes.set_xlim(-0.5, max(trial["trial"] for trial in summary["trials"]) + 0.5)
        whole_numbers(axes)
        legend(axes)
    return figure


def _learning_curves(summary: Summary) -> Figure:
    """The monitored metric over epochs, one curve a trial; unfinished ones end in a cross.

    Of many trials, the last ones and the best.
    """
    figure, [[axes]] = _subplots(1, 1)
    best = (summary["best"] or {}).get("trial")
    curves = [(trial, curve) for trial in summary["trials"] if (curve := _curve(trial))]
    drawn = [
        each
        for place, each in enumerate(curves)
        if len(curves) - place < MOST or each[0]["trial"] == best
    ]
    labelled = set()
    ends: dict[str, tuple[float, float]] = {}
    for trial, curve in drawn:
        unfinished, is_best = trial["status"] in UNFINISHED, trial["trial"] == best
        colour = BEST if is_best else UNFINISHED.get(trial["status"], (DONE,))[0]
        name = "best" if is_best else trial["status"].lower()
        width = 2.5 if is_best else 1.0
        label = None if name in labelled else name
        axes.plot(*zip(*curve.items(), strict=True), color=colour, lw=width, label=label)
        labelled.add(name)
        end = list(curve.items())[-1]
        axes.plot(*end, "x" if unfinished else ".", color=colour)
        ends[str(trial["trial"])] = end
    legend(axes)
    part = f"; {len(drawn)} of {len(curves)}" if len(drawn) < len(curves) else ""
    axes.set_xlabel(f"epoch (numbers: trials{part})")
    axes.set_ylabel(_label(summary, _monitored(summary)))
    axes.margins(x=0.1)
    whole_numbers(axes)
    label_points(axes, list(ends.values()), list(ends), size=7)
    return figure


def _curve(trial: Mapping[str, Any]) -> dict[int, float]:
    """The finite values of the monitored metric, by epoch."""
    return {
        int(epoch): value
        for epoch, value in trial["epochs"].items()
        if value is not None and math.isfinite(value)
    }


def _slices(summary: Summary) -> Figure:
    """Values over each swept key, one row for each objective; choices with their median."""
    keys = list(summary["space"])
    rows = -(-len(keys) // COLUMNS)
    figure, panels = _subplots(rows * len(summary["objectives"]), min(COLUMNS, len(keys)))
    for number, objective in enumerate(summary["objectives"]):
        cells = [axes for row in panels[number * rows : (number + 1) * rows] for axes in row]
        values = finished_values(summary, objective["name"])
        for axes, key in itertools.zip_longest(cells, keys):
            if key is None:
                axes.set_axis_off()
            else:
                _slice(axes, summary, key, values)
                axes.set_ylabel(_label(summary, objective["name"]))
    return figure


def _slice(axes: Axes, summary: Summary, key: str, values: Mapping[int, float]) -> None:
    params_of = {trial["trial"]: trial["params"][key] for trial in summary["trials"]}
    positions = {number: params_of[number] for number in values}
    scale = scale_of(summary, key)
    if scale == "choice":
        choices = sorted({shown_choice(value) for value in positions.values()}, key=_order)
        positions = {
            number: choices.index(shown_choice(value)) for number, value in positions.items()
        }
        for index in range(len(choices)):
            middle = statistics.median(values[n] for n, at in positions.items() if at == index)
            axes.hlines(middle, index - 0.3, index + 0.3, color=QUIET)
        axes.set_xticks(range(len(choices)), labels=[_short(choice) for choice in choices])
        axes.margins(x=0.2)
    else:
        axes.set_xscale(scale)
    axes.plot(list(positions.values()), list(values.values()), "o", color=DONE, mfc="none")
    if summary["best"]:
        best = summary["best"]["trial"]
        axes.plot(positions[best], values[best], "*", color=BEST, mec="black", markersize=13)
    axes.set_xlabel(key)


def _order(choice: Any) -> tuple[bool, float, str]:
    """Sort key: numbers by size, then words."""
    number = isinstance(choice, int | float)
    return not number, float(choice) if number else 0.0, str(choice)


def _short(choice: Any) -> str:
    return f"{choice:g}" if isinstance(choice, float) else shown([str(choice)[-14:]])[0]


def _importance(importances: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of the importances, the most important key at the top."""
    keys = sorted(
        next(iter(importances.values())), key=lambda key: -sum(s[key] for s in importances.values())
    )
    figure = new_figure(7, 1 + 0.35 * len(keys) * len(importances))
    [[axes]] = subplots(figure)
    height = 0.8 / len(importances)
    for number, (objective, of_key) in enumerate(importances.items()):
        at = [index + (number - (len(importances) - 1) / 2) * height for index in range(len(keys))]
        bars = axes.barh(at, [of_key[key] for key in keys], height, label=objective)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize="small")
    axes.set_yticks(range(len(keys)), labels=keys)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("importance (PED-ANOVA)")
    legend(axes)
    return figure


def _pareto(summary: Summary) -> Figure:
    """One panel for each pair of objectives: trial numbers, and the front in colour.

    With more than two objectives a panel is a projection, so its front may look dominated.
    """
    objectives = summary["objectives"]
    pairs = list(itertools.combinations(objectives, 2))
    front = {trial["trial"] for trial in summary["pareto"]}
    figure = new_figure(6 * len(pairs), 4.5)
    labels: dict[Axes, dict[str, tuple[float, float]]] = {}
    for axes, pair in zip(subplots(figure, 1, len(pairs))[0], pairs, strict=True):
        across, up = (finished_values(summary, objective["name"]) for objective in pair)
        points = {number: (across[number], up[number]) for number in across if number in up}
        others = [point for number, point in points.items() if number not in front]
        best = sorted(point for number, point in points.items() if number in front)
        if others:
            axes.plot(*zip(*others, strict=True), "o", color=DONE, mfc="none", label="dominated")
        if best:
            # The boundary of the dominated region.
            steps = "steps-post" if pair[0]["direction"] == "minimize" else "steps-pre"
            line = "-" if len(objectives) == 2 else ""
            axes.plot(
                *zip(*best, strict=True), f"o{line}", drawstyle=steps, color=BEST, label="front"
            )
        numbered = points if len(points) <= MOST else [n for n in points if n in front][:MOST]
        labels[axes] = {str(number): points[number] for number in numbered}
        across_label, up_label = (
            f"{_label(summary, objective['name'])} ({objective['direction']})" for objective in pair
        )
        axes.set_xlabel(across_label)
        axes.set_ylabel(up_label)
        legend(axes)
    for axes, numbers in labels.items():
        label_points(axes, list(numbers.values()), list(numbers), size=7)
    return figure
