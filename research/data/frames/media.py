"""Stills out of whatever a user points at: images, folders of them, capture runs, videos."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from research.data.frames.capture import run_folders
from research.data.index import EXTENSIONS, inspect_header
from research.utils.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL.Image import Image

SINGLE_FILES = "images"
"""Group of the image files that were given one by one."""
ARRAY = ".npy"
"""Of frames with more channels than a picture has."""


@dataclass(frozen=True)
class Still:
    """One image, as a file.

    Attributes:
        name: what people are told: its path, or its video's path and its number in it, from 0.
        group: the capture run, folder or video that it is from.
        stem: what files made of it are called; unique among all stills.
        file: the image or array; of a video, a PNG that is gone when the next batch is asked for.
    """

    name: str
    group: str
    stem: str
    file: Path


@dataclass(frozen=True)
class _Part:
    """Images of one group, or a video; the images' stems are their paths in ``root``."""

    group: str
    root: Path
    files: Sequence[Path] = ()
    video: Path | None = None


class Media:
    """The stills of some sources, in order.

    Args:
        sources: image files and arrays, folders with images at any depth (or, where there is no
            image, with arrays), capture runs, folders of capture runs, video files. In folders,
            hidden files are passed over.
        max_frames: look at so many stills at most; null: at all of them.

    Attributes:
        expected: how many stills there are, as far as the videos' headers tell; 0 if one does not.
        damage: what of the videos could not be read, by kind. Images are left to their reader.
        told: a line for each video that could not be opened.

    Raises:
        UserError: when a source does not exist or holds no image, or when none can be opened.
    """

    def __init__(self, sources: Sequence[Path], max_frames: int | None = None) -> None:
        self.max_frames = max_frames
        self.damage: Counter[str] = Counter()
        self.told: list[str] = []
        self._groups = _Unique()
        self._stems = _Unique()
        lengths: list[int] = []
        self._parts: list[_Part] = []
        for source in sources:
            for part in _find(source):
                try:
                    lengths.append(len(part.files) if part.video is None else _length(part.video))
                    self._parts.append(part)
                except _NoVideo as reason:
                    self.damage[reason.kind] += 1
                    self.told.append(str(reason))
        if not self._parts:
            raise UserError("source", self.told[0])
        self.expected = 0 if 0 in lengths else sum(lengths)
        if max_frames is not None:
            self.expected = min(self.expected or max_frames, max_frames)

    def batches(self, size: int) -> Iterator[list[Still]]:
        """Up to ``size`` stills at a time; videos are decoded on the way.

        Raises:
            UserError: when there is no room for a video's frames.
        """
        with tempfile.TemporaryDirectory(prefix="frames_") as scratch:
            stills = islice(self._stills(Path(scratch)), self.max_frames)
            while batch := list(islice(stills, size)):
                yield batch
                for still in batch:
                    if still.file.parent == Path(scratch):
                        still.file.unlink()

    def _stills(self, scratch: Path) -> Iterator[Still]:
        several = len({part.group for part in self._parts}) > 1
        loose = self._groups.name(SINGLE_FILES)
        for part in self._parts:
            group = loose if part.group == SINGLE_FILES else self._groups.name(part.group)
            for file in part.files:
                stem = "_".join(file.relative_to(part.root).with_suffix("").parts)
                stem = f"{group}_{stem}" if several and group != loose else stem
                yield Still(str(file), group, self._stems.name(stem), file)
            if part.video is not None:
                for number, image in enumerate(self._frames(part.video)):
                    stem = self._stems.name(f"{group}_{number:05d}")
                    file = _written(image, scratch / f"{stem}.png")
                    yield Still(f"{part.video} frame {number}", group, stem, file)

    def _frames(self, video: Path) -> Iterator[Image]:
        """A video's frames, upright; what is damaged is counted and left out."""
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
                    # Of a packet; after damage to the container itself there are no more.
                    self.damage["unreadable"] += 1
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self.damage["corrupt"] += 1
                    else:
                        yield frame.to_image().rotate(frame.rotation, expand=True)


class _NoVideo(Exception):
    """A file in which no video can be found; ``kind`` as of other damage."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Unique:
    """Makes names that it did not make before."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


def _find(source: Path) -> list[_Part]:
    """What a source consists of."""
    if not source.exists():
        raise UserError("source", f"{source}: no such file or folder")
    if not source.is_dir():
        if source.suffix.lower() in {*EXTENSIONS, ARRAY} or not inspect_header(source):
            return [_Part(SINGLE_FILES, source.parent, [source])]
        return [_Part(source.stem, source.parent, video=source)]
    runs = run_folders(source)
    roots = {run: run / "images" for run in runs} or {source: source}
    found = {
        folder: _files_below(root, EXTENSIONS) or _files_below(root, {ARRAY})
        for folder, root in roots.items()
    }
    parts = [
        _Part(folder.resolve().name.lstrip(".") or SINGLE_FILES, roots[folder], files)
        for folder, files in found.items()
        if files
    ]
    if not parts:
        kind = "no image in its capture runs" if runs else "no image in it"
        raise UserError(
            "source", f"{source}: {kind}", "give images, folders of them, capture runs or videos"
        )
    return parts


def _files_below(root: Path, suffixes: Set[str]) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(word.startswith(".") for word in path.relative_to(root).parts)
        and path.is_file()
    )


def _open(video: Path) -> InputContainer:
    """Raises _NoVideo."""
    # Only here, where it is needed: half a second.
    import av

    try:
        # Said so, or "a:b.mp4" would be of the protocol "a". What a playlist names in a file is
        # not fetched from elsewhere: FFmpeg allows it no more than files.
        container = av.open(f"file:{video}")
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise _NoVideo(
            "not_a_video", f"{video}: neither an image nor a video that can be read ({reason})"
        ) from None
    if not container.streams.video:
        container.close()
        raise _NoVideo("not_a_video", f"{video}: holds no video stream")
    return container


def _length(video: Path) -> int:
    """About how many frames, 0 if the header does not say. Raises _NoVideo."""
    import av

    with _open(video) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or 0
        return stream.frames or round((container.duration or 0) / av.time_base * rate)


def _written(image: Image, file: Path) -> Path:
    try:
        image.save(file, compress_level=1)
    except OSError as error:
        raise UserError(
            "out",
            f"{file.parent}: {error.strerror or error}",
            "free space, or set TMPDIR to another folder",
        ) from None
    return file
