"""Matplotlib figures in one style: palette, grid, legends and labels that cover nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from research.viz.colours import LINES, QUIET

if TYPE_CHECKING:  # a run draws after its first epoch; matplotlib is imported with the first figure
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_LINE: Final = 52
"""Characters in one line of a legend."""
LONGEST_NAME: Final = 40
"""Characters of a name in a picture; drawing one of 20,000 takes seconds."""
AROUND: Final = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (0.8, 0.8),
    (-0.8, 0.8),
    (0.8, -0.8),
    (-0.8, -0.8),
)
"""Directions in which a label may stand from its point, the first ones first."""
RINGS: Final = 12
"""Distances from its point at which a label may stand, in steps of half a line."""


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure; sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def subplots(figure: Any, rows: int = 1, columns: int = 1, **options: Any) -> list[list[Axes]]:
    """Axes with a grid and the palette as their colour cycle.

    Args:
        figure: or a part of one.
        rows: of axes.
        columns: of axes.
        options: further arguments of ``Figure.subplots``.
    """
    from cycler import cycler
    from matplotlib.ticker import MaxNLocator

    panels: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.set_prop_cycle(cycler(color=LINES))
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        # matplotlib's own number of ticks allows for three digits; close values have more.
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    rows_of_axes: list[list[Axes]] = panels.tolist()
    return rows_of_axes


def filled_grid(width: float, height: float, count: int, most: int) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in rows that each fill its width.

    Args:
        width: of a panel in the fullest row, inches.
        height: of a panel, inches.
        count: number of panels.
        most: panels in a row.
    """
    rows = -(-count // most)
    counts = [count // rows + (row < count % rows) for row in range(rows)]
    figure = new_figure(width * counts[0], height * rows + 0.5)
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    return figure, [
        axes for part, n in zip(parts, counts, strict=True) for axes in subplots(part, 1, n)[0]
    ]


def render(figure: Figure) -> Image.Image:
    """A matplotlib figure as an image, without a window or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def shortened(names: Iterable[str], most: int = LONGEST_NAME) -> list[str]:
    """Names as they are written in pictures: of those of more letters, start and end."""
    half = (most - 1) // 2
    return [
        name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}" for name in names
    ]


def shown(names: Iterable[str], most: int = LONGEST_NAME) -> list[str]:
    """``shortened`` names as texts for matplotlib, which takes what is between ``$`` for TeX."""
    return [name.replace("$", r"\$") for name in shortened(names, most)]


def series_label(name: str) -> str:
    """The name of a line for its legend; matplotlib leaves out names that start with ``_``."""
    return f" {name}" if name.startswith("_") else name


def legend(axes: Axes) -> None:
    """Add a legend in columns above the axes.

    Not inside: ``loc="best"`` hides points if there is no free space, and warns when it is slow.
    """
    lines, names = axes.get_legend_handles_labels()
    if not lines:
        return
    names = shown(names)
    columns = min(len(names), max(1, LEGEND_LINE // (5 + max(len(name) for name in names))), 4)
    axes.legend(
        lines, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns,
        fontsize="small", frameon=False, handlelength=3.2, columnspacing=1.2,
    )  # fmt: skip


def whole_numbers(axes: Axes) -> None:
    """Write only whole numbers beside the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    size: float = 8.0,
    away: float = 4.0,
) -> None:
    """Write a text beside each point; none covers another, a line leads to those farther away.

    Called last: later changes of the limits would move points, not texts.

    Args:
        axes: whose limits contain the points.
        points: x and y of each.
        texts: of the points, short.
        size: of the letters, in points as of a font.
        away: radius of the marks, which no text of their own covers, in the same unit.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    pixels: NDArray[Any] = axes.transData.transform(np.array(points, float).reshape(-1, 2))
    inside = axes.get_window_extent()
    scale = figure.dpi / 72
    height = 1.5 * size * scale
    middle = (inside.x0 + inside.x1) / 2, (inside.y0 + inside.y1) / 2
    taken: list[tuple[float, float, float]] = []  # centres and widths
    for (x, y), point, text in zip(pixels, points, texts, strict=True):
        width = (0.8 * len(text) + 0.8) * size * scale
        ways = ((ring, *way) for ring in range(RINGS) for way in AROUND)
        centres = (
            (
                ring,
                x + dx * (away * scale + width / 2 + ring * height / 2),
                y + dy * (away * scale + (1 + ring) * height / 2),
            )
            for ring, dx, dy in ways
        )
        free = (
            (ring, a, b)
            for ring, a, b in centres
            if abs(a - middle[0]) <= (inside.width - width) / 2
            and abs(b - middle[1]) <= (inside.height - height) / 2
            and not any(abs(a - c) < (width + w) / 2 and abs(b - d) < height for c, d, w in taken)
        )
        place = next(free, None)
        if place is None:  # more labels than there is room for
            continue
        ring, a, b = place
        taken.append((a, b, width))
        axes.annotate(
            text, point, xytext=((a - x) / scale, (b - y) / scale),
            textcoords="offset points", ha="center", va="center", fontsize=size,
            arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6} if ring else None,
        ).set_in_layout(False)  # fmt: skip
