"""Writes a capture run, frame by frame."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from PIL import Image

from research.data.frames.capture import MANIFEST, SCHEMA_VERSION
from research.data.image_files import read_header
from research.utils.counts import counted
from research.utils.errors import UserError

MAX_FRAMES = 100_000  # file names have five digits
Source = Literal["sim_auto", "human", "model"]


class RunWriter:
    """Writes a capture run that is valid on disk after every frame.

    The manifest is written first, and every image before its label: an interrupted run contains
    the frames so far. A run without frames is removed at the end.

        with RunWriter(folder) as run:
            run.add(image, boxes, source="model", confidences=scores)

    Args:
        folder: folder of the run; must not exist or be empty.
        seed: seed that generated the frames, non-negative, if any.
        max_frames: largest number of frames, at least 1, if there is a limit.
        started_at: seconds since 1970; ``None`` for now.
        fps: frames per second of the timestamps.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int | None = None,
        max_frames: int | None = None,
        started_at: float | None = None,
        fps: float = 10.0,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.max_frames = max_frames
        self.started_at = time.time() if started_at is None else started_at
        self.fps = fps
        self.frames = 0

    def __enter__(self) -> Self:
        """Create the folder; raises UserError if it is not empty or cannot be created."""
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "seed": self.seed,
            "output_root": ".",  # no path of this machine
            "run_dir": self.folder.resolve().name,
            "started_at_unix": self.started_at,
            "max_frames": self.max_frames,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                raise UserError(
                    "out", f"{self.folder} is not empty", "pass another folder for the run"
                )
            (self.folder / "images").mkdir()
            (self.folder / "labels").mkdir()
        except OSError as error:
            raise self._error(error) from None
        self._write(MANIFEST, json.dumps(manifest).encode())
        return self

    def __exit__(self, *_: object) -> None:
        if self.frames == 0:
            for folder in ("images", "labels"):
                for file in (self.folder / folder).iterdir():
                    file.unlink()
                (self.folder / folder).rmdir()
            (self.folder / MANIFEST).unlink()
            self.folder.rmdir()

    def add(
        self,
        image: Image.Image | Path,
        boxes: Sequence[Sequence[float]],
        *,
        source: Source,
        confidences: Sequence[float] | None = None,
        overlay: Image.Image | None = None,
        suffix: str = ".png",
        **encoding: Any,
    ) -> Path:
        """Write the next frame.

        Args:
            image: an image, which is encoded, or a JPEG or PNG file, which is copied.
            boxes: of the upright image, normalised xyxy, each x0 < x1 and y0 < y1 in [0, 1].
            source: origin of the boxes.
            confidences: a number in [0, 1] for each box; ``None`` for 1.
            overlay: the image with boxes drawn, written as a PNG file.
            suffix: ``.png`` or ``.jpg``, for an image that is encoded.
            **encoding: options of the PIL encoder.

        Returns:
            the label file.

        Raises:
            UserError: for too many frames, or a failed write.
            ValueError: for invalid boxes, confidences, suffix or file.
        """
        if self.frames >= MAX_FRAMES:
            raise UserError(
                "max_frames",
                f"{self.folder}: a run has at most {MAX_FRAMES} frames",
                f"set max_frames={MAX_FRAMES}",
            )
        if isinstance(image, Path):
            suffix = {".jpeg": ".jpg"}.get(image.suffix.lower(), image.suffix.lower())
        if suffix not in (".jpg", ".png"):
            raise ValueError(f"images of a run are .jpg or .png, not {suffix}")
        stem = f"frame_{self.frames:05d}"
        clock = self.frames / self.fps
        label = {
            "frame_id": self.frames,
            "sim_time": clock,
            "unix_time": self.started_at + clock,
            "image": f"images/{stem}{suffix}",
            "image_present": True,
            "camera_active": True,
            "label_seed": self.seed or 0,
            "labels": _labels(boxes, confidences, source, _size(image)),
        }
        content = (
            image.read_bytes() if isinstance(image, Path) else _encoded(image, suffix, encoding)
        )
        self._write(f"images/{stem}{suffix}", content)
        if overlay is not None:
            self._write(f"overlays/{stem}.png", _encoded(overlay, ".png", {}))
        self._write(f"labels/{stem}.json", json.dumps(label).encode())
        self.frames += 1
        return self.folder / f"labels/{stem}.json"

    def _write(self, name: str, content: bytes) -> None:
        """Write a file atomically, without fsync: that takes longer than most models need for a
        frame."""
        path = self.folder / name
        part = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(content)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._error(error) from None

    def _error(self, error: OSError) -> UserError:
        return UserError(
            "out",
            f"{self.folder}: {error.strerror or error}",
            f"{counted(self.frames, 'frames')} written: free space or pass another folder",
        )


def _labels(
    boxes: Sequence[Sequence[float]],
    confidences: Sequence[float] | None,
    source: Source,
    size: tuple[int, int],
) -> list[dict[str, Any]]:
    scores = [1.0] * len(boxes) if confidences is None else [float(score) for score in confidences]
    labels = []
    for box, score in zip(boxes, scores, strict=True):
        x0, y0, x1, y1 = (float(edge) for edge in box)
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and 0 <= score <= 1):
            raise ValueError(f"box {[x0, y0, x1, y1]} with confidence {score} is not valid")
        width, height = size
        labels.append(
            {
                "center_world": [0.0, 0.0, 0.0],  # only known in simulation
                "bbox_px": [x0 * width, y0 * height, x1 * width, y1 * height],
                "bbox_norm": [x0, y0, x1, y1],
                "source": source,
                "source_confidence": score,
            }
        )
    return labels


def _size(image: Image.Image | Path) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.size
    header = read_header(image)
    return header.width, header.height


def _encoded(image: Image.Image, suffix: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if suffix == ".jpg" else "PNG", **options)
    return buffer.getvalue()
