"""Boxes on images: of the data, of a network, and regions that are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from research.viz.colours import BLACK, IGNORED_BOX, PREDICTED_BOXES, TRUE_BOX, Colour
from research.viz.figures import shortened
from research.viz.pictures import Font, fitted, font

DASH: Final = 5
"""Pixels of a light dash, and of the black one after it, in the outline of a true box."""
HATCH: Final = 10
"""Pixels from one diagonal line to the next in an ignore region."""
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom; of pixels, with the last ones."""


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str] = (),
    colours: Sequence[Colour] = PREDICTED_BOXES,
) -> Image.Image:
    """A copy of the image with boxes, whose outline is inside their edges, and black around it.

    Args:
        image: RGB.
        boxes: N boxes, xyxy in pixels of the image, clipped to it.
        captions: empty, or N texts, each beside its box where it covers no other; if there is no
            such place it is left out, those of the first boxes last.
        colours: of the boxes in order; the last one is used for all further boxes.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    line = _line(image)
    edges = [_edges(box, image) for box in boxes]
    fills = [colours[min(index, len(colours) - 1)] for index in range(len(boxes))]
    for (left, top, right, bottom), fill in reversed([*zip(edges, fills, strict=True)]):
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=BLACK)
        draw.rectangle((left, top, right, bottom), outline=fill, width=line)
    letters = _letters(image)
    texts = shortened(captions)
    places = caption_places(image, boxes, texts)
    for place, text, fill in zip(places, texts, fills, strict=False):
        if place is not None:
            draw.rectangle(place, fill=fill)
            text = fitted(text, image.width - 3, letters)
            draw.text((place[0] + 1, place[1]), text, fill=BLACK, font=letters)
    return image


def caption_places(
    image: Image.Image, boxes: Sequence[Sequence[float]], captions: Sequence[str]
) -> list[Rectangle | None]:
    """Where the caption of each box is drawn: inside the image, and on no other one.

    Args:
        image: RGB.
        boxes: as for ``draw_boxes``.
        captions: of the boxes, or none at all.

    Returns:
        None for those that find no place.
    """
    letters, line = _letters(image), _line(image)
    placed: list[Rectangle | None] = []
    for box, caption in zip(boxes, captions, strict=bool(captions)):
        left, top, right, bottom = _edges(box, image)
        _, _, x1, y1 = letters.getbbox(fitted(caption, image.width - 3, letters))
        width, height = max(1, int(x1)) + 2, max(1, int(y1)) + 2
        across = min(left, image.width - width), max(0, right + 1 - width)
        down = top - height, bottom + 1, top + line, bottom + 1 - line - height
        places = [(x, y, x + width - 1, y + height - 1) for y in down for x in across]
        free = (
            place
            for place in places
            if place[1] >= 0 and place[3] < image.height
            and not any(other is not None and _meet(place, other) for other in placed)
        )  # fmt: skip
        placed.append(next(free, None))
    return placed


def _letters(image: Image.Image) -> Font:
    return font(max(11, round(min(image.size) / 40)))


def _line(image: Image.Image) -> int:
    """Pixels of an outline."""
    return max(2, round(min(image.size) / 250))


def draw_true(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Image.Image:
    """A copy of the image with boxes of the data, outlined by white and black dashes.

    Args:
        image: RGB.
        boxes: N boxes, xyxy in pixels of the image, clipped to it.
    """
    pixels = np.array(image)
    y, x = np.mgrid[: image.height, : image.width]
    is_light = (x + y) // DASH % 2 == 0
    for box in boxes:
        outline = _within(box, image) & ~_within(box, image, 2)
        pixels[outline & is_light] = TRUE_BOX
        pixels[outline & ~is_light] = BLACK
    return Image.fromarray(pixels)


def draw_ignored(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Image.Image:
    """A copy of the image with ignore regions: an outline of one pixel, and diagonal lines.

    Args:
        image: RGB.
        boxes: N boxes, xyxy in pixels of the image, clipped to it.
    """
    pixels = np.array(image)
    y, x = np.mgrid[: image.height, : image.width]
    diagonal = (x + y) % HATCH
    for box in boxes:
        inside = _within(box, image)
        outline = inside & ~_within(box, image, 1)
        pixels[inside & (diagonal == 1)] = BLACK
        pixels[outline | inside & (diagonal == 0)] = IGNORED_BOX
    return Image.fromarray(pixels)


def _within(box: Sequence[float], image: Image.Image, margin: int = 0) -> NDArray[np.bool_]:
    """Pixels [H, W] of a box that are ``margin`` or more from its outermost ones."""
    left, top, right, bottom = _edges(box, image)
    mask = np.zeros((image.height, image.width), bool)
    mask[top + margin : bottom + 1 - margin, left + margin : right + 1 - margin] = True
    return mask


def _edges(box: Sequence[float], image: Image.Image) -> Rectangle:
    left, right = _span(box[0], box[2], image.width)
    top, bottom = _span(box[1], box[3], image.height)
    return left, top, right, bottom


def _span(start: float, stop: float, length: int) -> tuple[int, int]:
    """First and last pixel between two edges; at least one pixel, inside the image."""
    first = min(max(round(start), 0), length - 1)
    return first, max(first, min(round(stop), length) - 1)


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
