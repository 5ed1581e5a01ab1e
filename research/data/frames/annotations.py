"""Reads frames with boxes in any known format: capture runs, Pascal VOC, COCO, YOLO.

The groups of a capture source are its runs. For groups in the other formats see
``layout.build_frame_set``; counts are then by split or by annotation file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from research.data.frames.capture import read_capture, run_folders
from research.data.frames.coco import coco_documents, is_detections, read_coco
from research.data.frames.frame import IMAGE_FILES, BoxXYXY, Frame, FrameSet, ImageFiles
from research.data.frames.reading import FORMATS, and_join
from research.data.frames.voc import is_annotation, read_voc, xml_files
from research.data.frames.yolo import has_labels, nested_folders, read_yolo, yolo_folders
from research.data.listing import list_files
from research.utils.errors import UserError

LAYOUTS = (
    "a capture run (run_manifest.json) or a folder of runs; VOC (Annotations/*.xml, JPEGImages/); "
    "YOLO (images/, labels/*.txt, classes.txt or data.yaml); COCO (*.json or annotations/*.json)"
)
AUTO = "auto"
TOLERANCE = 1e-3
"""Largest difference of boxes that are the same in two formats, as a fraction of the image."""


def read_frames(
    source: Path, scale_boxes: bool = False, form: str = AUTO, data_yaml: str = ""
) -> FrameSet:
    """Read the frames of ``source``, whose format is recognised by its files.

    Args:
        source: the folder.
        scale_boxes: see ``ImageFiles``.
        form: ``capture``, ``voc``, ``coco`` or ``yolo``; ``auto`` to recognise it.
        data_yaml: see ``declared.read_declared``.

    Raises:
        UserError: if the folder does not exist, has no known format or two that disagree, or has
            no usable frame.
    """
    if not source.is_dir():
        raise UserError("SOURCE", f"{source}: no such folder", f"pass {LAYOUTS}")
    readers: dict[str, Callable[[], FrameSet]] = {}
    if form == "capture" or (form == AUTO and run_folders(source)):
        readers["capture"] = lambda: read_capture(source, scale_boxes)
    options = Options(files=replace(IMAGE_FILES, scale_boxes=scale_boxes), data_yaml=data_yaml)
    readers |= _annotation_readers(source, form, options, bool(readers))
    if readers:
        return _read_one(source, readers)
    passed_over = list_files(source, None).passed_over
    files = f"; {passed_over}, for example {passed_over.details()}" if passed_over.counts else ""
    if form != AUTO:
        none = f"has no labels as {FORMATS[form]}"
        raise UserError("format", f"format={form}: {source} {none}{files}")
    none = "no frames with boxes found in it"
    raise UserError("SOURCE", f"{source}: {none}{files}", f"pass {LAYOUTS}")


@dataclass(frozen=True)
class Options:
    """How an annotated folder is read.

    Attributes:
        images: name of its folders of images; ``None`` for the names that each format uses.
        files: which files are images.
        require_labels: treat an image without a YOLO label file as an error, not as empty.
        data_yaml: see ``declared.read_declared``.
    """

    images: str | None = None
    files: ImageFiles = IMAGE_FILES
    require_labels: bool = False
    data_yaml: str = ""


def read_annotated(source: Path, form: str, options: Options) -> FrameSet | None:
    """Read the frames of a folder in VOC, YOLO or COCO format.

    Args:
        source: the folder.
        form: ``voc``, ``yolo`` or ``coco``; ``auto`` to recognise it.
        options: how it is read.

    Returns:
        the frames, or ``None`` if the folder has none of the formats.

    Raises:
        UserError: for two formats that disagree, no usable frame, a damaged COCO file, or a
            required label file that is missing.
    """
    readers = _annotation_readers(source, form, options)
    return _read_one(source, readers) if readers else None


def _annotation_readers(
    source: Path, form: str, options: Options, others: bool = False
) -> dict[str, Callable[[], FrameSet]]:
    """Readers of the formats that a folder has, by format.

    Args:
        source: the folder.
        form: see ``read_frames``.
        options: how it is read.
        others: whether it has labels in another format.
    """
    images, files, required = options.images, options.files, options.require_labels
    readers: dict[str, Callable[[], FrameSet]] = {}
    if form in (AUTO, "voc") and (documents := xml_files(source)):
        readers["voc"] = lambda: read_voc(source, documents, images, files)
    folders = yolo_folders(source, images or "images") if form in (AUTO, "yolo") else {}
    if not folders and files.key is not None and form in (AUTO, "yolo"):
        folders = nested_folders(source)
    if folders:
        readers["yolo"] = lambda: read_yolo(
            source, folders, files, required and not several, data_yaml=options.data_yaml
        )
    try:
        coco_files = coco_documents(source) if form in (AUTO, "coco") else {}
    except UserError:
        if not readers and not others:
            raise
        coco_files = {}  # a file beside labels in another format, which is counted as passed over
    if readers or others:  # what research.predict writes beside its runs
        coco_files = {file: each for file, each in coco_files.items() if not is_detections(each)}
    if coco_files:
        readers["coco"] = lambda: read_coco(source, coco_files, images, files)
    several = others or len(readers) > 1
    if several and "voc" in readers and not any(map(is_annotation, documents)):
        del readers["voc"]
    if several and "yolo" in readers and not has_labels(folders):
        del readers["yolo"]
    return readers


def _read_one(source: Path, readers: Mapping[str, Callable[[], FrameSet]]) -> FrameSet:
    """Read the frames of a folder; if it has several formats, they are compared."""
    frame_sets = {}
    formats = and_join([FORMATS[form] for form in readers])
    choices = " or ".join(f"format={form}" for form in readers)
    for form, read in readers.items():
        try:
            frame_sets[form] = read()
        except UserError as error:
            if len(readers) == 1:
                raise
            message = f"{source}: has labels as {formats}; as {FORMATS[form]}, {error.message}"
            raise UserError("format", message, f"choose {choices}") from None
    # The splits that one of them declares are used.
    first, *others = sorted(frame_sets.values(), key=lambda each: not each.split)
    for other in others:
        if difference := _difference(first, other):
            raise UserError(
                "format",
                f"{source}: has labels as {formats}, and they differ: {difference}",
                f"choose {choices}",
            )
        assert first.reading is not None
        assert other.reading is not None
        remarks = first.reading.remarks
        remarks.labels |= other.reading.remarks.labels
        remarks.note("other formats, which agree", FORMATS[other.format])
    return first


def _difference(one: FrameSet, other: FrameSet) -> str:
    """The first difference between the labels of two formats, or ''.

    Every image that one of them has a label for must be known to the other.
    """
    frames = [{frame.name: frame for frame in each.frames} for each in (one, other)]
    labelled, known = [], []
    for each, by_name in zip((one, other), frames, strict=True):
        assert each.reading is not None
        labelled.append(by_name.keys() - each.reading.remarks.negatives)
        known.append(labelled[-1] | each.reading.remarks.left_out.keys())
    if lacking := (labelled[0] - known[1]) | (labelled[1] - known[0]):
        counts = " and ".join(
            f"{len(names)} images in {FORMATS[each.format]}"
            for each, names in zip((one, other), labelled, strict=True)
        )
        return f"labels of {counts}, {min(lacking)} in one alone"
    for name in sorted(labelled[0] & labelled[1]):
        pair = frames[0][name], frames[1][name]
        objects = [_objects(each, frame) for each, frame in zip((one, other), pair, strict=True)]
        if [found.label for found in objects[0]] != [found.label for found in objects[1]] or any(
            abs(edge - same) > TOLERANCE
            for found, same_object in zip(*objects, strict=True)
            for edge, same in zip(found.box, same_object.box, strict=True)
        ):
            return f"{name} has other boxes or classes"
        if [found.ignored for found in objects[0]] != [found.ignored for found in objects[1]]:
            return f"{name} has other ignore regions"
    for name in sorted(frames[0].keys() & frames[1].keys()):
        splits = [
            each.split.get(by_name[name].group)
            for each, by_name in zip((one, other), frames, strict=True)
        ]
        if None not in splits and splits[0] != splits[1]:
            return f"{name} is in the split {splits[0]} and in {splits[1]}"
    return ""


class _Object(NamedTuple):
    label: str
    box: BoxXYXY
    ignored: bool


def _objects(source: FrameSet, frame: Frame) -> list[_Object]:
    ignored = frame.ignored or [False] * len(frame.boxes)
    content = zip(frame.labels, frame.boxes, ignored, strict=True)
    return sorted(_Object(source.classes[label], box, flag) for label, box, flag in content)
