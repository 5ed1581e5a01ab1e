"""How a source was read: what every file below it counts as, and one line that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Final

from research.data.image_files import EXTENSIONS
from research.data.listing import Listing, PassedOver, suffix_kind
from research.utils.counts import by_kind, counted

FORMATS: Final = {"capture": "capture runs", "voc": "VOC", "coco": "COCO", "yolo": "YOLO"}
"""How the formats are written in messages."""
WITHOUT_LABEL: Final = "without label"
WITHOUT_PICTURE: Final = "without picture"
MAX_REASONS: Final = 6
"""Reasons for leaving files out that are printed."""


@dataclass
class Remarks:
    """What a reader says about a source. Files are named by their path below the source.

    Attributes:
        names: where the class names are from, such as ``data.yaml``.
        split: what defines the splits, such as ``train.txt and val.txt``; '' for nothing.
        labels: files that are read as labels, lists or names.
        negatives: images without a label file, which are used.
        left_out: pictures and label files that are not used, and why.
        passed_over: other files that need a better word than their suffix.
        notes: number of times that something was read in a special way.
        examples: one example of each note.
    """

    names: str = ""
    split: str = ""
    labels: set[str] = field(default_factory=set)
    negatives: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, example: str, count: int = 1) -> None:
        """Count something that was read in a special way."""
        self.notes[what] += count
        self.examples.setdefault(what, example)


@dataclass(frozen=True)
class SourceSummary:
    """How a source was read; ``str()`` is the line that is printed.

    Used pictures, label files, files passed over and files left out are together all files below
    the source.

    Attributes:
        format: key of ``FORMATS``.
        remarks: what the reader says.
        listing: all files below the source.
        pictures: the pictures that are used.
        frames: number of samples; there are several pictures in one if each modality has its own.
        partners: frame → its pictures, where there are several.
    """

    format: str
    remarks: Remarks
    listing: Listing
    pictures: Set[str]
    frames: int
    partners: Mapping[str, Collection[str]] = field(default_factory=dict)

    @cached_property
    def _counts(self) -> tuple[int, PassedOver, Counter[str]]:
        """Number of label files; files passed over; files left out, by reason."""
        labels, left_out = 0, Counter[str]()
        passed_over = PassedOver()
        passed_over.update(self.listing.passed_over)
        for name in self.listing.names:
            suffix = PurePosixPath(name).suffix
            if name in self.pictures:
                continue
            if name in self.remarks.left_out:
                left_out[self.remarks.left_out[name]] += 1
            elif name in self.remarks.labels:
                labels += 1
            elif name in self.remarks.passed_over:
                passed_over.add(self.remarks.passed_over[name], name)
            elif suffix.lower() in EXTENSIONS:
                left_out[WITHOUT_LABEL] += 1
            else:
                passed_over.add(suffix_kind(suffix), name)
        return labels, passed_over, left_out

    @property
    def used(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> int:
        return self._counts[0]

    @property
    def passed_over(self) -> PassedOver:
        return self._counts[1]

    @property
    def omitted(self) -> Counter[str]:
        """Number of pictures and label files that are left out, by reason."""
        return self._counts[2]

    def leave_out(self, pictures: Mapping[str, str]) -> SourceSummary:
        """The same without pictures that turned out to be damaged.

        Args:
            pictures: name of the frame and kind of damage of each.
        """
        damaged = {
            each: kind.replace("_", " ")
            for name, kind in pictures.items()
            for each in self.partners.get(name, [name])
        }
        remarks = replace(self.remarks, left_out={**self.remarks.left_out, **damaged})
        used = self.pictures - damaged.keys()
        return replace(self, remarks=remarks, pictures=used, frames=self.frames - len(pictures))

    @property
    def notes(self) -> list[str]:
        """One line for each way in which entries were read that is not the plain one."""
        remarks = self.remarks
        return [
            f"{what}: {count}, the first {remarks.examples[what]}"
            for what, count in remarks.notes.items()
        ]

    @property
    def line(self) -> str:
        """How the source was read, without the notes."""
        remarks = self.remarks
        names = f"names from {remarks.names}" if remarks.names else "classes by number"
        split = f"split from {remarks.split}" if remarks.split else "no split"
        used = f"{counted(self.used, 'pictures')} used"
        if self.frames != self.used:
            used += f" in {counted(self.frames, 'frames')}"
        parts = [used]
        if self.labels:
            parts.append(counted(self.labels, "label files"))
        if self.passed_over.counts:
            parts.append(str(self.passed_over))
        if negatives := remarks.negatives & self.pictures:
            parts.append(f"{len(negatives)} without label kept as negatives")
        if self.omitted:
            parts.append(f"{self.omitted.total()} left out ({_reasons(self.omitted)})")
        return f"read as {FORMATS[self.format]}: {names}, {split}; {', '.join(parts)}"

    def __str__(self) -> str:
        return "; ".join([self.line, *self.notes])


def and_join(words: Collection[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _reasons(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    shown = Counter(dict(counts.most_common(MAX_REASONS)))
    if rest := counts.total() - shown.total():
        shown["for other reasons"] = rest
    return by_kind(shown)
