"""Frames with boxes, the set of frames that a reader returns, and checks that readers share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from research.data import texts
from research.data.frames.reading import SourceSummary
from research.data.image_files import EXTENSIONS, read_header
from research.data.listing import PassedOver
from research.utils.errors import DamagedImage
from research.utils.exif import UPRIGHT

BoxXYXY = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image, in [0, 1]; x0 < x1 and y0 < y1."""


class ImageSize(NamedTuple):
    """Size of an image.

    Attributes:
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        orientation: how the stored image is turned, 1…8 as in EXIF.
    """

    width: int
    height: int
    orientation: int = UPRIGHT


@dataclass(frozen=True)
class ImageFiles:
    """Which files of a source are images, and how their sizes are compared.

    Attributes:
        suffixes: file name suffixes in lower case.
        size: returns the size of a file; raises ``SkipFrame`` for a file that cannot be used.
        scale_boxes: scale the boxes of images whose size is not the declared one, instead of
            leaving them out.
        key: what the paths of a picture and of its label, without suffix, have in common, where
            the folders do not tell; ``None`` where they do.
    """

    suffixes: frozenset[str]
    size: Callable[[Path], ImageSize]
    scale_boxes: bool = False
    key: Callable[[str], str] | None = None


NORMALISED_SLACK = 1e-4  # four decimals are the fewest that tools write
PIXEL_SLACK = 1.0  # some tools count pixels from 0, some from 1
LARGEST_NUMBER = 1e9  # beyond any coordinate; NaN and infinities fail the comparison too


@dataclass(frozen=True)
class Frame:
    """One usable image.

    Attributes:
        name: the image's POSIX path relative to the source; unique in it.
        image: the file.
        group: the run, folder or sequence; a group is never divided between splits.
        boxes: empty for a frame without objects.
        labels: for every box, an index into ``FrameSet.classes``.
        ignored: for every box, True for an area that is neither an object nor background (COCO
            ``iscrowd`` or ``ignore``, VOC ``difficult``); empty if there is none.
        areas: for every box, the area that its source declares, as a fraction of the image's, where
            that is not the area of the box (COCO: of the object's outline); empty otherwise.
    """

    name: str
    image: Path
    group: str
    boxes: tuple[BoxXYXY, ...]
    labels: tuple[int, ...]
    ignored: tuple[bool, ...] = ()
    areas: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunCounts:
    """Counts of a run, or of another part of a source (a split, an annotation file).

    Attributes:
        name: name of the run.
        total: usable frames, ``non_empty + empty``.
        non_empty: frames with at least one box, of an object or of an ignored area.
        empty: frames without any box: these alone are negatives.
        missing_image: labels that name no image.
        missing_file: labels whose image file does not exist.
        invalid: labels or images that cannot be read, and labels with an invalid box.
    """

    name: str
    total: int
    non_empty: int
    empty: int
    missing_image: int
    missing_file: int
    invalid: int

    @property
    def seen(self) -> int:
        """All entries, usable or not; the denominator of ratios."""
        return self.total + self.missing_image + self.missing_file + self.invalid


@dataclass(frozen=True)
class FrameSet:
    """All frames of a source.

    Attributes:
        root: folder of the source.
        format: ``capture``, ``voc``, ``coco`` or ``yolo``.
        classes: class names.
        frames: the usable frames, including empty ones, sorted by (group, name).
        runs: counts of each run, or of each other part where the source has no runs.
        problems: one line for each skipped entry: file, problem, remedy.
        split: group → ``train``, ``val`` or ``test``, for the groups that the source assigns.
        reading: what every file below the source counts as; ``None`` if it was not read from files.
    """

    root: Path
    format: str
    classes: list[str]
    frames: list[Frame]
    runs: list[RunCounts]
    problems: list[str]
    split: dict[str, str]
    reading: SourceSummary | None = None

    @property
    def passed_over(self) -> PassedOver:
        """Files below the source that are not read."""
        return PassedOver() if self.reading is None else self.reading.passed_over

    @property
    def notes(self) -> list[str]:
        """One line for each way in which entries were read that is not the plain one."""
        return [] if self.reading is None else self.reading.notes


