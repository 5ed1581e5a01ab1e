"""Learning curves of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from research.viz.colours import QUIET, series
from research.viz.figures import filled_grid, legend, render, shown, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS: Final = (
    ("loss", re.compile("loss")),
    ("mean average precision", re.compile("^mAP")),
    ("mean average recall", re.compile("^mAR")),
    ("accuracy by agreement", re.compile(r"^accuracy_\d")),
    ("accuracy", re.compile(r"accuracy|top\d")),
    ("precision and recall", re.compile("precision|recall|f1")),
    ("intersection over union", re.compile("iou|matching_gap")),
    ("calibration error", re.compile("^ece$")),
)
"""Kinds of metrics, a panel each, and their names; another metric is a kind of its own."""
TERMS: Final = "terms of the loss"
RATE: Final = "learning rate"
CURVES: Final = 6
"""Metrics in one panel; a kind with more has several panels."""
MARKED: Final = 25
"""Markers on a curve, at most; those of several curves stand at different epochs."""
IN_A_ROW: Final = 3
LONGEST_LABEL: Final = 24
"""Letters beside an axis."""


def learning_curves(history: Sequence[Mapping[str, Any]], title: str) -> Image.Image:
    """Losses, metrics and learning rate over epochs, a panel for each kind of metric.

    Validation is drawn solid, training (where a metric is logged of both) dashed in the same
    colour. A line marks the best epoch.

    Args:
        history: one row per epoch, as in ``epoch_metrics.csv``.
        title: of the picture, in addition to the best epoch.
    """
    epochs = [row["epoch"] for row in history]
    best = next((row["epoch"] for row in reversed(history) if row.get("is_best")), None)
    panels = _by_kind(history)
    figure, places = filled_grid(4.4, 3.4, len(panels), IN_A_ROW)
    for axes, (kind, metrics) in zip(places, panels, strict=True):
        splits_of = {_split(column) for columns in metrics.values() for column in columns}
        splits = sorted(filter(None, splits_of))
        for number, (metric, columns) in enumerate(metrics.items()):
            for column in columns:
                split = _split(column) if len(splits) > 1 else ""
                _curve(axes, number, f"{split} {metric}".strip(), column, history)
        if best is not None:
            axes.axvline(best, color=QUIET, linestyle=(0, (2, 2)), linewidth=1, zorder=1)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        whole_numbers(axes)
        axes.set_xlabel("epoch")
        [short] = shown([kind], LONGEST_LABEL)
        axes.set_ylabel(", ".join([short, *(splits if len(splits) == 1 else [])]))
        legend(axes)
    marked = "" if best is None else f"; best epoch {best} (vertical line)"
    figure.suptitle(f"{title}{marked}", fontsize="medium")
    return render(figure)


def _curve(
    axes: Axes, number: int, label: str, column: str, history: Sequence[Mapping[str, Any]]
) -> None:
    epochs = [row["epoch"] for row in history]
    values = [row.get(column, np.nan) for row in history]
    if not any(map(math.isfinite, values)):
        label += " (undefined)"
    style = series(number)
    if _split(column) == "train":
        style |= {"linestyle": (0, (3, 2)), "markerfacecolor": "white"}
    else:
        style |= {"linestyle": "-"}
    step = -(-len(epochs) // MARKED)
    marks = {"markevery": (number * step // CURVES, step)}
    axes.plot(epochs, values, label=label, **style, **marks)  # type: ignore[arg-type]


def _split(column: str) -> str:
    return column.rpartition("/")[0]


def _by_kind(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, list[str]]]]:
    """Kind of each panel, and its metrics with their columns."""
    floats = list(dict.fromkeys(n for row in history for n, v in row.items() if type(v) is float))
    known = [name for name in floats if name.startswith(("train/", "val/"))]
    metrics: dict[str, list[str]] = {}
    for name in sorted(known, key=lambda name: (not name.endswith("/loss"), name[0] == "t")):
        metrics.setdefault(name.partition("/")[2], []).append(name)
    kinds: dict[str, dict[str, list[str]]] = {}
    for metric, columns in metrics.items():
        is_term = columns == [f"train/{metric}"] and metric != "loss"
        kinds.setdefault(TERMS if is_term else _kind(metric), {})[metric] = columns
    if len(kinds.get(TERMS, {})) == 1:  # it is the loss
        del kinds[TERMS]
    kinds = dict(sorted(kinds.items(), key=lambda item: (item[0] != "loss", item[0] == TERMS)))
    if "learning_rate" in floats:
        kinds[RATE] = {RATE: ["learning_rate"]}
    return [
        (kind, dict([*of_kind.items()][start : start + CURVES]))
        for kind, of_kind in kinds.items()
        for start in range(0, len(of_kind), CURVES)
    ]


def _kind(metric: str) -> str:
    return next((kind for kind, pattern in KINDS if pattern.search(metric)), metric)
