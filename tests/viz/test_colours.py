"""Contrast as in WCAG 2.2, and distances of colours as others see them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from research.viz import colours
from research.viz.colours import CLASS_COLOURS, LINES, contrast, series

# Machado, Oliveira, Fernandes (2009): what people see who lack a kind of cones, in linear RGB.
SEEN = {
    "usual": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
}  # fmt: skip
WHITE = (255, 255, 255)


def rgb(colour: str) -> list[float]:
    return [255 * part for part in to_rgb(colour)]


def lab(colour: Sequence[float], seen: str) -> NDArray[np.float64]:
    """CIELAB of an sRGB colour 0…255, under D65."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    linear = (SEEN[seen] @ linear).clip(0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    xyz = to_xyz @ linear / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(found: Sequence[Sequence[float]], seen: str) -> float:
    """Least distance of two of the colours, ΔE of 1976."""
    return min(
        float(np.linalg.norm(lab(a, seen) - lab(b, seen))) for a, b in combinations(found, 2)
    )


def test_contrast_is_that_of_the_recommendation() -> None:
    """Values of the W3C's own examples."""
    assert contrast((0, 0, 0), WHITE) == pytest.approx(21)
    assert contrast((119, 119, 119), WHITE) == pytest.approx(4.478, abs=1e-3)
    assert contrast(WHITE, (255, 0, 0)) == pytest.approx(3.998, abs=1e-3)


def test_text_and_lines_stand_out_from_the_page() -> None:
    texts = [fill for _, fill in colours.CAPTIONS.values()]
    assert min(contrast(each, WHITE) for each in texts) >= 4.5
    lines = [rgb(each) for each in (*LINES, colours.QUIET)]
    assert min(contrast(each, WHITE) for each in lines) >= 3


def test_boxes_stand_out_from_every_photograph() -> None:
    """Of a line and its black edge, one has a contrast of 3 with any grey; captions are black."""
    drawn = [*CLASS_COLOURS, colours.TRUE_BOX, colours.IGNORED_BOX]
    for each in drawn:
        worst = min(
            max(contrast(each, [level] * 3), contrast((0, 0, 0), [level] * 3))
            for level in range(256)
        )
        assert worst >= 3, each
    assert min(contrast(each, (0, 0, 0)) for each in CLASS_COLOURS) >= 4.5


@pytest.mark.parametrize("seen", SEEN)
def test_colours_stay_apart(seen: str) -> None:
    assert apart([rgb(each) for each in LINES], seen) > 25
    assert apart([*CLASS_COLOURS, colours.TRUE_BOX], seen) > 15
    right, wrong = colours.CAPTIONS[True], colours.CAPTIONS[False]
    assert apart([right[1], wrong[1]], seen) > 40
    assert right[0] != wrong[0]  # a mark, for those who see no colour


def test_lines_stay_apart_in_grey() -> None:
    lightness = sorted(lab(rgb(each), "usual")[0] for each in LINES)
    assert min(b - a for a, b in pairwise(lightness)) > 8
    first, other = (lab(each, "usual")[0] for each in colours.PREDICTED_BOXES)
    assert abs(first - other) > 8


def test_thirty_series_are_all_different() -> None:
    drawn = {str(sorted(series(number).items(), key=str)) for number in range(30)}
    assert len(drawn) == 30
    in_grey = {(str(series(n)["linestyle"]), series(n)["marker"]) for n in range(5)}
    assert len(in_grey) == 5


@pytest.mark.parametrize("name", [colours.SEQUENTIAL, colours.FRACTIONS])
@pytest.mark.parametrize("seen", SEEN)
def test_the_lightness_of_a_map_only_grows_or_falls(name: str, seen: str) -> None:
    steps = matplotlib.colormaps[name](np.linspace(0, 1, 33))[:, :3] * 255
    change = np.diff([lab(step, seen)[0] for step in steps])
    assert (change > 0).all() or (change < 0).all()


def test_ink_can_be_read_on_every_colour() -> None:
    maps = (matplotlib.colormaps[name] for name in (colours.SEQUENTIAL, colours.FRACTIONS))
    steps = [255 * np.array(each(x)[:3]) for each in maps for x in np.linspace(0, 1, 65)]
    steps += [np.array([level] * 3) for level in range(256)]
    assert min(contrast(colours.ink(step), step) for step in steps) >= 4.5
