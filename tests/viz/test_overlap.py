"""No text of a picture covers another one or leaves the picture, whatever is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from research.data.warehouse import pictures as of_stores
from research.viz import boxes, charts, curves, figures, pictures
from research.viz.colours import contrast

LONG = "a class of a rather long name, longer than there is room for"
SLACK = 1.0
"""Pixels by which boxes of texts may meet: they have a margin around the letters."""


def texts(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """Every text that is drawn, and its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden: set[int] = set()
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xaxis")):
        for axis in (axes.xaxis, axes.yaxis):  # type: ignore[attr-defined]
            drawn = {id(tick.label1) for tick in axis._update_ticks()}
            ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
            labels = (label for tick in ticks for label in (tick.label1, tick.label2))
            hidden |= {id(label) for label in labels if id(label) not in drawn}
    renderer = canvas.get_renderer()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            is_annotation = isinstance(text, Annotation)  # whose box has its arrow too
            own = Text.get_window_extent if is_annotation else type(text).get_window_extent
            yield text.get_text(), own(text, renderer)


def assert_readable(figure: Figure) -> None:
    found = list(texts(figure))
    assert found
    width, height = figure.bbox.size
    for name, box in found:
        least = min(box.x0, box.y0, width - box.x1, height - box.y1)
        assert least >= -SLACK, f"{name!r} is cut"
    for (one, a), (two, b) in combinations(found, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= SLACK or up <= SLACK, f"{one!r} covers {two!r}"


def assert_visible(figure: Figure) -> None:
    """Contrast with the page: 4.5 of texts, 3 of lines, bars and points, as in WCAG 2.2."""

    def on_page(colour: Any, alpha: float | None) -> list[float]:
        red, green, blue, own = to_rgba(colour, alpha)
        return [255 * (own * part + 1 - own) for part in (red, green, blue)]

    grids = {id(line) for axes in figure.axes for line in axes.get_xgridlines()}
    grids |= {id(line) for axes in figure.axes for line in axes.get_ygridlines()}
    on_maps = {id(text) for axes in figure.axes if axes.images for text in axes.texts}
    bars = {id(bar) for axes in figure.axes if not axes.images for bar in axes.patches}
    for artist in figure.findobj():
        if isinstance(artist, Text) and id(artist) not in on_maps and artist.get_text():
            colour, least = on_page(artist.get_color(), artist.get_alpha()), 4.5
        elif isinstance(artist, Line2D) and id(artist) not in grids and len(artist.get_xydata()):
            is_line = artist.get_linestyle() != "None"
            drawn = artist.get_color() if is_line else artist.get_markeredgecolor()
            colour, least = on_page(drawn, artist.get_alpha()), 3
        elif isinstance(artist, Rectangle) and id(artist) in bars:
            colour, least = on_page(artist.get_facecolor(), artist.get_alpha()), 3
        elif isinstance(artist, PathCollection):
            colour, least = on_page(artist.get_edgecolors()[0], None), 3  # type: ignore[index]
        else:
            continue
        assert contrast(colour, (255, 255, 255)) >= least, artist


def names(count: int, letters: int) -> list[str]:
    return [f"{LONG[:letters]}{number}" for number in range(count)]


def matrix(count: int, letters: int, largest: int = 9) -> None:
    table = torch.full((count, count), largest)
    charts.confusion_matrix(table, names(count, letters))


def history(epochs: int, metrics: list[str]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "epoch": epoch, "is_best": epoch == 1, "train/loss": 1.0 / epoch, "learning_rate": 1e-5,
            **{f"val/{name}": float(rng.random()) for name in metrics},
        }
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


def per_class(count: int, letters: int) -> None:
    curve = np.linspace(0.9, 0.1, 5), np.array([True, True, False, True, False]), 4
    charts.precision_recall_per_class(dict.fromkeys(names(count, letters), curve), "title")


def leaderboard(count: int, letters: int, spread: float = 1.0) -> None:
    rng = np.random.default_rng(1)
    times, values = 1 + spread * rng.random(count), 0.5 + spread * rng.random(count)
    charts.speed_and_accuracy(names(count, letters), list(times), list(values), [1.0] * count, "m")


def robust(count: int, letters: int) -> None:
    one, more = [(0.0, 0.5)], [(1.0, 0.5), (2.0, 0.4)]
    groups = {"missing": dict.fromkeys(names(count, letters), one)}
    groups["shifted"] = dict.fromkeys(names(count, letters), more)
    charts.robustness(groups, 0.6, "mAP50", "test, 5 frames")


METRICS = [
    "loss", "top1", "top5", "ece", "mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium",
    "mAP_large", "mAR_1", "mAR_10", "precision", "recall", "mean_iou", "kendall_tau",
]  # fmt: skip
BINS = np.arange(15.0)
CASES: dict[str, Callable[[], Any]] = {
    "two classes": lambda: matrix(2, 3),
    "two classes, long names": lambda: matrix(2, 60, 123456),
    "twelve classes, large counts": lambda: matrix(12, 20, 123456),
    "twenty classes, long names": lambda: matrix(20, 60, 99),
    "forty classes, long names": lambda: matrix(40, 60),
    "many classes": lambda: matrix(300, 9),
    "calibration": lambda: charts.reliability(BINS, BINS / 2, BINS / 3, 0.01),
    "one epoch": lambda: curves.learning_curves(history(1, METRICS[:4]), "train, val"),
    "many epochs and metrics": lambda: curves.learning_curves(history(300, METRICS), "t"),
    "metrics of long names": lambda: curves.learning_curves(history(12, names(7, 60)), "t"),
    "loss alone": lambda: curves.learning_curves(history(2, []), "train (n=384 images)"),
    "curves of 2 classes": lambda: per_class(2, 5),
    "curves of 12 classes, long names": lambda: per_class(12, 60),
    "one run": lambda: leaderboard(1, 60),
    "runs of long names": lambda: leaderboard(14, 60),
    "runs alike": lambda: leaderboard(9, 12, 0.0),
    "sensors": lambda: robust(3, 5),
    "sensors of long names": lambda: robust(6, 60),
    "audit": lambda: charts.matching_audit(BINS / 30, BINS / 20),
    "precision": lambda: charts.precision_recall(BINS / 15, BINS > 5, 9, "title"),
    "speeds": lambda: charts.speeds({"a": dict.fromkeys(names(5, 60), (1.0, 2.0))}, "machine"),
    "range test": lambda: charts.range_test(
        10.0 ** (BINS - 9), 1 / (1 + BINS), 1 / (1 + BINS), {"steepest descent": 1e-3, LONG: 1e-2}
    ),
    "energy": lambda: charts.energy_map(np.arange(64.0), "Y", (0, 1, 8)),
    "centres": lambda: of_stores.box_centres(np.full((3, 4), 0.5)),
    "sizes": lambda: of_stores.box_sizes(np.array([[0, 0, 9, 9], [0, 0, 90, 30.0]])),
}


@pytest.mark.parametrize("case", CASES)
def test_texts_of_a_chart(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    for module in (charts, curves, of_stores):
        monkeypatch.setattr(module, "render", drawn.append)
    CASES[case]()
    [figure] = drawn
    assert_readable(figure)
    assert_visible(figure)


def test_a_text_that_covers_another_is_found() -> None:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.text(0.5, 0.5, "one")
    axes.text(0.52, 0.5, "two")
    with pytest.raises(AssertionError, match="covers"):
        assert_readable(figure)
    figure = Figure(figsize=(4, 3))
    figure.text(0.9, 0.5, "far to the right")
    with pytest.raises(AssertionError, match="is cut"):
        assert_readable(figure)


@pytest.mark.parametrize("kind", ["plot", "bar", "scatter", "text"])
def test_what_is_pale_is_found(kind: str) -> None:
    axes = Figure().add_subplot()
    more: dict[str, Any] = {"s": "text"} if kind == "text" else {}
    at = (0.5, 0.5) if kind == "text" else ([1, 2], [1, 2])
    getattr(axes, kind)(*at, color="#56B4E9", **more)
    with pytest.raises(AssertionError):
        assert_visible(axes.figure)  # type: ignore[arg-type]


POINT = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=6, deadline=None)
@given(st.lists(POINT, min_size=1, max_size=14))
@example([(0.015625, 0.0)])
@example([(0.8765432, 0.1), (0.8765433, 0.1)])
def test_labels_of_any_points(points: list[tuple[float, float]]) -> None:
    figure = figures.new_figure(5, 4)
    [[axes]] = figures.subplots(figure)
    axes.plot(*zip(*points, strict=True), "o")
    axes.margins(0.2)
    figures.label_points(axes, points, [str(number) for number in range(len(points))])
    assert len(axes.texts) == len(points)
    assert_readable(figure)


BOX = st.tuples(*[st.floats(-20, 220)] * 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(BOX, max_size=20), st.integers(0, 60), st.integers(40, 200))
def test_captions_of_any_boxes(found: list[Any], letters: int, side: int) -> None:
    """Of any boxes: inside the image, and none on another one."""
    image = pictures.Image.new("RGB", (side, side))
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in found]
    places = boxes.caption_places(image, ordered, names(len(found), letters))
    assert len(places) == len(found)
    kept = [place for place in places if place is not None]
    assert bool(kept) == bool(found)  # the first one always has a place
    assert all(p[0] >= 0 and p[1] >= 0 and p[2] < side and p[3] < side for p in kept)
    for one, two in combinations(kept, 2):
        assert one[2] < two[0] or two[2] < one[0] or one[3] < two[1] or two[3] < one[1]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 6])
