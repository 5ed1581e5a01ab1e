"""Sources with one folder of images per modality: RGB, thermal, events.

The folders may be at any depth. The files of a frame have the same path without them, except for
the suffix and a word of the modality, and the same size in pixels. Labels are in VOC, YOLO or COCO
format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from research.data.frames.annotations import AUTO, Options, read_annotated
from research.data.frames.frame import FrameSet, ImageFiles, ImageSize, RunCounts, SkipFrame
from research.data.frames.layout import split_from_name
from research.data.frames.reading import WITHOUT_LABEL, SourceSummary
from research.data.image_files import EXTENSIONS
from research.data.listing import list_files, list_folders
from research.data.rgbx import modality_names
from research.data.rgbx.modalities import read_modality_header
from research.data.rgbx.modality_names import ModalityNames, join, pair_by_last_word
from research.data.texts import BadText, read_json
from research.utils.counts import counted
from research.utils.errors import UserError

LABELS = "labels/*.txt (YOLO), Annotations/*.xml (VOC) or annotations/*.json (COCO)"
PAIRS = "rgb_to_thermal_vid_map.json"
"""FLIR's file of pairs: name of an RGB picture → name of a thermal picture."""
ALL_SUFFIXES = EXTENSIONS | {".npy"}


def find_folders(source: Path, named: Mapping[str, str | None]) -> dict[str, str]:
    """Name of the folders of each modality, see ``modality_names.find_folders``."""
    return modality_names.find_folders(source, list_files(source, ALL_SUFFIXES).names, named)


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
        self._names = ModalityNames(folders, _listed_pairs(source))
        self._renamed: list[tuple[str, str]] = []
        self._index()

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
        files = ImageFiles(EXTENSIONS, self.size, scale_boxes, self._label_key())
        options = Options(self._rgb_folder(), files, require_labels, data_yaml)
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
        folders = join(self.folders.values())
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

    def _index(self) -> None:
        """Assign all pictures to frames."""
        found: dict[str, dict[str, list[Path]]] = {modality: {} for modality in self.folders}
        for path in list_files(self.source, ALL_SUFFIXES).paths:
            modality, frame = self._names.classify(self._name(path))
            if modality and (modality != "rgb" or path.suffix.lower() in EXTENSIONS):
                found[modality].setdefault(frame, []).append(path)
        renamed = pair_by_last_word(found)
        for modality, frames in found.items():
            for name, paths in frames.items():
                frame = renamed.get((modality, name), name)
                self.paths[modality].setdefault(frame, []).extend(paths)
                self._frames.update(dict.fromkeys(paths, frame))
                if frame != name:
                    self._renamed.append((frame, self._name(paths[0])))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.source).as_posix()

    def _rgb_folder(self) -> str | None:
        """Name of the folder of RGB pictures; ``None`` if it has no single one."""
        folder = self.folders["rgb"]
        return None if folder.startswith("*") else folder

    def _label_key(self) -> Callable[[str], str] | None:
        """How labels are found that are not below the folder of labels as pictures are.

        ``None`` if the formats find them: the folder of RGB pictures is at the top, or in those of
        the splits, and the names of all modalities are the same.
        """
        folder = self._rgb_folder()
        splits = [name for name in list_folders(self.source) if split_from_name(name)]
        tops = [self.source, *(self.source / name for name in splits)]
        if folder and not self._renamed and any((top / folder).is_dir() for top in tops):
            return None
        return self._key

    def _key(self, stem: str) -> str:
        return self._names.label_key(stem)

    def _add_unpaired(self, frame_set: FrameSet, require_labels: bool) -> FrameSet:
        """The frame set with the problems of files that belong to no frame."""
        assert frame_set.reading is not None
        remarks = frame_set.reading.remarks
        problems, runs = list(frame_set.problems), list(frame_set.runs)
        described = {self._frames.get(self.source / name) for name in remarks.left_out}
        described |= {self.frame_of(frame.image) for frame in frame_set.frames}
        unlabelled = [
            paths[0] for frame, paths in self.paths["rgb"].items() if frame not in described
        ]
        if unlabelled and require_labels:
            raise UserError("SOURCE", f"{unlabelled[0]}: has no labels", "add them, or remove it")
        if unlabelled:
            problems.append(
                f"{self.folders['rgb']}: {counted(len(unlabelled), 'images')} without labels, the "
                f"first is {self._name(unlabelled[0])}: add labels, empty ones for images without "
                "objects"
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
        reading = self._account(frame_set, frame_set.reading)
        return replace(frame_set, problems=problems, runs=runs, reading=reading)

    def _account(self, frame_set: FrameSet, reading: SourceSummary) -> SourceSummary:
        """The reading with the pictures of all modalities."""
        remarks = reading.remarks
        used = {self.frame_of(frame.image) for frame in frame_set.frames}
        reasons = {
            self._frames[self.source / name]: reason
            for name, reason in remarks.left_out.items()
            if self.source / name in self._frames
        }
        pictures = set()
        for path, frame in self._frames.items():
            name = self._name(path)
            if frame in used:
                pictures.add(name)
                continue
            missing = "without an image of each modality"
            complete = all(self.paths[modality].get(frame) for modality in self.folders)
            default = WITHOUT_LABEL if complete else missing
            remarks.left_out.setdefault(name, reasons.get(frame, default))
        renamed = list(self._renamed)
        if self._rgb_folder() is None:
            renamed += [(frame, self._name(path)) for path, frame in self._frames.items()]
        for frame, name in renamed:
            if frame in used:
                remarks.note("pictures paired by a part of their path", f"{name} as {frame}")
        partners = {
            frame.name: [
                self._name(path) for path in self.files(self.frame_of(frame.image)).values()
            ]
            for frame in frame_set.frames
        }
        return replace(reading, pictures=pictures, partners=partners)


def _listed_pairs(source: Path) -> dict[str, str]:
    """Stem of a thermal picture → stem of the RGB picture, if the source lists its pairs.

    Raises:
        UserError: if the list cannot be read.
    """
    file = source / PAIRS
    if not file.is_file():
        return {}
    try:
        document = read_json(file)
    except BadText as error:
        raise UserError("labels", f"{file}: {error}") from None
    if not isinstance(document, dict) or not all(
        isinstance(name, str) for name in document.values()
    ):
        raise UserError("labels", f"{file}: expected RGB name → thermal name", "fix or remove it")
    return {
        PurePosixPath(thermal).stem: PurePosixPath(rgb).stem for rgb, thermal in document.items()
    }
