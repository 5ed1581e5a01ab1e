"""Reads stills from images, folders of images, capture runs and videos."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from research.data.frames.capture import run_folders
from research.data.image_files import EXTENSIONS, inspect_header
from research.data.listing import PassedOver, list_files
from research.data.splits import evenly_spaced
from research.utils.errors import UserError
from research.utils.files import short_stem

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL.Image import Image

SINGLE_FILES = "images"
"""Group of image files that are passed one by one."""
ARRAY = ".npy"
"""Suffix of frames with more than three channels."""


@dataclass(frozen=True)
class Still:
    """One image, as a file.

    Attributes:
        name: for messages: its path, or the path of its video and its frame number, from 0.
        group: name of its capture run, folder or video.
        stem: file name for outputs; unique among all stills.
        file: the image or array; for a video frame, a PNG file that is deleted when the next batch
            is requested.
    """

    name: str
    group: str
    stem: str
    file: Path


@dataclass(frozen=True)
class _Source:
    """Images of one group, or the first ``frames`` of a video (None: all).

    Stems of images are their paths relative to ``root``.
    """

    group: str
    root: Path
    files: Sequence[Path] = ()
    video: Path | None = None
    frames: int | None = None


class Media:
    """The stills of several sources, in order.

    Args:
        sources: image files and arrays, folders with images at any depth (or, without images, with
            arrays), capture runs, folders of capture runs, video files. ``list_files`` says which
            files in folders are passed over.
        max_frames: largest number of stills, spread evenly over all: of files as they come, of a
            video its first frames, as many as its share. ``None`` for all.

    Attributes:
        expected: number of stills according to the headers of the videos; 0 if one has none.
        skipped: counts of unreadable videos, packets and video frames, by kind. Images are not
            opened here.
        problems: one line for each video that cannot be opened.
        passed_over: files in folders that are no images.

    Raises:
        UserError: for a source that does not exist or has no image, or if none can be opened.
    """

    def __init__(self, sources: Sequence[Path], max_frames: int | None = None) -> None:
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []
        self.passed_over = PassedOver()
        self._groups = _Unique()
        self._stems = _Unique()
        lengths: list[int] = []
        self._sources: list[_Source] = []
        for source in sources:
            for part in _expand(source, self.passed_over):
                try:
                    lengths.append(
                        len(part.files) if part.video is None else _frame_count(part.video)
                    )
                    self._sources.append(part)
                except _NotAVideo as reason:
                    self.skipped["not_a_video"] += 1
                    self.problems.append(str(reason))
        if not self._sources:
            raise UserError("SOURCE", self.problems[0])
        self.expected = 0 if 0 in lengths else sum(lengths)
        if max_frames is not None:
            self._sources = list(_evenly(self._sources, lengths, max_frames))
            self.expected = min(self.expected or max_frames, max_frames)

    def batches(self, size: int) -> Iterator[list[Still]]:
        """Yield up to ``size`` stills at a time; videos are decoded meanwhile.

        Raises:
            UserError: if video frames cannot be written to the temporary folder.
        """
        with tempfile.TemporaryDirectory(prefix="frames_") as scratch:
            stills = self._stills(Path(scratch))
            while batch := list(islice(stills, size)):
                yield batch
                for still in batch:
                    if still.file.parent == Path(scratch):
                        still.file.unlink()

    def _stills(self, scratch: Path) -> Iterator[Still]:
        several = len({part.group for part in self._sources}) > 1
        single_files = self._groups.name(SINGLE_FILES)
        for part in self._sources:
            group = single_files if part.group == SINGLE_FILES else self._groups.name(part.group)
            for file in part.files:
                stem = "_".join(file.relative_to(part.root).with_suffix("").parts)
                stem = f"{group}_{stem}" if several and group != single_files else stem
                yield Still(str(file), group, self._stems.name(stem), file)
            if part.video is not None:
                for number, image in enumerate(islice(self._frames(part.video), part.frames)):
                    stem = self._stems.name(f"{group}_{number:05d}")
                    file = _save(image, scratch / f"{stem}.png")
                    yield Still(f"{part.video} frame {number}", group, stem, file)

    def _frames(self, video: Path) -> Iterator[Image]:
        """Decode a video into upright frames; damaged frames are skipped and counted."""
        import av

        with _open(video) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        return
                    frames = packet.decode()
                except av.FFmpegError:
                    # One packet is damaged; after damage to the container demuxing ends.
                    self.skipped["unreadable"] += 1
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self.skipped["corrupt"] += 1
                    else:
                        yield frame.to_image().rotate(frame.rotation, expand=True)


def _evenly(sources: Sequence[_Source], lengths: Sequence[int], limit: int) -> Iterator[_Source]:
    """The sources with ``limit`` stills in all; a video of unknown length (0) may have as many."""
    chosen, start = evenly_spaced(sum(length or limit for length in lengths), limit), 0
    for source, length in zip(sources, lengths, strict=True):
        own = chosen[(chosen >= start) & (chosen < start + (length or limit))] - start
        files = [source.files[index] for index in own] if source.files else []
        yield replace(source, files=files, frames=len(own))
        start += length or limit


class _NotAVideo(Exception):
    """A file that is not a readable video."""


class _Unique:
    """Makes names of outputs unique by appending a number; a long one is cut."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def name(self, base: str) -> str:
        base = short_stem(base)
        name, number = base, 1
        while name in self.used:
            number += 1
            name = f"{base}_{number}"
        self.used.add(name)
        return name


