from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from research.viz import charts, pictures
from research.viz.pictures import CURVES, PREDICTED_BOXES, TRUE_BOX, class_colours, draw_boxes

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
    assert len({TRUE_BOX, *rest}) == 9
    drawn = draw_boxes(GREY, [(1, 1, 9, 9), (20, 1, 30, 9)], colours=[first, second])
    assert (marked(drawn, first) == frame(1, 1, 9, 9)).all()
    assert (marked(drawn, second) == frame(20, 1, 30, 9)).all()


def blue(image: Image.Image) -> np.ndarray:
    """[H, W] bool: where the image has matplotlib's first colour."""
    mask: np.ndarray = np.abs(np.asarray(image).astype(int) - (31, 119, 180)).max(-1) < 12
    return mask


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


def test_pictures_side_by_side() -> None:
    row = pictures.side_by_side([Image.new("RGB", (w, 5), (w, 0, 0)) for w in (3, 4)])
    assert np.asarray(row)[..., 0].tolist() == [[3] * 3 + [4] * 4] * 5


def test_learning_curves_of_many_metrics_take_more_panels() -> None:
    few, many = ({"epoch": 1, **{f"val/{n}": 0.5 for n in range(count)}} for count in (9, 10))
    widths = [pictures.learning_curves([row], "images").width for row in (few, many)]
    assert widths[1] == pytest.approx(widths[0] * 4 / 3)


@pytest.mark.parametrize("clean", [0.0, 0.8, float("nan")])
def test_a_chart_of_robustness_shows_the_highest_value(clean: float) -> None:
    """Values above the clean one must be inside the picture."""
    bars, lines = {"RGB": [(0.0, 0.1)]}, {"X": [(2.0, 0.5), (4.0, 0.9)]}
    groups = {"missing": bars, "shifted": lines}
    drawn = np.asarray(charts.robustness(groups, clean, "mAP50", "test, 5 frames")).astype(int)
    assert drawn.shape[1] > drawn.shape[0]
    # The line's end, its marker: blue, right half, upper quarter, below the frame's edge.
    blue = (np.abs(drawn - (31, 119, 180)).max(-1) < 12)[:, 3 * drawn.shape[1] // 4 :]
    top = np.flatnonzero(blue.any(1)).min()
    assert 0.05 < top / drawn.shape[0] < 0.25


def test_speed_and_accuracy_of_runs() -> None:
    def discs(accuracy: list[float]) -> list[int]:
        names, sizes = ["a", "b"], [3, 0.1]
        drawn = charts.speed_and_accuracy(names, [1, 2], accuracy, sizes, "mAP50")
        # matplotlib's first two colours, on white at an opacity of 0.6.
        shades = [0.6 * np.array(c) + 0.4 * 255 for c in ((31, 119, 180), (255, 127, 14))]
        pixels = np.asarray(drawn).astype(int)
        return [int((np.abs(pixels - shade).max(-1) < 4).sum()) for shade in shades]

    first, second = discs([0.5, 0.7])
    assert first > 3 * second > 0  # by area
    assert discs([0.5, float("nan")])[1] == 0


def test_the_legend_is_above_the_curves_and_leaves_them_room() -> None:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for number in range(CURVES):
        axes.plot([0, 1], [0, number], label=f"val/a_metric_of_many_letters_{number}")
    pictures.legend(axes)
    pictures.render(figure)
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
    pictures.legend(axes)
    assert axes.get_legend() is None


def test_long_names_are_cut() -> None:
    long, cut = "a" * 20_000, "a" * 39 + "…"
    assert pictures.shown([cut, long, "b"]) == [cut, cut, "b"]
    counts = torch.eye(2, dtype=torch.int64)
    one, other = (pictures.confusion_matrix(counts, [name, "b"]) for name in (long, cut))
    assert one.tobytes() == other.tobytes()
    one, other = (draw_boxes(GREY, [(5, 4, 20, 14)], [name]) for name in (long, cut))
    assert one.tobytes() == other.tobytes()
