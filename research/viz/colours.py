"""Colours that stay apart in grey and for people who do not tell red from green.

``tests/viz/test_colours.py`` measures them: contrast as in WCAG 2.2, distances in CIELAB, also as
seen with deuteranopia and protanopia (Machado et al., 2009). Colour alone says nothing: series have
markers and line styles too, right and wrong have marks, boxes of the data are dashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

Colour = tuple[int, int, int]

LINES: Final = ("#007ea3", "#e86908", "#3a1249", "#00685d", "#4f3800", "#000000")
"""Of curves and bars on white, in turn."""
STYLES: Final = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS: Final = "os^Dv"
QUIET: Final = "#767676"
"""Of reference lines and of what stands for all."""
SEQUENTIAL: Final = "cividis"
"""Colour map of heat maps: its lightness only grows."""
FRACTIONS: Final = "Blues"
"""Colour map of fractions on a white page, from white to dark."""
BLACK: Final[Colour] = (0, 0, 0)
WHITE: Final[Colour] = (255, 255, 255)
CAPTIONS: Final[dict[bool | None, tuple[str, Colour]]] = {
    True: ("✓ ", (0, 88, 122)),
    False: ("✗ ", (170, 58, 0)),
    None: ("", BLACK),
}
"""Mark and colour of captions of correct, incorrect and other images."""

# Boxes on photographs have a black edge; each colour has a contrast of at least 9 with it, so that
# one of the two has at least 3 with any background.
TRUE_BOX: Final[Colour] = WHITE
IGNORED_BOX: Final[Colour] = (190, 190, 190)
PREDICTED_BOXES: Final[tuple[Colour, ...]] = ((255, 195, 0), (70, 190, 255))
"""Of the first box and of all others; used if there is one class."""
CLASS_COLOURS: Final[tuple[Colour, ...]] = (
    *PREDICTED_BOXES,
    (255, 140, 190),
    (50, 220, 150),
    (255, 250, 170),
)
"""Of the classes, in turn."""


def series(number: int) -> dict[str, object]:
    """Keyword arguments of ``Axes.plot`` for the curve of this number, from 0.

    Numbers of styles, markers and colours have no common divisor: 30 curves are all different.
    """
    return {
        "color": LINES[number % len(LINES)],
        "linestyle": STYLES[number % len(STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
    }


def class_colours(labels: Iterable[int]) -> list[Colour]:
    """A colour for each label; equal labels have equal colours."""
    return [CLASS_COLOURS[label % len(CLASS_COLOURS)] for label in labels]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast of two sRGB colours, 0…255 each, from 1 to 21, as in WCAG 2.2."""
    low, high = sorted([_luminance(one), _luminance(other)])
    return (high + 0.05) / (low + 0.05)


def ink(background: Sequence[float]) -> Colour:
    """Black or white, whichever has the larger contrast: at least 4.58 with any background."""
    return max(BLACK, WHITE, key=lambda colour: contrast(colour, background))


def _luminance(colour: Sequence[float]) -> float:
    parts = [value / 255 for value in colour[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