def _expand(source: Path, passed_over: PassedOver) -> list[_Source]:
    """The groups of images and the video of one source; other files are counted."""
    if not source.exists():
        raise UserError("SOURCE", f"{source}: no such file or folder")
    if not source.is_dir():
        if source.suffix.lower() in {*EXTENSIONS, ARRAY} or not inspect_header(source):
            return [_Source(SINGLE_FILES, source.parent, [source])]
        return [_Source(source.stem, source.parent, video=source)]
    runs = run_folders(source)
    roots = {run: run / "images" for run in runs} or {source: source}
    files_in = {folder: _files_below(root, passed_over) for folder, root in roots.items()}
    parts = [
        _Source(folder.resolve().name.lstrip(".") or SINGLE_FILES, roots[folder], files)
        for folder, files in files_in.items()
        if files
    ]
    if not parts:
        kind = "no image in its capture runs" if runs else "no image in it"
        raise UserError(
            "SOURCE", f"{source}: {kind}", "pass images, folders of them, capture runs or videos"
        )
    return parts


def _files_below(root: Path, passed_over: PassedOver) -> list[Path]:
    """The images below a folder; its arrays, if it has no image."""
    listing = list_files(root, EXTENSIONS)
    if not listing.names:
        listing = list_files(root, {ARRAY})
    passed_over.update(listing.passed_over)
    return listing.paths


def _open(video: Path) -> InputContainer:
    """Open a video; raises _NotAVideo."""
    # Imported late: it takes half a second.
    import av

    try:
        # With "file:" a name like "a:b.mp4" is not parsed as protocol "a", and FFmpeg opens nothing
        # but files for the entries of a playlist. A title may be in any encoding.
        container = av.open(f"file:{video}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise _NotAVideo(
            f"{video}: neither an image nor a video that can be read ({reason})"
        ) from None
    if not container.streams.video:
        container.close()
        raise _NotAVideo(f"{video}: has no video stream")
    return container


def _frame_count(video: Path) -> int:
    """Number of frames according to the header, 0 if it has none; raises _NotAVideo."""
    import av

    with _open(video) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or 0
        return stream.frames or round((container.duration or 0) / av.time_base * rate)


def _save(image: Image, file: Path) -> Path:
    try:
        image.save(file, compress_level=1)
    except OSError as error:
        raise UserError(
            "TMPDIR",
            f"{file.parent}: {error.strerror or error}",
            "free space, or set TMPDIR to another folder",
        ) from None
    return file
