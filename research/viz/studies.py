"""Pictures of studies as SVG files, which have the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from research.viz.figures import label_points, new_figure, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS: Final = "osD^vPX*<>hp8d"
"""Of the arms, in turn. Arms differ in marker, fill and number, without colour."""
FILLS: Final = ("white", "black", "0.6")
MARKER_SIZE: Final = 8
LOGARITHMIC: Final = 10.0
"""Ratio of the largest to the smallest cost from which its axis is logarithmic."""
CREATOR: Final = re.compile(r"Matplotlib v([\w.+-]+)")


def over_costs(
    values: Mapping[str, Sequence[float]],
    costs: Mapping[str, Mapping[str, float]],
    metric: str,
    mode: str,
) -> Figure:
    """A metric over costs, a panel each: mean and range over seeds, and the Pareto front.

    Args:
        values: of each arm, one for each seed.
        costs: by title, the cost of each arm that has one.
        metric: its name.
        mode: ``max`` or ``min``: which direction of the metric is better.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(3.2 * len(costs) + 2.6, max(3.6, 0.24 * len(values) + 1))
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    numbered: list[tuple[Axes, dict[str, tuple[float, float]]]] = []
    for axes, (title, of_arm) in zip(panels, costs.items(), strict=True):
        points = {}
        for number, (arm, own) in enumerate(values.items()):
            if arm in of_arm:
                points[str(number + 1)] = of_arm[arm], sum(own) / len(own)
                _point(axes, number, *points[str(number + 1)], own)
        _front(axes, [*points.values()], mode)
        numbered.append((axes, points))
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
        axes.margins(0.12)
        if of_arm and max(of_arm.values()) > LOGARITHMIC * min(of_arm.values()) > 0:
            axes.set_xscale("log")
    panels[0].set_ylabel(metric)
    handles = [Line2D([], [], linestyle="", **_style(number)) for number in range(len(values))]
    labels = [f"{number}  {name}" for number, name in enumerate(shown(values), start=1)]
    figure.legend(handles, labels, loc="outside right center", fontsize="small", frameon=False)
    for axes, points in numbered:
        label_points(axes, list(points.values()), list(points), away=MARKER_SIZE / 2)
    return figure


def _point(axes: Axes, number: int, x: float, y: float, values: Sequence[float]) -> None:
    """One arm: a marker, and a line from its lowest to its highest value."""
    if len(values) > 1:
        axes.plot([x, x], [min(values), max(values)], color="black", linewidth=1, zorder=1)
    axes.plot([x], [y], linestyle="", zorder=2, **_style(number))


def _style(number: int) -> dict[str, Any]:
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "markerfacecolor": FILLS[number % len(FILLS)],
        "markeredgecolor": "black",
        "markersize": MARKER_SIZE,
    }


def _front(axes: Axes, points: Sequence[tuple[float, float]], mode: str) -> None:
    """A dashed line through the points that no other beats in both."""
    best: list[tuple[float, float]] = []
    sign = 1 if mode == "max" else -1
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    axes.plot(*zip(*best, strict=True), color="0.5", linestyle="--", linewidth=1, zorder=0)


def over_seeds(values: Mapping[str, Sequence[float]], metric: str) -> Figure:
    """A metric by arm: a dot for each seed, a line at the mean.

    Args:
        values: of each arm, one for each seed.
        metric: its name.
    """
    figure = new_figure(7, 1.0 + 0.32 * len(values))
    axes = figure.add_subplot()
    for place, own in enumerate(values.values()):
        mean = sum(own) / len(own)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color="black", linewidth=2)
        axes.plot(own, [place] * len(own), "o", markerfacecolor="white", markeredgecolor="black")
    axes.set_yticks(range(len(values)), shown(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(metric)
    axes.grid(alpha=0.3)
    return figure


def to_svg(figure: Figure, description: str) -> str:
    """A figure as SVG, without date and random identifiers.

    Args:
        figure: to draw.
        description: of what it shows, for its metadata.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):
        metadata = {"Date": None, "Description": description}
        FigureCanvasSVG(figure).print_svg(text, metadata=metadata)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def is_same(text: str, drawn: str, description: str) -> bool:
    """Whether a stored SVG shows what is drawn now.

    Another version of matplotlib draws the same numbers otherwise; then the description decides.
    """
    versions = [CREATOR.search(each) for each in (text, drawn)]
    if None not in versions and len({each[1] for each in versions if each}) == 2:
        return f"<dc:description>{description}</dc:description>" in text
    return text == drawn
