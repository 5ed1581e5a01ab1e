"""Sources with one folder of images per modality: RGB, thermal, events.

The folders are at the top of the source or in its train, val and test folders. The files of a frame
have the same path below the folders, except for the suffix, and the same size in pixels. Labels are
in VOC, YOLO or COCO format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from research.data.frames.annotations import AUTO, Options, read_annotated
from research.data.frames.frame import FrameSet, ImageFiles, ImageSize, RunCounts, SkipFrame
from research.data.frames.layout import split_from_name
from research.data.image_files import EXTENSIONS
from research.data.listing import list_files
from research.data.rgbx.modalities import read_modality_header
from research.utils.errors import UserError

FOLDERS = {
    "rgb": ("rgb", "visible", "vis", "images"),
    "thermal": ("thermal", "infrared", "ir", "lwir"),
    "event": ("event", "events"),
}
"""Folder names of each modality, case-insensitive; the first one that exists is used."""

LABELS = "labels/*.txt (YOLO), Annotations/*.xml (VOC) or annotations/*.json (COCO)"


def find_folders(source: Path, named: Mapping[str, str | None]) -> dict[str, str]:
    """Name of the folder of each modality that the source has.

    Args:
        source: folder of the source.
        named: modality to folder name set by the user, if any.

    Raises:
        UserError: for a named folder that does not exist or is used twice, no folder of RGB
            images, or no folder of another modality.
    """
    existing = sorted({path.name for top in _top_folders(source) for path in top.glob("[!.]*/")})
    folders: dict[str, str] = {}
    for modality, names in FOLDERS.items():
        name = named.get(modality)
        if name and name not in existing:
            raise UserError(
                modality,
                f"{modality}={name}: no such folder in {source}",
                f"it has {_join(existing)}",
            )
        matches = [folder for word in names for folder in existing if folder.lower() == word]
        if folder := name or next(iter(matches), None):
            if folder in folders.values():
                raise UserError(
                    modality,
                    f"{source}: {folder} is used for two modalities",
                    f"set {modality}=FOLDER",
                )
            folders[modality] = folder
    for required in (["rgb"], ["thermal", "event"]):
        if not folders.keys() & required:
            options = " or ".join(f"{modality}=FOLDER" for modality in required)
            raise UserError(
                required[0],
                f"{source}: no folder {_join(n for key in required for n in FOLDERS[key])}",
                f"it has {_join(existing)}: set {options}",
            )
    return folders


class PairedFolders:
    """The files of a source by frame.

    A frame is identified by its path below the folders, without suffix.

    Attributes:
        folders: modality to the name of its folder, ``rgb`` first.
        paths: modality to frame to files; more than one file is reported by ``files``.
        is_16bit: whether a file of a usable frame has 16 bits, by frame.
    """

    def __init__(self, source: Path, folders: Mapping[str, str]) -> None:
        self.source = source
        self.folders = dict(folders)
        self.paths: dict[str, dict[str, list[Path]]] = {name: {} for name in folders}
        self.is_16bit: dict[str, bool] = {}
        self._frames: dict[Path, str] = {}
        self._labelled: dict[str, Path] = {}
        for top in _top_folders(source):
            for modality, name in folders.items():
                self._index(modality, top, top / name)

    def read(
        self,
        require_labels: bool,
        scale_boxes: bool = False,
        form: str = AUTO,
        data_yaml: str = "",
    ) -> FrameSet:
        """The frames whose files are all usable, according to their headers.

        Args:
            require_labels: refuse images without labels; otherwise they are negatives in a YOLO
                source, and are skipped in the other formats.
            scale_boxes: see ``ImageFiles``.
            form: see ``read_frames``.
            data_yaml: see ``read_frames``.

        Raises:
            UserError: for missing labels, or no usable frame.
        """
        files = ImageFiles(EXTENSIONS, self.size, scale_boxes)
        options = Options(self.folders["rgb"], files, require_labels, data_yaml)
        frame_set = read_annotated(self.source, form, options)
        if frame_set is None:
            raise UserError("SOURCE", f"{self.source}: no labels found in it", f"add {LABELS}")
        return self._add_unpaired(frame_set, require_labels)

    def size(self, image: Path) -> ImageSize:
        """Size of a frame, from the headers of all its files.

        Args:
            image: any one of them.

        Raises:
            SkipFrame: if one is missing or unusable, or their sizes differ.
        """
        frame = self.frame_of(image)
        if self._labelled.setdefault(frame, image) != image:
            raise SkipFrame("invalid", f"{self._name(self._labelled[frame])} has boxes already")
        headers = {}
        for path in self.files(frame).values():
            try:
                headers[path] = read_modality_header(path)
            except SkipFrame as reason:
                raise SkipFrame(reason.kind, f"{self._name(path)}: {reason}") from None
        first, *others = headers
        for path in others:
            if headers[path][:2] != headers[first][:2]:
                sizes = " and ".join(
                    f"{self._name(each)} {headers[each].width}×{headers[each].height}"
                    for each in (first, path)
                )
                raise SkipFrame("invalid", f"sizes differ, {sizes}: align the two")
        self.is_16bit[frame] = any(header.is_16bit for header in headers.values())
        return ImageSize(*headers[first][:2], headers[first].orientation)

    def frame_of(self, image: Path) -> str:
        """The frame that a file belongs to.

        Raises:
            SkipFrame: for a file that is in none of the folders.
        """
        if image in self._frames:
            return self._frames[image]
        if not image.is_file():
            text = f"its image {self._name(image)} does not exist: restore it"
            raise SkipFrame("missing_file", text)
        folders = _join(self.folders.values())
        raise SkipFrame(
            "invalid", f"its image {self._name(image)} is in none of {folders}: move it"
        )

    def files(self, frame: str) -> dict[str, Path]:
        """The file of each modality.

        Raises:
            SkipFrame: if a modality has no file, or more than one.
        """
        files = {}
        for modality, folder in self.folders.items():
            paths = self.paths[modality].get(frame, [])
            if not paths:
                problem = f"its {modality} image {folder}/{frame}.* does not exist"
                raise SkipFrame("missing_file", f"{problem}: restore it or remove the frame")
            if len(paths) > 1:
                names = " and ".join(map(self._name, paths))
                raise SkipFrame("invalid", f"{names} are one frame: remove all but one")
            files[modality] = paths[0]
        return files

    def _index(self, modality: str, top: Path, folder: Path) -> None:
        suffixes = EXTENSIONS if modality == "rgb" else EXTENSIONS | {".npy"}
        if not folder.is_dir():
            return
        listing = list_files(folder, suffixes)
        for path in listing.paths:
            inner = top.relative_to(self.source) / path.relative_to(folder)
            frame = (inner.parent / path.stem).as_posix()
            self.paths[modality].setdefault(frame, []).append(path)
            self._frames[path] = frame

    def _name(self, path: Path) -> str:
        return path.relative_to(self.source).as_posix()

    def _add_unpaired(self, frame_set: FrameSet, require_labels: bool) -> FrameSet:
        """The frame set with the problems of files that belong to no frame."""
        problems, runs = list(frame_set.problems), list(frame_set.runs)
        unlabelled = [
            paths[0] for frame, paths in self.paths["rgb"].items() if frame not in self._labelled
        ]
        if unlabelled and require_labels:
            raise UserError("SOURCE", f"{unlabelled[0]}: has no labels", "add them, or remove it")
        if unlabelled:
            problems.append(
                f"{self.folders['rgb']}: {len(unlabelled)} images without labels, the first is "
                f"{self._name(unlabelled[0])}: add labels, empty ones for images without objects"
            )
            runs.append(RunCounts(self.folders["rgb"], 0, 0, 0, 0, len(unlabelled), 0))
        for modality in [name for name in self.paths if name != "rgb"]:
            unpaired = [
                self._name(paths[0])
                for frame, paths in self.paths[modality].items()
                if frame not in self.paths["rgb"]
            ]
            problem = f"no image of its name in {self.folders['rgb']}: restore or remove it"
            problems += [f"{name}: {problem}" for name in unpaired]
            if unpaired:
                runs.append(RunCounts(self.folders[modality], 0, 0, 0, 0, len(unpaired), 0))
        pictures = {
            self._name(path)
            for frame in frame_set.frames
            for path in self.files(self.frame_of(frame.image)).values()
        }
        reading = frame_set.reading and replace(frame_set.reading, pictures=pictures)
        return replace(frame_set, problems=problems, runs=runs, reading=reading)


def _top_folders(source: Path) -> list[Path]:
    return [source, *sorted(path for path in source.glob("[!.]*/") if split_from_name(path.name))]


def _join(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
