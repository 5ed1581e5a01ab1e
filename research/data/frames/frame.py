"""Frames with boxes, the set of frames that a reader returns, and checks that readers share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from research.data import texts
from research.data.image_files import EXTENSIONS, read_header
from research.data.listing import PassedOver
from research.utils.errors import DamagedImage, UserError
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
    """

    suffixes: frozenset[str]
    size: Callable[[Path], ImageSize]
    scale_boxes: bool = False


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
        passed_over: files in its folders of images that are no images.
        notes: one line for each way in which entries were read that is not the plain one, with
            their number and the first of them.
    """

    root: Path
    format: str
    classes: list[str]
    frames: list[Frame]
    runs: list[RunCounts]
    problems: list[str]
    split: dict[str, str]
    passed_over: PassedOver = field(default_factory=PassedOver)
    notes: list[str] = field(default_factory=list)


class SkipFrame(Exception):
    """Raised for a frame that cannot be used.

    Attributes:
        kind: ``missing_image``, ``missing_file`` or ``invalid``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class FrameSetBuilder:
    """Collects the frames, counts and problems of a source while it is read."""

    root: Path
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)
    _noted: dict[str, list[str]] = field(default_factory=dict)
    _origins: dict[str, tuple[str, str]] = field(default_factory=dict)

    def pass_over(self, folder: Path, files: PassedOver) -> None:
        """Count the files below a folder of images that are no images."""
        self.passed_over.update(files.below(self.relative(folder)))

    def ensure_part(self, name: str) -> None:
        """Add a part of the source with zero counts, unless it is known."""
        self.counts.setdefault(name, Counter())

    def note(self, text: str, where: str) -> None:
        """Record how an entry was read, where that is not the plain way."""
        self._noted.setdefault(text, []).append(where)

    def add(self, part: str, where: str, frame: Frame) -> bool:
        """Add a usable frame.

        An image that is described twice is used once if both have the same boxes; otherwise both
        are skipped, because neither is known to be right.

        Args:
            part: the run, split or annotation file that it belongs to.
            where: label file (and row) that describes it, for problems.
            frame: the frame.

        Returns:
            whether the image is used.
        """
        if frame.name in self._origins:
            known = self.frames.get(frame.name)
            if known is None or _content(known) != _content(frame):
                self.reject(frame.name, part, where, "with other boxes")
                return False
            self.note("described again with the same boxes, used once", where)
            return True
        self.ensure_part(part)
        self.frames[frame.name] = frame
        self._origins[frame.name] = part, where
        if len(set(_content(frame))) < len(frame.boxes):
            self.note("two equal boxes of one class in an image, both kept", where)
        self.counts[part]["non_empty" if frame.boxes else "empty"] += 1
        return True

    def reject(self, name: str, part: str, where: str, how: str) -> None:
        """Skip a frame that two entries describe differently, and remove it if it was added.

        Args:
            name: the frame's name.
            part: the part of the second entry.
            where: the second entry.
            how: in what they differ.
        """
        first_part, first = self._origins[name]
        entries = [(part, where, first)]
        if frame := self.frames.pop(name, None):
            self.counts[first_part]["non_empty" if frame.boxes else "empty"] -= 1
            entries.insert(0, (first_part, first, where))
        for own_part, own, other in entries:
            text = f"{name} is also described by {other}, {how}: remove one of the two"
            self.skip(own_part, own, SkipFrame("invalid", text))

    def skip(self, part: str, where: str, reason: SkipFrame) -> None:
        """Count an entry that cannot be used, and record why."""
        self.ensure_part(part)
        self.counts[part][reason.kind] += 1
        self.problems.append(f"{where}: {reason}")

    def relative(self, path: Path) -> str:
        """``path`` relative to the source: the name of a frame, and how problems name files."""
        return path.relative_to(self.root).as_posix()

    def build(self, form: str, classes: list[str], split: dict[str, str]) -> FrameSet:
        """The set of all frames added so far.

        Raises:
            UserError: if no frame is usable.
        """
        if not self.frames:
            skipped = sum(count.total() for count in self.counts.values())
            first = f"; the first: {self.problems[0]}" if self.problems else ""
            raise UserError(
                "SOURCE", f"{self.root} ({form}): no usable frame, {skipped} left out{first}"
            )
        reports = [
            RunCounts(
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
        alike: dict[str, str] = {}
        for name in classes:
            if (other := alike.setdefault(texts.name_key(name).strip(), name)) != name:
                text = "classes whose names differ only in letter case, spaces or Unicode form"
                self.note(text, f"{shorten(other)} and {shorten(name)}")
        frames = sorted(self.frames.values(), key=lambda frame: (frame.group, frame.name))
        notes = [
            f"{text}: {len(entries)}, the first {entries[0]}"
            for text, entries in self._noted.items()
        ]
        return FrameSet(
            self.root, form, classes, frames, reports, self.problems, split, self.passed_over, notes
        )


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
            raise SkipFrame("invalid", f"its image {image.name} has {reason}") from None
        kind = error.kind.replace("_", " ")
        raise SkipFrame("invalid", f"its image {image.name} is {kind}: replace it") from None
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


def _content(frame: Frame) -> list[tuple[BoxXYXY, int, bool]]:
    ignored = frame.ignored or (False,) * len(frame.boxes)
    return sorted(zip(frame.boxes, frame.labels, ignored, strict=True))
