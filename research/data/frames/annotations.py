"""Reads frames with boxes in any known format: capture runs, Pascal VOC, COCO, YOLO.

The groups of a capture source are its runs. For groups in the other formats see
``layout.build_frame_set``; counts are then by split or by annotation file.
"""

from __future__ import annotations

from dataclasses import replace
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


def read_frames(source: Path, scale_boxes: bool = False) -> FrameSet:
    """Read the frames of ``source``, whose format is recognised by its files.

    Formats are tried in this order: capture runs, VOC, YOLO, COCO.

    Args:
        source: the folder.
        scale_boxes: see ``ImageFiles``.

    Raises:
        UserError: if the folder does not exist, has no known format, or has no usable frame.
    """
    if not source.is_dir():
        raise UserError("SOURCE", f"{source}: no such folder", f"pass {LAYOUTS}")
    if run_folders(source):
        return read_capture(source, scale_boxes)
    if frames := read_annotated(source, files=replace(IMAGE_FILES, scale_boxes=scale_boxes)):
        return frames
    raise UserError("SOURCE", f"{source}: no frames with boxes found in it", f"pass {LAYOUTS}")


def read_annotated(
    source: Path,
    images: str | None = None,
    files: ImageFiles = IMAGE_FILES,
    require_labels: bool = False,
) -> FrameSet | None:
    """Read the frames of a folder in VOC, YOLO or COCO format.

    Args:
        source: the folder.
        images: name of its folders of images; ``None`` for the names that each format uses.
        files: which files are images.
        require_labels: treat an image without a YOLO label file as an error, not as empty.

    Returns:
        the frames, or ``None`` if the folder has none of the formats.

    Raises:
        UserError: for no usable frame, a damaged COCO file, or a required label file that is
            missing.
    """
    if documents := xml_files(source):
        return read_voc(source, documents, images, files)
    if folders := yolo_folders(source, images or "images"):
        return read_yolo(source, folders, files, require_labels)
    if coco_files := coco_documents(source):
        return read_coco(source, coco_files, images, files)
    return None
