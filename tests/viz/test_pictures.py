from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from research.viz import charts, curves, figures, pictures
from research.viz.boxes import draw_boxes, draw_true
from research.viz.colours import (
    CLASS_COLOURS,
    LINES,
    PREDICTED_BOXES,
    TRUE_BOX,
    class_colours,
)

GREY = Image.new("RGB", (40, 30), (9, 9, 9))


def marked(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """[H, W] bool: where the image has the colour."""
    return (np.asarray(image) == colour).all(-1)


def frame(left: int, top: int, right: int, bottom: int, width: int = 2) -> np.ndarray:
    """[30, 40] bool: the border of a box, ``width`` pixels inwards."""
    area = np.zeros((30, 40), bool)
    area[top:bottom, left:right] = True
    area[top + width : bottom - width, left + width : right - width] = False
    return area


def test_a_box_is_a_border_of_two_pixels_inside_its_edges() -> None:
    drawn = draw_boxes(GREY, [(5.2, 4.1, 19.8, 14.0), (22, 10, 38, 28), (24, 12, 36, 26)])
    assert (marked(drawn, PREDICTED_BOXES[0]) == frame(5, 4, 20, 14)).all()
    others = frame(22, 10, 38, 28) | frame(24, 12, 36, 26)
    assert (marked(drawn, PREDICTED_BOXES[1]) == others).all()
    assert marked(GREY, (9, 9, 9)).all()  # a copy was drawn on


@pytest.mark.parametrize("captions", [[], ["0.9"]])
@pytest.mark.parametrize(
    "box",
    [(-9.0, -9.0, 99.0, 99.0), (39.9, 29.9, 40, 30), (0.0, 0.0, 0.2, 0.2), (50.0, 50.0, 60, 60)],
)
def test_boxes_are_clipped_to_the_image(
    box: tuple[float, float, float, float], captions: list[str]
) -> None:
    drawn = draw_boxes(GREY, [box], captions)
    assert drawn.size == GREY.size
    assert marked(drawn, PREDICTED_BOXES[0]).any()
    if box[0] == -9 and not captions:
        assert (marked(drawn, PREDICTED_BOXES[0]) == frame(0, 0, 40, 30)).all()


def test_captions_are_above_the_box() -> None:
    drawn = draw_boxes(GREY, [(5, 15, 35, 28)], ["0.87"], colours=[TRUE_BOX])
    above = marked(drawn, TRUE_BOX)[:15]
    assert above.any()
    assert not above[:, :5].any()
    text = (np.asarray(drawn)[:15, 5:35] != TRUE_BOX).any(-1) & above[:, 5:35].any(1)[:, None]
    assert text.any()


def test_boxes_of_one_class_have_one_colour() -> None:
    first, second, again, *rest = class_colours([4, 2, 4, *range(8)])
    assert first == again != second
    assert len({TRUE_BOX, *rest}) == len(CLASS_COLOURS) + 1
    drawn = draw_boxes(GREY, [(1, 1, 9, 9), (20, 1, 30, 9)], colours=[first, second])
    assert (marked(drawn, first) == frame(1, 1, 9, 9)).all()
    assert (marked(drawn, second) == frame(20, 1, 30, 9)).all()


def rgb(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def blue(image: Image.Image) -> np.ndarray:
    """[H, W] bool: where the image has the first colour of lines."""
    mask: np.ndarray = np.abs(np.asarray(image).astype(int) - rgb(LINES[0])).max(-1) < 12
    return mask


def test_boxes_of_the_data_are_dashed() -> None:
    """Half of the outline is white, half black, on any image."""
    outline = frame(5, 4, 35, 26)
    for level in (0, 255):
        drawn = draw_true(Image.new("RGB", (40, 30), (level,) * 3), [(5.2, 4.1, 34.8, 26.0)])
        light, dark = (marked(drawn, colour)[outline] for colour in (TRUE_BOX, (0, 0, 0)))
        assert (light | dark).all()
        assert 0.4 < light.mean() < 0.6
        assert marked(drawn, (level,) * 3)[~outline].all()


def test_no_boxes_no_change() -> None:
    assert (np.asarray(draw_boxes(GREY, [])) == np.asarray(GREY)).all()


@pytest.mark.parametrize("count", [0, 1, 50])
def test_curves_of_few_and_many(count: int) -> None:
    rng = np.random.default_rng(0)
    scores, hits = rng.random(count), rng.random(count) < 0.5
    assert charts.precision_recall(scores, hits, 30, "title").width > 200
    assert charts.precision_recall_per_class({"a": (scores, hits, 30)}, "title").width > 200
    assert charts.matching_audit(scores * 0.9, scores).width > 200


@pytest.mark.parametrize("several", [False, True])
def test_a_curve_falls_where_the_recall_ends(several: bool) -> None:
    scores = np.linspace(0.9, 0.1, 10)

    def falls_at(positives: int) -> int:
        hits = np.arange(10) < positives  # true positives have the highest scores
        if several:
            drawn = charts.precision_recall_per_class({"a": (scores, hits, 10)}, "title")
        else:
            drawn = charts.precision_recall(scores, hits, 10, "title")
        height, width = drawn.height, drawn.width if several else drawn.width // 2
        high = blue(drawn)[height // 5 : 3 * height // 10, :width]
        return int(np.flatnonzero(high.any(0)).max())

    low, middle, right = (falls_at(positives) for positives in (3, 6, 8))
    assert (right - middle) / (middle - low) == pytest.approx(2 / 3, abs=0.05)


def test_a_sheet_contains_every_picture() -> None:
    cells = [Image.new("RGB", (20, 10), (n, 0, 99)) for n in range(5)]
    sheet = pictures.sheet(cells, ["a\nb"] * 5, [True, False] * 2 + [True], columns=2)
    assert [int(marked(sheet, (n, 0, 99)).sum()) for n in range(5)] == [200] * 5


def test_short_strips_fill_the_rows() -> None:
    strips = [Image.new("RGB", (width, 20), (width, 0, 0)) for width in (50, 40, 60, 30, 10)]
    drawn = pictures.packed(strips, 100)
    assert drawn.size == (100, 40)  # 50 and 40 and 10, 60 and 30
    reds = np.asarray(drawn)[1, :, 0], np.asarray(drawn)[21, :, 0]
    found = [[int(red) for red in dict.fromkeys(row.tolist())] for row in reds]
    assert found == [[50, 40, 10], [60, 30, 255]]


def test_pictures_side_by_side() -> None:
    row = pictures.side_by_side([Image.new("RGB", (w, 5), (w, 0, 0)) for w in (3, 4)])
    assert np.asarray(row)[..., 0].tolist() == [[3] * 3 + [4] * 4] * 5


def drawn_curves(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> Figure:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves, "render", drawn.append)
    curves.learning_curves(rows, "train (n=9 images)")
    return drawn[0]


def test_a_kind_of_metric_has_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    of_splits = {
        "train/loss": 1.0, "train/top1": 0.1, "train/cross_entropy": 1.0, "val/loss": 2.0,
        "val/top1": 0.2, "val/top5": 0.5, "val/ece": 0.1, "val/mAP": 0.3, "val/mAP_small": math.nan,
    }  # fmt: skip
    row = {"epoch": 1, "is_best": True, "learning_rate": 0.1, "train/n": 9, **of_splits}
    figure = drawn_curves(monkeypatch, [row])
    assert [len(part.axes) for part in figure.subfigs] == [3, 2]  # both fill the width
    found = {
        axes.get_ylabel(): [text.get_text() for text in axes.get_legend().get_texts()]
        for axes in figure.axes
    }
    assert found == {
        "loss": ["val loss", "train loss"],
        "accuracy": ["val top1", "train top1", "val top5"],
        "calibration error, val": ["ece"],
        "mean average precision, val": ["mAP", "mAP_small (undefined)"],
        "learning rate": ["learning rate"],
    }


def test_many_metrics_of_a_kind_take_more_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (
        {"epoch": 1, **{f"val/accuracy_{n}": 0.5 for n in range(count)}}
        for count in (curves.CURVES, curves.CURVES + 1)
    )
    assert len(drawn_curves(monkeypatch, [few]).axes) == 1
    assert len(drawn_curves(monkeypatch, [many]).axes) == 2


@pytest.mark.parametrize(("epochs", "best"), [(1, 1), (2, 1), (300, 170)])
def test_epochs_are_whole_and_the_best_is_marked(
    epochs: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"epoch": epoch, "is_best": epoch in (1, best), "train/loss": 1 / epoch}
        for epoch in range(1, epochs + 1)
    ]
    figure = drawn_curves(monkeypatch, rows)
    [axes] = figure.axes
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) >= 1 for tick in ticks)
    assert len(ticks) <= 10
    lines = [line.get_xdata() for line in axes.get_lines()]
    assert [list(x) for x in lines if len(x) == 2 and x[0] == x[1]] == [[best, best]]
    assert f"best epoch {best}" in figure.get_suptitle()