class SkipFrame(Exception):
    """Raised for a frame that cannot be used.

    Attributes:
        kind: ``missing_image``, ``missing_file`` or ``invalid``.
        brief: the reason in a few words, by which files are counted.
    """

    def __init__(self, kind: str, message: str, brief: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.brief = brief or kind.replace("_", " ")


def is_number(value: object) -> bool:
    """True for a finite number in the range of coordinates."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < LARGEST_NUMBER
    )


def parse_flag(value: object, key: str) -> bool:
    """A flag from a file: 0, 1, true or false, also as text; False if it is missing or empty.

    Raises:
        SkipFrame: for anything else.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    if word is None or word == "":
        return False
    if isinstance(word, bool | int | float | str):
        for flags, flag in (((0, "0", "false"), False), ((1, "1", "true"), True)):
            if word in flags:
                return flag
    raise SkipFrame("invalid", f"{key} is {shorten(value)}: expected 0 or 1")


def normalize_box(values: object, width: float, height: float, slack: float, key: str) -> BoxXYXY:
    """Check four numbers from a file and scale them to a box in [0, 1].

    Args:
        values: x0, y0, x1, y1 as read; of any type.
        width: width of the image in the unit of ``values``; 1 if they are normalised already.
        height: height of the image in the same unit.
        slack: a box that exceeds the image by at most this much is clipped to it.
        key: name of the entry in the file, for messages.

    Raises:
        SkipFrame: for a box that is not four finite numbers, is inverted or empty, or exceeds the
            image.
    """
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(is_number, values)):
        raise SkipFrame("invalid", f"{key} is {shorten(values)}: expected four finite numbers")
    x0, y0, x1, y1 = values
    text = f"{key} [{x0:g}, {y0:g}, {x1:g}, {y1:g}]"
    if x0 >= x1 or y0 >= y1:
        raise SkipFrame("invalid", f"{text} is inverted or empty: expected x0 < x1 and y0 < y1")
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    excess = max(left - x0, top - y0, x1 - right, y1 - bottom)
    if excess > slack or left >= right or top >= bottom:
        raise SkipFrame("invalid", f"{text} exceeds the image ({width:g}×{height:g}): fix it")
    return left / width, top / height, right / width, bottom / height


def image_size(image: Path) -> ImageSize:
    """Size of an image, read from its header.

    Raises:
        SkipFrame: if the file does not exist or is not an image.
    """
    if not os.path.isfile(image):  # Path.is_file raises for names that are too long
        raise SkipFrame(
            "missing_file",
            f"its image {short_name(image.name)} does not exist: restore or prune it",
        )
    try:
        header = read_header(image)
    except DamagedImage as error:
        if error.kind == "value_range":
            reason = str(error).removeprefix(f"{image}: ")
            raise SkipFrame(
                "invalid", f"its image {image.name} has {reason}", "value range"
            ) from None
        kind = error.kind.replace("_", " ")
        raise SkipFrame("invalid", f"its image {image.name} is {kind}: replace it", kind) from None
    return ImageSize(header.width, header.height, header.orientation)


IMAGE_FILES = ImageFiles(EXTENSIONS, image_size)


def safe_relative_path(text: str) -> PurePosixPath:
    """A relative path from a label file, checked to stay inside its folder.

    Raises:
        SkipFrame: if the path is absolute or leaves the folder.
    """
    if problem := texts.name_problem(text):
        raise SkipFrame("invalid", f"image {shorten(text)} {problem}: fix it")
    path = PurePosixPath(text.replace("\\", "/"))  # may be written on Windows
    if path.is_absolute() or ".." in path.parts or text[1:2] == ":":
        raise SkipFrame("invalid", f"image {shorten(text)} is outside the folder: use a path in it")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        SkipFrame: if it cannot be read, or is not valid JSON.
    """
    try:
        return texts.read_json(path)
    except texts.BadText as error:
        raise SkipFrame("invalid", str(error)) from None


def shorten(value: object) -> str:
    """A value from a file as JSON would show it: on one line, at most 60 characters."""
    return _cut(repr(value))


def short_name(name: object) -> str:
    """The name of a file as part of a message: on one line, at most 60 characters."""
    return _cut(repr(str(name))[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