def test_sheets_have_few_empty_places(most: int) -> None:
    for count in range(1, 40):
        cells = [pictures.Image.new("RGB", (30, 20), (0, 0, 99))] * count
        sheet = pictures.sheet(cells, ["one\ntwo"] * count, [None] * count, most)
        rows, columns = (sheet.height - 8) // 60, (sheet.width - 8) // 38
        assert columns <= most
        assert 0 <= rows * columns - count <= rows * columns / 4, (count, rows, columns)


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=400), st.integers(20, 300))
def test_a_line_fits(text: str, width: int) -> None:
    line = " ".join(text.split())
    found = pictures.fitted(line, width)
    assert pictures.font().getlength(found) <= width
    start, cut, end = found.partition("…") if found != line else (line, "", "")
    assert line.startswith(start)
    assert line.endswith(end)
    assert not cut or len(start) - len(end) in (0, 1)


@pytest.mark.parametrize("count", [1, 5])
def test_captions_of_a_sheet_stay_below_their_images(count: int) -> None:
    """White is between the captions, and around the page."""
    cells = [pictures.Image.new("RGB", (64, 64), "white")] * count
    sheet = pictures.sheet(cells, [f"{LONG}\n{LONG}"] * count, [True] * count, 5, LONG * 3)
    pixels = np.asarray(sheet)[-8 - 32 :]
    is_text = (pixels != 255).any(-1).any(0)
    left = (sheet.width - (72 * count + 8)) // 2
    for gap in range(count + 1):
        assert not is_text[left + 72 * gap + 1 : left + 72 * gap + 7].any()
    assert not (np.asarray(sheet)[:, -7:] != 255).any()
