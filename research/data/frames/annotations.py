"""Frames from any layout that is known: capture runs, Pascal VOC, COCO, YOLO.

Where a source has no runs, the folder that an image lies in is its group if there are several
folders, and none of them is cut by the source's own split, nor is a whole split where validation
is still to be drawn; otherwise every image is a group of its own, and splits are by image. Counts
are then by split or by annotation file.
"""

from __future__ import annotations

from pathlib import Path

from research.data.frames.capture import read_capture, run_folders
from research.data.frames.coco import coco_documents, read_coco
from research.data.frames.frame import IMAGE_FILES, FrameSet, ImageFiles
from research.data.frames.voc import read_voc, xml_files
from research.data.frames.yolo import read_yolo, yolo_folders
from research.utils.errors import UserError

LAYOUTS = (
    "a capture run (run_manifest.json) or a folder of runs; VOC (Annotations/*.xml, JPEGImages/); "
    "YOLO (images/, labels/*.txt, classes.txt or data.yaml); COCO (*.json or annotations/*.json)"
)


def read_frames(source: Path) -> FrameSet:
    """The frames of ``source``, whose format shows in its files.

    Looked for in this order: capture runs, VOC, YOLO, COCO; the first that is found is read.

    Raises:
        UserError: no such folder, no known layout in it, or no usable frame.
    """
    if not source.is_dir():
        raise UserError("source", f"{source}: no such folder", f"give {LAYOUTS}")
    if run_folders(source):
        return read_capture(source)
    if found := read_annotated(source):
        return found
    raise UserError("source", f"{source}: no frames with boxes found in it", f"give {LAYOUTS}")


def read_annotated(
    source: Path,
    images: str | None = None,
    files: ImageFiles = IMAGE_FILES,
    require_labels: bool = False,
) -> FrameSet | None:
    """The frames of a folder in VOC, YOLO or COCO form, or null where it has none of them.

    Args:
        source: the folder.
        images: what its folders of images are called; null for the names that each format uses.
        files: which files are images.
        require_labels: an image without a YOLO file is a mistake; otherwise it is empty.

    Raises:
        UserError: no usable frame, a damaged COCO file, or a label file that is required.
    """
    if found := xml_files(source):
        return read_voc(source, found, images, files)
    if folders := yolo_folders(source, images or "images"):
        return read_yolo(source, folders, files, require_labels)
    if documents := coco_documents(source):
        return read_coco(source, documents, images, files)
    return None
