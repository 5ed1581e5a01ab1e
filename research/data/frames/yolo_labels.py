"""Label files in YOLO format: which one belongs to an image, and the rows in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from typing import Final

from research.data import texts
from research.data.frames.frame import NORMALISED_SLACK, BoxXYXY, SkipFrame, normalize_box
from research.data.image_files import EXTENSIONS
from research.data.texts import BadText, name_key, parse_number

LABEL: Final = ".txt"
SUFFIXES: Final = EXTENSIONS | {".npy", ".txt"}
"""That may stand in the name of a label file: ``a.jpg.txt``."""
ALIKE: Final = 0.8
"""Similarity of two names from which one may be a misspelling of the other."""
MAX_COMPARED: Final = 200
"""Label files without an image that are compared with an image; the others are only counted."""
MAX_CLASS_DIGITS: Final = 6


@dataclass
class Matches:
    """Label files of images.

    Attributes:
        label: image → label file.
        spelled: images whose label file has another letter case or Unicode form.
        problems: image → why it cannot be used, and that in a few words.
        near: label files that such a problem names.
        orphans: label files without an image.
    """

    label: dict[str, str] = field(default_factory=dict)
    spelled: list[str] = field(default_factory=list)
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)
    near: set[str] = field(default_factory=set)
    orphans: list[str] = field(default_factory=list)


@dataclass
class LabelRows:
    """The rows of a label file.

    Attributes:
        boxes: boxes.
        labels: class numbers.
        polygons: number of boxes that are written as polygons.
        keypoints: number of rows with keypoints.
    """

    boxes: list[BoxXYXY] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    polygons: int = 0
    keypoints: int = 0


def match_labels(images: Mapping[str, str], labels: Mapping[str, str]) -> Matches:
    """Find the label file of each image.

    Args:
        images: image → its path in the folder of images, without suffix.
        labels: label file → its path in the folder of labels, without suffix.
    """
    matches = Matches()
    exact = {stem: label for label, stem in labels.items() if label.endswith(LABEL)}
    same: dict[str, list[str]] = {}
    for image, stem in images.items():
        same.setdefault(stem, []).append(image)
    free = dict(labels)
    for stem, owners in same.items():
        if (label := exact.get(stem)) is None:
            continue
        del free[label]
        for image in owners if len(owners) > 1 else []:
            others = " and ".join(owners)
            problem = f"{others} have one label file {label}: keep one of them"
            matches.problems[image] = (problem, "several images of one label file")
        if len(owners) == 1:
            matches.label[owners[0]] = label
        else:
            matches.near.add(label)
    rest = {image: stem for image, stem in images.items() if stem not in exact}
    _match_spelled(rest, free, matches)
    _find_near(rest, free, matches)
    matches.orphans = sorted(free.keys() - matches.near - set(matches.label.values()))
    return matches


def _match_spelled(rest: dict[str, str], free: dict[str, str], matches: Matches) -> None:
    """Match names that differ in letter case or Unicode form, and take them from both."""
    by_key: dict[str, tuple[list[str], list[str]]] = {}
    for group, names in enumerate((rest, free)):
        for name, stem in names.items():
            by_key.setdefault(name_key(stem), ([], []))[group].append(name)
    for images, labels in by_key.values():
        if not images or not labels:
            continue
        if len(images) == len(labels) == 1:
            matches.label[images[0]] = labels[0]
            matches.spelled.append(images[0])
        else:
            problem = f"{' and '.join(images + labels)} differ only in letter case: rename them"
            for image in images:
                matches.problems[image] = (problem, "several files of one name")
            matches.near.update(labels)
        for image in images:
            del rest[image]
        for label in labels:
            del free[label]


def _find_near(rest: Mapping[str, str], free: Mapping[str, str], matches: Matches) -> None:
    """Leave out images whose label file may be misspelled."""
    by_form: dict[tuple[str, object], list[str]] = {}
    by_numbers: dict[tuple[str, object], list[str]] = {}
    for label, stem in free.items():
        folder, name = _parts(stem)
        inner, suffix = PurePosixPath(name).with_suffix("").name, PurePosixPath(name).suffix
        for each in (name, inner) if suffix in SUFFIXES else (name,):  # a.jpg.txt
            by_form.setdefault((folder, _form(each)), []).append(label)
        by_numbers.setdefault((folder, _numbers(name)), []).append(label)
    for image, stem in rest.items():
        folder, name = _parts(stem)
        folders = {folder, ""} if folder else {each for each, _ in by_form}
        found = [label for each in folders for label in by_form.get((each, _form(name)), [])]
        if not found:
            alike = by_numbers.get((folder, _numbers(name)), [])[:MAX_COMPARED]
            found = [label for label in alike if _is_alike(name, _parts(free[label])[1])]
        if found:
            label = found[0]
            problem = f"has no label file of its name, but {label} is nearly that: rename it"
            matches.problems[image] = (problem, "label file of nearly its name")
            matches.near.add(label)


def _parts(stem: str) -> tuple[str, str]:
    folder, _, name = name_key(stem).rpartition("/")
    return folder, name


def _form(name: str) -> tuple[str, tuple[int, ...]]:
    """A name without what is easily misspelled: blanks, punctuation, leading zeros."""
    return re.sub(r"[\W\d_]+", "", name), _numbers(name)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", name))


def _is_alike(one: str, other: str) -> bool:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.quick_ratio() >= ALIKE and matcher.ratio() >= ALIKE


def read_rows(path: Path, classes: int, keypoints: int = 0) -> LabelRows:
    """Read a label file: rows of a class and a box, or a class and a polygon.

    Args:
        path: the file.
        classes: number of classes; 0 if it is unknown.
        keypoints: numbers after the box in a row; 0 for none.

    Raises:
        SkipFrame: for a file that cannot be read, or a bad row.
    """
    try:
        lines = texts.read_lines(path)
    except BadText as error:
        raise SkipFrame("invalid", str(error), "unreadable label file") from None
    rows = LabelRows()
    for row, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        label, numbers = _row(row, line, words, classes)
        if keypoints and len(numbers) == 4 + keypoints:
            numbers = numbers[:4]
            rows.keypoints += 1
        if len(numbers) == 4:
            x, y, width, height = numbers
            edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        elif len(numbers) >= 6 and len(numbers) % 2 == 0:
            across, down = numbers[::2], numbers[1::2]
            edges = [min(across), min(down), max(across), max(down)]
            rows.polygons += 1
        else:
            raise SkipFrame("invalid", _wrong_length(row, line, len(words)), "bad label row")
        rows.boxes.append(normalize_box(edges, 1, 1, NORMALISED_SLACK, f"row {row}"))
        rows.labels.append(label)
    return rows


def _row(row: int, line: str, words: Sequence[str], classes: int) -> tuple[int, list[float]]:
    """The class and the other numbers of a row."""
    brief = "bad label row"
    numbers = [parse_number(word) for word in words]
    if None in numbers[1:] and len(words) == 5:
        for word in words[1:]:
            if word.lower().lstrip("+-") in ("nan", "inf", "infinity"):
                reason = f"row {row} is {line[:50]!r}: expected four finite numbers"
                raise SkipFrame("invalid", reason, brief)
    if not (words[0].isascii() and words[0].isdecimal() and len(words[0]) <= MAX_CLASS_DIGITS):
        reason = f"row {row} is {line[:50]!r}: the class is no whole number"
        if numbers[0] is not None and numbers[0] >= 0 and numbers[0].is_integer():
            reason += f": write {words[0][:MAX_CLASS_DIGITS]} as {numbers[0]:.0f}"[:60]
        raise SkipFrame("invalid", reason, brief)
    values = [number for number in numbers[1:] if number is not None]
    if len(values) != len(numbers) - 1:
        raise SkipFrame("invalid", _wrong_length(row, line, len(words)), brief)
    if classes and int(words[0]) >= classes:
        reason = f"row {row}: class {words[0]} of {classes}: name or fix it"
        raise SkipFrame("invalid", reason, "class without a name")
    return int(words[0]), values


def _wrong_length(row: int, line: str, words: int) -> str:
    text = f"row {row} is {line[:50]!r}: expected class cx cy w h"
    if words == 6:
        return f"{text}; a sixth number is a confidence: remove it from labels"
    return text
