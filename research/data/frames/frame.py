"""A frame with its boxes, and what a source of frames is read into."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from research.data.index import EXTENSIONS, inspect_header
from research.utils.errors import UserError

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in [0, 1] of the original image, x0 < x1 and y0 < y1."""


@dataclass(frozen=True)
class ImageFiles:
    """What counts as an image in a source.

    Attributes:
        suffixes: of file names, in lower case.
        size: width and height of a file in pixels; raises ``LeftOut`` where it cannot be used.
    """

    suffixes: frozenset[str]
    size: Callable[[Path], tuple[int, int]]


NORMALISED_SLACK = 1e-4  # four decimals are the fewest that tools write
PIXEL_SLACK = 1.0  # some tools count pixels from 0, some from 1
LARGEST_NUMBER = 1e9  # beyond any coordinate; NaN and infinities fail the comparison too


@dataclass(frozen=True)
class Frame:
    """One usable image.

    Attributes:
        name: the image's POSIX path relative to the source; unique in it.
        image: the file.
        group: the run, folder or sequence; splits never cut through one.
        boxes: none for an empty frame.
        labels: an index into ``FrameSet.classes`` for every box.
    """

    name: str
    image: Path
    group: str
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class RunReport:
    """What was found in a run, or in another part of a source (a split, an annotation file).

    Attributes:
        name: the run's.
        total: usable frames, ``non_empty + empty``.
        non_empty: frames with a box.
        empty: frames without one.
        missing_image: labels that name no image.
        missing_file: labels whose image is not there.
        invalid: labels or images that cannot be read, and boxes that cannot be.
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
        """Everything counted, the denominator of the ratios."""
        return self.total + self.missing_image + self.missing_file + self.invalid


@dataclass(frozen=True)
class FrameSet:
    """A source of frames.

    Attributes:
        root: the source.
        format: ``capture``, ``voc``, ``coco`` or ``yolo``.
        classes: class names.
        frames: the usable ones, empty ones included, sorted by (group, name).
        runs: counts by run, or by another part where the source has no runs.
        problems: a line for everything left out: file, what, remedy.
        split: group → ``train``, ``val`` or ``test`` where the source itself says so; a group that
            it does not mention is missing here.
    """

    root: Path
    format: str
    classes: list[str]
    frames: list[Frame]
    runs: list[RunReport]
    problems: list[str]
    split: dict[str, str]


class LeftOut(Exception):
    """Why a frame is left out: ``kind`` is ``missing_image``, ``missing_file`` or ``invalid``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Reading:
    """A source while it is read: frames, counts, and problems worded with relative paths."""

    root: Path
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def part(self, name: str) -> None:
        """Make sure that the report has a line for ``name``, be there frames or not."""
        self.counts.setdefault(name, Counter())

    def take(self, part: str, where: str, frame: Frame) -> None:
        """A usable frame, told of by the file (and row) ``where``; a second one is left out."""
        if frame.name in self.frames:
            self.leave(part, where, LeftOut("invalid", f"{frame.name} has boxes elsewhere already"))
            return
        self.part(part)
        self.frames[frame.name] = frame
        self.counts[part]["non_empty" if frame.boxes else "empty"] += 1

    def leave(self, part: str, where: str, reason: LeftOut) -> None:
        self.part(part)
        self.counts[part][reason.kind] += 1
        self.problems.append(f"{where}: {reason}")

    def name(self, path: Path) -> str:
        """``path`` as it is told to people and, for an image, its frame's name."""
        return path.relative_to(self.root).as_posix()

    def frame_set(self, form: str, classes: list[str], split: dict[str, str]) -> FrameSet:
        """The finished set.

        Raises:
            UserError: when no frame is usable.
        """
        if not self.frames:
            left = sum(sum(count.values()) for count in self.counts.values())
            first = f"; the first: {self.problems[0]}" if self.problems else ""
            raise UserError(
                "source", f"{self.root} ({form}): no usable frame, {left} left out{first}"
            )
        reports = [
            RunReport(
                name=name,
                total=count["non_empty"] + count["empty"],
                non_empty=count["non_empty"],
                empty=count["empty"],
                missing_image=count["missing_image"],
                missing_file=count["missing_file"],
                invalid=count["invalid"],
            )
            for name, count in sorted(self.counts.items())
        ]
        frames = sorted(self.frames.values(), key=lambda frame: (frame.group, frame.name))
        return FrameSet(self.root, form, classes, frames, reports, self.problems, split)


def is_number(value: object) -> bool:
    """True for a finite number that could be a coordinate."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < LARGEST_NUMBER
    )


def normalised(values: object, width: float, height: float, slack: float, key: str) -> Box:
    """A box out of four numbers from a file.

    Args:
        values: x0, y0, x1, y1, if they are what they should be.
        width: width of the image in their unit; 1 when they are normalised already.
        height: its height.
        slack: how far, in their unit, a box may reach beyond the image and be clipped to it.
        key: what the file calls them, for the message.

    Raises:
        LeftOut: not four finite numbers, inverted or empty, or beyond the image.
    """
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(is_number, values)):
        raise LeftOut("invalid", f"{key} is {_short(values)}: give four finite numbers")
    x0, y0, x1, y1 = values
    told = f"{key} [{x0:g}, {y0:g}, {x1:g}, {y1:g}]"
    if x0 >= x1 or y0 >= y1:
        raise LeftOut("invalid", f"{told} is inverted or empty: give x0 < x1 and y0 < y1")
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    reach = max(left - x0, top - y0, x1 - right, y1 - bottom)
    if reach > slack or left >= right or top >= bottom:
        raise LeftOut("invalid", f"{told} reaches beyond the image ({width:g}×{height:g}): mend it")
    return left / width, top / height, right / width, bottom / height


def image_size(image: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        LeftOut: when there is no such file, or no image in it.
    """
    if not image.is_file():
        raise LeftOut("missing_file", f"its image {image.name} is not there: restore or prune it")
    if kind := inspect_header(image):
        raise LeftOut("invalid", f"its image {image.name} is {kind.replace('_', ' ')}: replace it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(image) as opened:
            return opened.size


PICTURES = ImageFiles(EXTENSIONS, image_size)


def inner_path(text: str) -> PurePosixPath:
    """A relative path out of a file, checked to stay in the folder that it is relative to.

    Raises:
        LeftOut: when it is absolute or climbs out.
    """
    path = PurePosixPath(text.replace("\\", "/"))  # written under Windows, read here
    if path.is_absolute() or ".." in path.parts or text[1:2] == ":":
        raise LeftOut("invalid", f"image {_short(text)} leads out of the folder: give a path in it")
    return path


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        LeftOut: when it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LeftOut("invalid", f"cannot be read ({error.strerror}): mend it") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise LeftOut("invalid", f"bad JSON at {where} ({error.msg}): mend or prune it") from None
    except (ValueError, RecursionError):  # not UTF-8, endless digits, endless nesting
        raise LeftOut("invalid", "bad JSON: mend or prune it") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
