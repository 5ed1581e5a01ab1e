"""Writes detections in COCO format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from research.utils.files import write_text

DETECTIONS: Final = "detections of a model"
"""Description in the documents that are written here."""


class CocoWriter:
    """Collects the boxes of frames, and writes one file that pycocotools can read.

    Args:
        classes: class names in index order; category ids are the indices plus 1.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        size: tuple[int, int],
        boxes: Sequence[Sequence[float]],
        scores: Sequence[float],
        labels: Sequence[int],
    ) -> None:
        """Add a frame.

        Args:
            name: file name of the image.
            size: width and height in pixels.
            boxes: [N, 4] xyxy in pixels.
            scores: [N] in 0…1.
            labels: [N] class indices.
        """
        image = len(self.images) + 1
        width, height = size
        self.images.append({"id": image, "file_name": name, "width": width, "height": height})
        for (x0, y0, x1, y1), score, label in zip(boxes, scores, labels, strict=True):
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def write(self, file: Path) -> None:
        """Write the file.

        Raises:
            OSError: if it cannot be written.
        """
        categories = [{"id": index, "name": name} for index, name in enumerate(self.classes, 1)]
        content = {
            "info": {"description": DETECTIONS},
            "images": self.images,
            "categories": categories,
            "annotations": self.annotations,
        }
        write_text(file, json.dumps(content) + "\n")
