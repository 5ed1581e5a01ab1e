"""YOLO reader: one text file per image; rows are "class cx cy width height" in fractions.

Images are in folders ``images``, labels in folders ``labels`` beside them, at any depth; or both
are in one folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.declared import Declared, is_name_file, read_declared
from research.data.frames.frame import (
    IMAGE_FILES,
    Frame,
    FrameSet,
    ImageFiles,
    SkipFrame,
)
from research.data.frames.layout import (
    ALL,
    build_frame_set,
    keep_split_frames,
    split_from_path,
    splits_from_folders,
)
from research.data.frames.reading import WITHOUT_PICTURE, and_join
from research.data.frames.split_lists import NONE
from research.data.frames.yolo_labels import LABEL, LabelRows, Matches, match_labels, read_rows
from research.data.image_files import EXTENSIONS
from research.data.listing import Listing, list_files
from research.utils.errors import UserError
from research.utils.progress import track

LABELS = "labels"


def yolo_folders(
    source: Path, images: str = "images", listing: Listing | None = None
) -> dict[Path, Path]:
    """Folders of images and of their labels; empty if the source has no labels in YOLO format.

    Without folders ``images`` and ``labels``, both are the source if an image has a text file of
    its name beside it.

    Args:
        source: root folder of the source.
        images: name of the folders of images, in any letter case.
        listing: all files below the source, if they are known.
    """
    names = (listing or list_files(source, None)).names
    folders: dict[Path, Path] = {}
    parents = {parent for name in names for parent in PurePosixPath(name).parents}
    for parent in sorted(parents):
        if parent.name.lower() == images.lower():
            labels = next(iter(_beside(source / parent)), None)
            if labels is not None:
                folders[source / parent] = labels
    folders = {  # images/images is one folder of images
        folder: labels
        for folder, labels in folders.items()
        if not any(other in folder.parents for other in folders)
    }
    if folders or images != "images":
        return folders
    stems = {name[: -len(LABEL)] for name in names if name.lower().endswith(LABEL)}
    flat = any(
        PurePosixPath(name).with_suffix("").as_posix() in stems
        for name in names
        if PurePosixPath(name).suffix.lower() in EXTENSIONS
    )
    return {source: source} if flat else {}


def _beside(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.parent.iterdir() if path.name.lower() == LABELS and path.is_dir()
    )


def nested_folders(source: Path) -> dict[Path, Path]:
    """The source itself, for labels that a key finds, if it has a folder of labels at any depth."""
    names = list_files(source, {LABEL}).names
    nested = any(LABELS in map(str.lower, PurePosixPath(name).parts[:-1]) for name in names)
    return {source: source} if nested else {}


def has_labels(folders: Mapping[Path, Path]) -> bool:
    """Whether there is a label file in the folders of labels."""
    return any(
        not is_name_file(path.name)
        for labels in folders.values()
        for path in list_files(labels, {LABEL}).paths
    )


def read_yolo(
    source: Path,
    folders: dict[Path, Path],
    files: ImageFiles = IMAGE_FILES,
    require_labels: bool = False,
    class_names: Sequence[str] | None = None,
    data_yaml: str = "",
) -> FrameSet:
    """Read the frames of a source in YOLO format.

    Args:
        source: root folder of the source.
        folders: folders of images, and of their labels.
        files: which files are images.
        require_labels: treat an image without a label file as an error, not as empty.
        class_names: class names; ``None`` for those of the source.
        data_yaml: see ``read_declared``.

    Raises:
        UserError: for invalid class names, declarations that disagree, no usable frame, or a
            required label file that is missing.
    """
    builder = FrameSetBuilder(source)
    declared = read_declared(builder, data_yaml, files.suffixes, class_names is None)
    classes = declared.names if class_names is None else list(class_names)
    remarks = builder.remarks
    remarks.names = "dataset.class_names" if class_names is not None else declared.names_from
    remarks.labels |= declared.files
    count = len(classes) or declared.count
    pairs = _with_declared(source, folders, declared)
    reader = _Reader(builder, declared, files, count, require_labels, pairs.values())
    for images, labels in pairs.items():
        reader.read_folder(images, labels)
    for name in builder.listing.names:
        if PurePosixPath(name).suffix.lower() in files.suffixes and name not in reader.images:
            remarks.passed_over[name] = "outside images"
    if not classes:
        largest = max(
            (max(frame.labels, default=-1) for frame in builder.frames.values()), default=-1
        )
        classes = [str(number) for number in range(count or largest + 1)]
    return build_frame_set(builder, "yolo", classes, _split(builder, declared))


def _with_declared(
    source: Path, folders: Mapping[Path, Path], declared: Declared
) -> dict[Path, Path]:
    """The folders, and those of declared images outside them, with labels beside the images."""
    found = dict(folders)
    for name in declared.splits:
        path = source / name
        if not any(folder in path.parents for folder in found):
            found[path.parent] = path.parent
    return found


def _split(builder: FrameSetBuilder, declared: Declared) -> dict[str, str]:
    """Frame name → split: as declared, else as the folders of the images say."""
    by_folder, folders = splits_from_folders(builder.frames)
    if not declared.splits:
        builder.remarks.split = folders
        return by_folder
    builder.remarks.split = declared.split_from
    for name, splits in sorted(declared.splits.items()):
        folder = by_folder.get(name)
        if folder and splits != {folder} and not declared.chosen:
            raise UserError(
                "data_yaml",
                f"{builder.root / name}: its folder is of {folder}, but it is in "
                f"{and_join(sorted(splits))} of {declared.split_from}",
                f"fix one of them, or go by the folders with data_yaml={NONE}",
            )
    return keep_split_frames(builder, declared.splits, declared.split_from)


class _Reader:
    """Adds the frames of folders to a builder.

    Attributes:
        folders: of labels.
        images: the images seen so far.
        names: all files of the source.
        linked: the labels so far that are found through links.
    """

    def __init__(
        self,
        builder: FrameSetBuilder,
        declared: Declared,
        files: ImageFiles,
        classes: int,
        require_labels: bool,
        folders: Collection[Path],
    ) -> None:
        self.builder = builder
        self.declared = declared
        self.files = files
        self.classes = classes
        self.require_labels = require_labels
        self.folders = folders
        self.images: set[str] = set()
        self.names = frozenset(builder.listing.names)
        self.linked: set[str] = set()

    def read_folder(self, images: Path, labels: Path) -> None:
        """Add the frames of a folder of images."""
        builder = self.builder
        found = self._below(images, self.files.suffixes)
        texts = self._below(labels, {LABEL})
        if self.files.key is not None:
            texts = {name: self.files.key(stem) for name, stem in texts.items()}
            found = self._one_each(found, self.files.key)
        matches = match_labels(found, texts)
        self.images |= found.keys()
        for name in track(found, "reading labels"):
            place = labels / f"{found[name]}{LABEL}"
            if name not in matches.label and os.path.lexists(place):  # else a negative
                label, problem = self._behind_link(place)
                if problem:
                    brief = "label that is no file of its own"
                    matches.problems.setdefault(name, (problem, brief))
                else:
                    matches.label[name] = label
                    self.linked.add(label)
            self._read_image(name, labels, matches)
        for label in sorted(matches.near):
            builder.remarks.left_out.setdefault(label, "label file of nearly its name")
        for label in matches.orphans:
            if images == labels and not self._has_boxes(label):
                continue  # a note among images, not labels
            missing = "its image does not exist: restore or remove it"
            builder.skip(
                self._part(label), label, SkipFrame("missing_file", missing, WITHOUT_PICTURE)
            )

    def _behind_link(self, place: Path) -> tuple[str, str]:
        """The label file that a link leads to, if it is one under this name alone.

        Args:
            place: where the label of an image is, but no file that is read as a label.

        Returns:
            the label file, or '' and why it cannot be used.
        """
        builder, real = self.builder, os.path.realpath(place)
        root = os.path.realpath(builder.root)
        name = os.path.relpath(real, root).replace(os.sep, "/")
        if name not in self.names:
            reason = "is no file" if os.path.exists(real) else "is a broken link"
        elif name in self.declared.files or is_name_file(name):
            reason = f"is {name}, which declares names or splits"
        elif name in self.linked or any(
            PurePosixPath(name).is_relative_to(builder.relative(each)) for each in self.folders
        ):
            reason = f"is a link to {name}, which is a label of its own"
        else:
            return name, ""
        return "", f"its label file {builder.relative(place)} {reason}: replace it"

    def _below(self, folder: Path, suffixes: Set[str]) -> dict[str, str]:
        """File → its path below a folder, without suffix."""
        inside = "" if folder == self.builder.root else f"{self.builder.relative(folder)}/"
        found = {}
        for name in self.builder.listing.names:
            path = PurePosixPath(name)
            if not name.startswith(inside) or path.suffix.lower() not in suffixes:
                continue
            known = name in self.images or name in self.declared.files
            if not known and not is_name_file(name):
                found[name] = path.with_suffix("").as_posix().removeprefix(inside)
        return found

    def _one_each(self, images: Mapping[str, str], key: Callable[[str], str]) -> dict[str, str]:
        """One image of each key; the others of a key are of other modalities."""
        chosen: dict[str, str] = {}
        for name, stem in images.items():
            chosen.setdefault(key(stem), name)
        return {name: each for each, name in chosen.items()}

    def _read_image(self, name: str, labels: Path, matches: Matches) -> None:
        builder, image = self.builder, self.builder.root / name
        part, label = self._part(name), matches.label.get(name)
        if label is not None:
            builder.remarks.labels.add(label)
        try:
            if name in matches.problems:
                raise SkipFrame("invalid", *matches.problems[name])
            self.files.size(image)
            if label is None and self.require_labels:
                raise UserError(
                    "labels",
                    f"{image}: has no label file {labels / image.stem}{LABEL}",
                    "add it (empty for a negative)",
                )
            rows = LabelRows()  # In YOLO format an image without objects may have no label file.
            if label is not None:
                rows = read_rows(builder.root / label, self.classes, self.declared.keypoints)
        except SkipFrame as reason:
            builder.skip(part, label or name, reason, image)
            return
        builder.add(part, name, Frame(name, image, "", tuple(rows.boxes), tuple(rows.labels)))
        if label is None:
            builder.remarks.negatives.add(name)
            return
        for what, count in (
            ("polygons read as the boxes around them", rows.polygons),
            ("rows with keypoints, which are not read", rows.keypoints),
        ):
            if count:
                builder.remarks.note(what, label, count)
        if name in matches.spelled:
            builder.remarks.note("label files spelled otherwise", f"{label} of {name}")

    def _has_boxes(self, label: str) -> bool:
        try:
            return bool(read_rows(self.builder.root / label, 0).boxes)
        except SkipFrame:
            return False

    def _part(self, name: str) -> str:
        """The split of an image or label file, for counts."""
        declared = self.declared.splits.get(name, set())
        if len(declared) == 1:
            return next(iter(declared))
        return split_from_path(PurePosixPath(name).parent.parts) or ALL
