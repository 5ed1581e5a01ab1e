"""Frames in NumPy files: integer arrays [height, width, 3 + X], RGB channels first."""

from __future__ import annotations

import contextlib
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from research.compression.jpeg_header import MIN_SIDE
from research.data.frames.frame import ImageFiles, ImageSize, SkipFrame
from research.data.frames.letterbox import Letterbox
from research.utils.conditions import is_exhausted
from research.utils.errors import DamagedImage, UserError, one_line

COLOURS = ("red", "green", "blue")
RANGES = {"uint8": 255, "uint16": 65535}
"""Allowed data types, with their largest value."""
AXES = ("row", "column", "channel")
MAX_CHANNELS = 16
"""A longer last axis means that the axes are in another order."""
CHUNKS, CHUNK_BYTES = 16, 256
"""Number and size of the chunks of a file that its fingerprint hashes."""
HEADER_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,  # a side that is negative or exceeds 64 bits
)
"""Exceptions of NumPy for damaged files."""

Pixels = NDArray[Any]
"""[H, W, C], uint8 or uint16."""


class ArraySpec(NamedTuple):
    """Number of channels and data type, which all arrays of a data set share."""

    channels: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.channels} channels of {self.dtype}"


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type of an array, read without its pixels; height and width in pixels."""

    height: int
    width: int
    spec: ArraySpec


def read_array_header(path: Path) -> ArrayHeader:
    """Read the header of a file.

    Raises:
        SkipFrame: if the file is missing, damaged, or not a frame.
    """
    if not path.is_file():
        raise SkipFrame(
            "missing_file", f"its array {path.name} does not exist: restore or prune it"
        )
    try:
        array = open_memmap(path)
    except DamagedImage as error:
        kind = error.kind.replace("_", " ")
        raise SkipFrame("invalid", f"its array {path.name} is {kind}: replace it") from None
    if reason := _find_problem(array):
        raise SkipFrame("invalid", f"its array {path.name}: {reason}")
    height, width, channels = array.shape
    return ArrayHeader(height, width, ArraySpec(channels, array.dtype.name))


class HeaderCollector:
    """Collects the headers of a data set while it is read, to compare its files.

    Attributes:
        files: image files to read the data set with.
        headers: header of every usable file.
    """

    def __init__(self) -> None:
        self.headers: dict[Path, ArrayHeader] = {}
        self.files = ImageFiles(frozenset({".npy"}), self._size)

    def _size(self, path: Path) -> ImageSize:
        header = read_array_header(path)
        self.headers[path] = header
        return ImageSize(header.width, header.height)

    def common_spec(self) -> ArraySpec:
        """Channels and type of all files.

        Raises:
            UserError: for the first file that differs from the majority.
        """
        counts = Counter(header.spec for header in self.headers.values())
        common = counts.most_common(1)[0][0]
        for path, header in self.headers.items():
            if header.spec != common:
                raise UserError(
                    "dataset.root",
                    f"{path}: {header.spec}, but {counts[common]} other files have {common}",
                    "convert or remove the file: all files need the same channels and type",
                )
        return common


def read_array(path: Path, spec: ArraySpec) -> Pixels:
    """Read the pixels of a file.

    Not memory-mapped: all pixels are needed, and a truncated file under a map kills the process.

    Args:
        path: the file.
        spec: required channels and type.

    Raises:
        DamagedImage: if it cannot be read, or has other channels or another type (``wrong_form``).
    """
    open_memmap(path)  # refuses headers of more bytes than the file has, before memory is allocated
    with _as_damaged_image(path), path.open("rb") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if reason := _find_problem(array):
        raise DamagedImage("wrong_form", f"{path}: {reason}")
    actual = ArraySpec(array.shape[2], array.dtype.name)
    if actual != spec:
        raise DamagedImage("wrong_form", f"{path}: {actual}, expected {spec}")
    return array.astype(spec.dtype, copy=False)  # to native byte order


def letterbox(array: Pixels, size: int) -> Pixels:
    """Resize an array to a square canvas [C, size, size] of the same type, see ``Letterbox``."""
    height, width, channels = array.shape
    box = Letterbox.of(height, width, size)
    canvas = np.zeros((channels, size, size), array.dtype)
    inside = np.s_[:, box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]
    planes = array.transpose(2, 0, 1)
    if (height, width) != (box.height, box.width):
        floats = torch.from_numpy(planes.astype(np.float32))[None]
        shape = (box.height, box.width)
        resized = F.interpolate(floats, shape, mode="bilinear", antialias=True, align_corners=False)
        planes = resized[0].round_().clamp_(0, RANGES[array.dtype.name]).numpy()
    canvas[inside] = planes
    return canvas


def to_pil_images(array: Pixels) -> list[Image.Image]:
    """RGB images of the array at its own size: the colours, then each X channel in grey.

    16-bit X channels are stretched to their own range: sensors use a small part of 16 bits, which
    would be almost black.
    """
    planes = array.astype(np.float32) / RANGES[array.dtype.name]
    extra = [planes[..., channel] for channel in range(len(COLOURS), planes.shape[2])]
    if array.dtype != np.uint8:
        extra = [(plane - plane.min()) / max(np.ptp(plane), 1e-6) for plane in extra]
    panels = [planes[..., : len(COLOURS)], *(np.repeat(p[..., None], 3, -1) for p in extra)]
    return [Image.fromarray(np.rint(panel * 255).astype(np.uint8)) for panel in panels]


def open_memmap(path: Path) -> Pixels:
    """Memory-map the array of a file, of any shape and type; read-only.

    Raises:
        DamagedImage: if the file is damaged.
    """
    with _as_damaged_image(path):
        return np.lib.format.open_memmap(path, mode="r")


def describe_nans(array: Pixels) -> str:
    """Number of NaN in a float array, and position of the first; empty for other types."""
    if array.dtype.kind != "f":
        return ""
    nans = np.isnan(array)
    if not nans.any():
        return ", without NaN"
    first = np.unravel_index(int(nans.argmax()), array.shape)
    position = " ".join(f"{axis} {index}" for axis, index in zip(AXES, first, strict=False))
    return f", {int(nans.sum())} NaN, the first at {position}"


def read_chunks(path: Path) -> bytes:
    """Evenly spaced chunks of a file, for a fingerprint that is cheaper than a full hash."""
    last = max(path.stat().st_size - CHUNK_BYTES, 0)
    chunks = []
    with path.open("rb", buffering=0) as file:
        for index in range(CHUNKS):
            file.seek(last * index // (CHUNKS - 1))
            chunks.append(file.read(CHUNK_BYTES))
    return b"".join(chunks)


@contextlib.contextmanager
def _as_damaged_image(path: Path) -> Any:
    """Convert NumPy's exceptions for a damaged file to ``DamagedImage``."""
    try:
        yield
    except HEADER_ERRORS as error:
        if is_exhausted(error):
            raise
        text = one_line(error)
        kind = "unreadable"
        if path.is_file() and path.stat().st_size == 0:
            kind = "empty"
        elif "mmap length" in text or "reshape" in text or "Failed to read" in text:
            kind = "truncated"
        elif "magic string" in text:
            kind = "not_an_image"
        raise DamagedImage(kind, f"{path}: damaged NumPy array ({text})") from None


def _find_problem(array: Pixels) -> str:
    """Why an array is not a frame, with what to do; empty if it is one."""
    shape = "×".join(map(str, array.shape)) or "a single number"
    if array.ndim != 3 or array.shape[2] > MAX_CHANNELS:
        channels_first = array.ndim == 3 and array.shape[0] <= MAX_CHANNELS
        fix = ": np.moveaxis(array, 0, -1)" if channels_first else ""
        return f"shape {shape}: store (height, width, channels){fix}"
    if array.dtype.name not in RANGES:
        return f"{array.dtype.name}{describe_nans(array)}: store uint8 or uint16"
    if array.shape[2] <= len(COLOURS):
        return f"shape {shape}: store red, green, blue and at least one more channel"
    if min(array.shape[:2]) < MIN_SIDE:
        return f"shape {shape}: a side is under {MIN_SIDE} pixels: remove it"
    return ""
