"""The size that a label file declares for its image, compared with the real one.

Boxes in pixels are fractions of the declared image. If an image was resized after it was labelled,
its boxes lie elsewhere; if it has an EXIF orientation, they belong to the stored image or to the
upright one, and the declared size says to which where the two differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.frame import (
    PIXEL_SLACK,
    BoxXYXY,
    ImageSize,
    SkipFrame,
    is_number,
    normalize_box,
    shorten,
)
from research.utils.exif import UPRIGHT, upright_box, upright_size

TURNED = "boxes turned like the pixels, as they belong to the image before its EXIF orientation"
SCALED = "boxes scaled, as the declared size is another (scale_boxes=true)"

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class BoxPixels:
    """The pixels in which the boxes of a label file are counted.

    Attributes:
        size: width and height of the image in these pixels.
        orientation: how the boxes must be turned to be those of the upright image.
    """

    size: Size
    orientation: int = UPRIGHT

    def normalize(self, edges: object, key: str) -> BoxXYXY:
        """A box of the upright image in [0, 1], from x0, y0, x1, y1 as read.

        Raises:
            SkipFrame: see ``normalize_box``.
        """
        box = normalize_box(edges, *self.size, PIXEL_SLACK, key)
        return upright_box(box, self.orientation)


@dataclass(frozen=True)
class SizeMatch:
    """How a declared size fits to an image; at least one of the two is set.

    Attributes:
        upright: the pixels of boxes that belong to the upright image; ``None`` if they cannot.
        stored: the pixels of boxes that belong to the image before its orientation is applied;
            ``None`` if they cannot, or if it has none.
        orientation: of the image.
        is_scaled: whether the declared size is another than the real one.
    """

    upright: BoxPixels | None
    stored: BoxPixels | None
    orientation: int = UPRIGHT
    is_scaled: bool = False

    def pixels(self, as_stored: bool | None) -> BoxPixels:
        """The pixels of its boxes.

        Args:
            as_stored: what the other images of the source show, see ``boxes_are_stored``.

        Raises:
            SkipFrame: if the size fits to both, and the other images show different things.
        """
        if self.upright and self.stored:
            if as_stored is None:
                raise SkipFrame(
                    "invalid",
                    "its boxes may belong to the image before or after its EXIF orientation, and "
                    "the source has both: store the image upright",
                    "boxes before or after the turn",
                )
            return self.stored if as_stored else self.upright
        pixels = self.upright or self.stored
        assert pixels is not None
        return pixels

    def note(self, builder: FrameSetBuilder, pixels: BoxPixels, where: str) -> None:
        """Record that the boxes of an entry are turned or scaled."""
        if pixels.orientation != UPRIGHT:
            builder.note(TURNED, where)
        if self.is_scaled:
            builder.note(SCALED, where)


def boxes_are_stored(matches: Iterable[SizeMatch]) -> bool | None:
    """Whether boxes belong to images before their orientation is applied.

    Images whose sizes before and after differ show it, for all images of the source: they were
    labelled with the same tool. False if no image shows it, ``None`` if they differ.
    """
    turned = [match for match in matches if match.orientation != UPRIGHT]
    stored = any(match.upright is None for match in turned)
    upright = any(match.stored is None for match in turned)
    return None if stored and upright else stored


def match_size(declared: Size, size: ImageSize, scale_boxes: bool) -> SizeMatch:
    """Compare a declared size with the real one.

    Args:
        declared: width and height, each 0 if it is not declared.
        size: of the image.
        scale_boxes: accept another size than the real one.

    Raises:
        SkipFrame: for another size, unless boxes are to be scaled; always for sides that are
            swapped without an orientation that explains it: the image was turned, but how is not
            known.
    """
    upright, turn = (size.width, size.height), size.orientation
    stored = upright_size(*upright, turn)  # swapping is its own inverse
    fits = _agrees(declared, upright), turn != UPRIGHT and _agrees(declared, stored)
    if any(fits):
        return SizeMatch(
            BoxPixels(upright) if fits[0] else None,
            BoxPixels(stored, turn) if fits[1] else None,
            turn,
        )
    text = f"size declared {_words(declared)}, is {_words(upright)}"
    swapped = (size.height, size.width)
    looks_turned = _same_shape(declared, swapped) and not _same_shape(declared, upright)
    if stored != swapped and (looks_turned or declared == swapped):
        raise SkipFrame("invalid", f"{text}: turned after it was labelled, restore it", text)
    if not scale_boxes or 0 in declared:
        remedy = "restore the image, or scale its boxes with scale_boxes=true"
        raise SkipFrame("invalid", f"{text}: {remedy if all(declared) else 'fix the size'}", text)
    fits = _same_shape(declared, upright), turn != UPRIGHT and _same_shape(declared, stored)
    if not any(fits):
        fits = True, turn != UPRIGHT
    return SizeMatch(
        BoxPixels(declared) if fits[0] else None,
        BoxPixels(declared, turn) if fits[1] else None,
        turn,
        is_scaled=True,
    )


def _agrees(declared: Size, size: Size) -> bool:
    return all(side in (0, real) for side, real in zip(declared, size, strict=True))


def _same_shape(declared: Size, size: Size) -> bool:
    """Whether one is the other, resized and rounded to whole pixels."""
    return abs(declared[0] * size[1] - declared[1] * size[0]) <= max(declared)


def _words(size: Size) -> str:
    return "×".join(str(side or "?") for side in size)


def parse_side(value: object, key: str) -> int:
    """A declared width or height in pixels; 0 for none.

    Raises:
        SkipFrame: for anything but a whole number, or its text.
    """
    number: Any = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value.strip() or 0)
    if value is None:
        return 0
    if not is_number(number) or number < 0 or number != int(number):
        raise SkipFrame("invalid", f"{key} is {shorten(value)}: expected pixels, or 0 for unknown")
    return int(number)
