"""Frames whose modalities lie in folders of their own: RGB, thermal, events.

The folders lie at the top of a source or in its train, val and test folders. Files of one frame
have the same path below them, whatever their suffix, and the same size in pixels; labels are those
of VOC, YOLO or COCO.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from research.data.frames.annotations import read_annotated
from research.data.frames.frame import FrameSet, ImageFiles, RunCounts, SkipFrame
from research.data.frames.layout import split_from_name, split_from_path
from research.data.index import EXTENSIONS
from research.data.rgbx.arrays import Pixels
from research.data.rgbx.modalities import colour, grey, header
from research.utils.errors import UserError

FOLDERS = {
    "rgb": ("rgb", "visible", "vis", "images"),
    "thermal": ("thermal", "infrared", "ir", "lwir"),
    "event": ("event", "events"),
}
"""By modality: what its folder is called, in any case of letters; the first that is found."""

WIDEN = 257
"""From 8 bits to 16: 255 becomes 65535."""

LABELS = "labels/*.txt (YOLO), Annotations/*.xml (VOC) or annotations/*.json (COCO)"


def find_folders(source: Path, named: Mapping[str, str | None]) -> dict[str, str]:
    """What the folder of each modality is called; those that a source lacks are left out.

    Args:
        source: holds them.
        named: modality to the name that the user gave, if any.

    Raises:
        UserError: for a named folder that is not there or stands for two, no folder of RGB
            pictures, or none of any other modality.
    """
    found = sorted({path.name for top in _tops(source) for path in top.glob("[!.]*/")})
    folders = {}
    for modality, known in FOLDERS.items():
        name = named.get(modality)
        if name and name not in found:
            raise UserError(
                "source",
                f"{modality}={name}: no such folder in {source}",
                f"it has {_listed(found)}",
            )
        fitting = [folder for word in known for folder in found if folder.lower() == word]
        if chosen := name or next(iter(fitting), None):
            folders[modality] = chosen
    twice = [name for name in folders.values() if list(folders.values()).count(name) > 1]
    if twice:
        raise UserError(
            "source", f"{source}: {twice[0]} stands for two modalities", "name a folder for each"
        )
    for wanted in ({"rgb"}, {"thermal", "event"}):
        if not wanted & folders.keys():
            names = " or ".join(f"{key}=FOLDER" for key in FOLDERS if key in wanted)
            words = [word for key in FOLDERS if key in wanted for word in FOLDERS[key]]
            raise UserError(
                "source",
                f"{source}: no folder {_listed(words)}",
                f"it has {_listed(found)}: name yours with {names}",
            )
    return folders


class Pairs:
    """The files of a source by frame.

    Attributes:
        folders: modality to the name of its folder, ``rgb`` first.
        found: modality to frame (its path below the folders, without suffix) to files; more
            than one file is a mistake that is told when the frame is looked at.
        deep: of the frames that can be used, whether a file has 16 bits.
    """

    def __init__(self, source: Path, folders: Mapping[str, str]) -> None:
        self.source = source
        self.folders = dict(folders)
        self.found: dict[str, dict[str, list[Path]]] = {name: {} for name in folders}
        self.deep: dict[str, bool] = {}
        self._frames: dict[Path, str] = {}
        self._taken: dict[str, Path] = {}
        for top in _tops(source):
            for modality, name in folders.items():
                self._index(modality, top, top / name)

    def read(self, require_labels: bool) -> FrameSet:
        """The frames of which every file can be used, by their headers.

        Args:
            require_labels: a picture without labels is a mistake; otherwise a YOLO source says
                with it that nothing is there, and the other formats leave it out.

        Raises:
            UserError: no labels of a known form, no usable frame, or labels that are required.
        """
        files = ImageFiles(EXTENSIONS, self.size)
        found = read_annotated(self.source, self.folders["rgb"], files, require_labels)
        if found is None:
            raise UserError("source", f"{self.source}: no labels found in it", f"give {LABELS}")
        return self._with_the_unpaired(found, require_labels)

    def size(self, image: Path) -> tuple[int, int]:
        """Width and height of a frame in pixels, from the headers of all its files.

        Args:
            image: any one of them.

        Raises:
            SkipFrame: when one is missing or cannot be used, or their sizes differ.
        """
        frame = self.frame_of(image)
        if self._taken.setdefault(frame, image) != image:
            raise SkipFrame("invalid", f"{self._name(self._taken[frame])} has its boxes already")
        headers = {}
        for path in self.files(frame).values():
            try:
                headers[path] = header(path)
            except SkipFrame as reason:
                raise SkipFrame(reason.kind, f"{self._name(path)}: {reason}") from None
        first, *others = headers
        for path in others:
            if headers[path][:2] != headers[first][:2]:
                told = " and ".join(
                    f"{self._name(each)} {headers[each].width}×{headers[each].height}"
                    for each in (first, path)
                )
                raise SkipFrame("invalid", f"sizes differ, {told}: align the two")
        self.deep[frame] = any(found.deep for found in headers.values())
        return headers[first][:2]

    def frame_of(self, image: Path) -> str:
        """The frame that a file belongs to.

        Raises:
            SkipFrame: for a file that lies elsewhere.
        """
        if image in self._frames:
            return self._frames[image]
        if not image.is_file():
            text = f"its image {self._name(image)} is not there: restore it"
            raise SkipFrame("missing_file", text)
        folders = _listed(self.folders.values())
        raise SkipFrame(
            "invalid", f"its image {self._name(image)} lies in none of {folders}: move it"
        )

    def files(self, frame: str) -> dict[str, Path]:
        """The file of each modality.

        Raises:
            SkipFrame: when there is none, or more than one.
        """
        chosen = {}
        for modality, folder in self.folders.items():
            paths = self.found[modality].get(frame, [])
            if not paths:
                told = f"its {modality} picture {folder}/{frame}.* is not there"
                raise SkipFrame("missing_file", f"{told}: restore it or remove the frame")
            if len(paths) > 1:
                told = " and ".join(map(self._name, paths))
                raise SkipFrame("invalid", f"{told} are one frame: remove all but one")
            chosen[modality] = paths[0]
        return chosen

    def pixels(self, frame: str, deep: bool) -> Pixels:
        """The frame as one array [H, W, 3 + X]: red, green, blue, then a channel a modality.

        Args:
            frame: its name.
            deep: in uint16, where 8-bit values v become 257·v; otherwise uint8.

        Raises:
            SkipFrame: for a file that cannot be decoded, or is no grey picture where one is needed.
        """
        planes = []
        for modality, path in self.files(frame).items():
            try:
                planes.append(colour(path) if modality == "rgb" else grey(path))
            except SkipFrame as reason:
                raise SkipFrame(reason.kind, f"{self._name(path)}: {reason}") from None
        if deep:
            planes = [p.astype(np.uint16) * WIDEN if p.itemsize == 1 else p for p in planes]
        if len({(plane.shape[:2], plane.dtype) for plane in planes}) > 1:
            raise SkipFrame("invalid", "its files changed while they were read: run it again")
        return np.concatenate(planes, axis=2)

    def _index(self, modality: str, top: Path, folder: Path) -> None:
        suffixes = EXTENSIONS if modality == "rgb" else EXTENSIONS | {".npy"}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in suffixes and not path.name.startswith("."):
                inner = top.relative_to(self.source) / path.relative_to(folder)
                frame = (inner.parent / path.stem).as_posix()
                self.found[modality].setdefault(frame, []).append(path)
                self._frames[path] = frame

    def _name(self, path: Path) -> str:
        return path.relative_to(self.source).as_posix()

    def _with_the_unpaired(self, found: FrameSet, require_labels: bool) -> FrameSet:
        """Tells of the files that no frame was read from."""
        problems, runs = list(found.problems), list(found.runs)
        unlabelled = [
            paths[0] for frame, paths in self.found["rgb"].items() if frame not in self._taken
        ]
        if unlabelled and require_labels:
            raise UserError("source", f"{unlabelled[0]}: has no labels", "add them, or take it out")
        if unlabelled:
            problems.append(
                f"{self.folders['rgb']}: {len(unlabelled)} pictures without labels, the first "
                f"{self._name(unlabelled[0])}: left out; label them, if with no object"
            )
            runs.append(RunCounts(self.folders["rgb"], 0, 0, 0, 0, len(unlabelled), 0))
        for modality in [name for name in self.found if name != "rgb"]:
            lone = [
                self._name(paths[0])
                for frame, paths in self.found[modality].items()
                if frame not in self.found["rgb"]
            ]
            told = f"no picture of its name in {self.folders['rgb']}: restore or remove it"
            problems += [f"{name}: {told}" for name in lone]
            if lone:
                runs.append(RunCounts(self.folders[modality], 0, 0, 0, 0, len(lone), 0))
        return replace(found, problems=problems, runs=runs)


def places(found: FrameSet, pairs: Pairs) -> dict[str, str]:
    """Name of a frame → where a prepared set holds it: a path without suffix.

    The source's own path, below a folder of the split where only a list says which it is in.

    Raises:
        UserError: when two frames would lie in one place.
    """
    names: dict[str, str] = {}
    for frame in found.frames:
        place = pairs.frame_of(frame.image)
        split = found.split.get(frame.group, "")
        if split and split != split_from_path(PurePosixPath(place).parent.parts):
            place = f"{split}/{place}"
        if other := names.get(place):
            raise UserError(
                "source", f"{found.root}: {other} and {frame.name} both become {place}: rename one"
            )
        names[place] = frame.name
    return {name: place for place, name in names.items()}


def _tops(source: Path) -> list[Path]:
    return [source, *sorted(path for path in source.glob("[!.]*/") if split_from_name(path.name))]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
