"""Collects the frames of a source while a reader goes through it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

from research.data import texts
from research.data.frames.frame import BoxXYXY, Frame, FrameSet, RunCounts, SkipFrame, shorten
from research.data.frames.reading import WITHOUT_PICTURE, Remarks, SourceSummary
from research.data.image_files import EXTENSIONS
from research.data.listing import Listing, list_files
from research.utils.errors import UserError

ALIKE: Final = (
    "classes whose names are the same or differ only in letter case, spaces or Unicode form"
)


@dataclass
class FrameSetBuilder:
    """Collects the frames, counts and problems of a source while it is read."""

    root: Path
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)
    skipped: list[tuple[str, SkipFrame, str]] = field(default_factory=list)
    _origins: dict[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def listing(self) -> Listing:
        """All files below the source."""
        return list_files(self.root, None)

    def ensure_part(self, name: str) -> None:
        """Add a part of the source with zero counts, unless it is known."""
        self.counts.setdefault(name, Counter())

    def note(self, text: str, where: str) -> None:
        """Record how an entry was read, where that is not the plain way."""
        self.remarks.note(text, where)

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
            reason = SkipFrame("invalid", text, "described twice")
            self.skip(own_part, own, reason, self.root / name)

    def skip(self, part: str, where: str, reason: SkipFrame, image: Path | None = None) -> None:
        """Count an entry that cannot be used, and record why.

        Args:
            part: the run, split or annotation file that it belongs to.
            where: label file (and row) that describes it.
            reason: why it cannot be used.
            image: its image, if that is known.
        """
        self.ensure_part(part)
        self.counts[part][reason.kind] += 1
        self.problems.append(f"{where}: {reason}")
        self.skipped.append((where, reason, self.relative(image) if image else ""))

    def drop(self, name: str, reason: SkipFrame) -> None:
        """Leave out a frame that was added."""
        frame = self.frames.pop(name)
        part, _ = self._origins[name]
        self.counts[part]["non_empty" if frame.boxes else "empty"] -= 1
        self.skip(part, name, reason, frame.image)

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
        for one, other in texts.names_alike(classes):
            self.note(ALIKE, f"{shorten(one)} and {shorten(other)}")
        frames = sorted(self.frames.values(), key=lambda frame: (frame.group, frame.name))
        self._leave_out()
        reading = SourceSummary(
            form, self.remarks, self.listing, set(self.frames), len(self.frames)
        )
        return FrameSet(self.root, form, classes, frames, reports, self.problems, split, reading)

    def _leave_out(self) -> None:
        """Find the files of the entries that cannot be used.

        That is the image, or the images with the stem of the label file; else the label file.
        """
        names = set(self.listing.names)
        stems: dict[str, list[str]] = {}
        for name in self.listing.names:
            if PurePosixPath(name).suffix.lower() in EXTENSIONS and name not in self.frames:
                stems.setdefault(PurePosixPath(name).stem, []).append(name)
        for where, reason, image in self.skipped:
            if image in names:
                self.remarks.left_out.setdefault(image, reason.brief)
            elif where in names:
                images = stems.get(PurePosixPath(where).stem, [])
                if reason.kind != "invalid" or not images:
                    kind = reason.brief if reason.kind == "invalid" else WITHOUT_PICTURE
                    self.remarks.left_out.setdefault(where, kind)
                for name in images if reason.kind == "invalid" else []:
                    self.remarks.left_out.setdefault(name, reason.brief)


def _content(frame: Frame) -> list[tuple[BoxXYXY, int, bool]]:
    ignored = frame.ignored or (False,) * len(frame.boxes)
    return sorted(zip(frame.boxes, frame.labels, ignored, strict=True))