@pytest.mark.parametrize("clean", [0.0, 0.8, float("nan")])
def test_a_chart_of_robustness_shows_the_highest_value(clean: float) -> None:
    """Values above the clean one must be inside the picture."""
    bars, lines = {"RGB": [(0.0, 0.1)]}, {"X": [(2.0, 0.5), (4.0, 0.9)]}
    groups = {"missing": bars, "shifted": lines}
    drawn = np.asarray(charts.robustness(groups, clean, "mAP50", "test, 5 frames")).astype(int)
    assert drawn.shape[1] > drawn.shape[0]
    # The line's end, its marker: blue, at the right, below the legend and the frame's edge.
    blue = (np.abs(drawn - rgb(LINES[0])).max(-1) < 12)[:, 9 * drawn.shape[1] // 10 :]
    top = np.flatnonzero(blue.any(1)).min()
    assert 0.05 < top / drawn.shape[0] < 0.25


def test_one_strength_is_shown_as_well() -> None:
    """As a line from the clean value, on an axis of strengths: a bar would not show it."""

    def drawn(strength: float) -> np.ndarray:
        groups = {"shifted": {"X": [(strength, 0.5)]}}
        return np.asarray(charts.robustness(groups, 0.8, "mAP50", "test, 5 frames"))

    assert not np.array_equal(drawn(4.0), drawn(9.0))


@pytest.mark.parametrize("name", ["$\\frac$", "$a_b$", "5$ to 9$ \\x", "a$", "\\$", "$" * 60])
def test_a_dollar_is_a_dollar(name: str) -> None:
    """Matplotlib reads TeX between two of them, and fails if it is none."""
    [text] = figures.shown([name])
    figure = figures.new_figure(4, 1)
    drawn = figure.text(0, 0, text).get_window_extent()
    plain = figure.text(0, 0, *figures.shortened([name]), parse_math=False).get_window_extent()
    assert drawn.bounds == plain.bounds
    assert figures.shown(["a", "b" * 99]) == figures.shortened(["a", "b" * 99])


def test_a_name_that_starts_with_an_underscore_is_in_the_legend() -> None:
    def top(name: str) -> int:
        """First row of the axes: a legend above moves it down."""
        curve = (np.float64([0.9, 0.2]), np.array([True, False]), 3)
        dark = np.asarray(charts.precision_recall_per_class({name: curve}, "")).max(2) < 128
        return int((dark.mean(1) > 0.5).argmax())

    assert top("_background_") == top("background") > 0


def test_speed_and_accuracy_of_runs() -> None:
    def discs(accuracy: list[float]) -> list[int]:
        names, sizes = ["a", "b"], [3, 0.1]
        drawn = charts.speed_and_accuracy(names, [1, 2], accuracy, sizes, "mAP50")
        pixels = np.asarray(drawn).astype(int)
        return [int((np.abs(pixels - rgb(each)).max(-1) < 12).sum()) for each in LINES[:2]]

    first, second = discs([0.5, 0.7])
    assert first > 1.5 * second > 0  # rings, by the root of their areas
    assert discs([0.5, float("nan")])[1] == 0


def test_the_legend_is_above_the_curves_and_leaves_them_room() -> None:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for number in range(9):
        axes.plot([0, 1], [0, number], label=f"val/a_metric_of_many_letters_{number}")
    figures.legend(axes)
    figures.render(figure)
    inside = axes.get_window_extent()
    names = axes.get_legend().get_window_extent()
    assert names.y0 >= inside.y1
    assert names.y1 <= figure.bbox.height
    assert inside.height > 0.3 * figure.bbox.height


@pytest.mark.parametrize("classes", [2, 20])
def test_curves_of_many_classes_have_room(classes: int) -> None:
    scores, hits = np.linspace(0.1, 0.9, 5), np.array([True, True, False, True, False])
    curves = {f"a class of some name {number}": (scores, hits, 4) for number in range(classes)}
    charts.precision_recall_per_class(curves, "title")  # matplotlib warns if there is no room


def test_no_legend_without_curves() -> None:
    axes = Figure().add_subplot()
    figures.legend(axes)
    assert axes.get_legend() is None


def test_long_names_are_cut() -> None:
    long, cut = "a" * 20_000, "a" * 20 + "…" + "a" * 19
    assert figures.shown([cut, long, "b"]) == [cut, cut, "b"]
    assert figures.shown([f"runs/{'x' * 60}/seed_{seed}" for seed in (1, 2)])[0].endswith("seed_1")
    counts = torch.eye(2, dtype=torch.int64)
    one, other = (charts.confusion_matrix(counts, [name, "b"]) for name in (long, cut))
    assert one.tobytes() == other.tobytes()
    one, other = (draw_boxes(GREY, [(5, 4, 20, 14)], [name]) for name in (long, cut))
    assert one.tobytes() == other.tobytes()
