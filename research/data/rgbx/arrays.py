"""Frames as NumPy files: [height, width, 3 + X] integers, red, green and blue first."""

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

from research.compression.jpeg import MIN_SIDE
from research.data.frames.frame import ImageFiles, SkipFrame
from research.data.frames.letterbox import Letterbox
from research.utils.errors import DamagedImage, UserError, one_line

COLOURS = ("red", "green", "blue")
RANGES = {"uint8": 255, "uint16": 65535}
"""The largest value of each type that frames may have."""
AXES = ("row", "column", "channel")
MOST_CHANNELS = 16
"""Where the last axis is longer, the axes are in another order."""
SAMPLES, SAMPLE = 16, 256
"""Pieces of a file by which it is known again, and bytes of each."""
HEADER_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,  # a side below 0 or beyond 64 bits
)
"""What NumPy raises for files that are no whole array."""

Pixels = NDArray[Any]
"""[H, W, C], uint8 or uint16."""


class Form(NamedTuple):
    """What all arrays of a set share."""

    channels: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.channels} channels of {self.dtype}"


@dataclass(frozen=True)
class Header:
    """What a file says of its array before a pixel is read; height and width in pixels."""

    height: int
    width: int
    form: Form


def inspect(path: Path) -> Header:
    """The header of a file.

    Raises:
        SkipFrame: when there is no such file, or no array in it that could be a frame.
    """
    if not path.is_file():
        raise SkipFrame("missing_file", f"its array {path.name} is not there: restore or prune it")
    try:
        array = mapped(path)
    except DamagedImage as error:
        kind = error.kind.replace("_", " ")
        raise SkipFrame("invalid", f"its array {path.name} is {kind}: replace it") from None
    if reason := _unusable(array):
        raise SkipFrame("invalid", f"its array {path.name}: {reason}")
    height, width, channels = array.shape
    return Header(height, width, Form(channels, array.dtype.name))


def array_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone; see ``inspect``."""
    header = inspect(path)
    return header.width, header.height


ARRAYS = ImageFiles(frozenset({".npy"}), array_size)


class Headers:
    """Headers, kept while a set is read, so that its files can be held against each other.

    Attributes:
        files: to read the set by.
        found: header of every usable file.
    """

    def __init__(self) -> None:
        self.found: dict[Path, Header] = {}
        self.files = ImageFiles(ARRAYS.suffixes, self._size)

    def _size(self, path: Path) -> tuple[int, int]:
        header = inspect(path)
        self.found[path] = header
        return header.width, header.height

    def common(self) -> Form:
        """What the files agree on.

        Raises:
            UserError: naming the first file that differs from most.
        """
        forms = Counter(header.form for header in self.found.values())
        most = forms.most_common(1)[0][0]
        for path, header in self.found.items():
            if header.form != most:
                raise UserError(
                    "dataset.root",
                    f"{path}: {header.form}, {forms[most]} other files have {most}",
                    "a data set is of one form: write the file anew, or take it out",
                )
        return most


def read_array(path: Path, form: Form) -> Pixels:
    """The pixels of a file.

    Not mapped: all of them are wanted, and a file that is cut short under a map kills the process.

    Args:
        path: the file.
        form: that it must have.

    Raises:
        DamagedImage: when it cannot be read, or has another form; also ``wrong_form``.
    """
    mapped(path)  # a header may claim more than any memory holds, but not more than its file
    with _told(path), path.open("rb") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if reason := _unusable(array):
        raise DamagedImage("wrong_form", f"{path}: {reason}")
    found = Form(array.shape[2], array.dtype.name)
    if found != form:
        raise DamagedImage("wrong_form", f"{path}: {found}, expected {form}")
    return array.astype(form.dtype, copy=False)  # a file's byte order may be another machine's


def letterboxed(array: Pixels, size: int) -> Pixels:
    """[C, size, size] of the same type: the array on a square canvas, see ``Letterbox``."""
    height, width, channels = array.shape
    box = Letterbox.of(height, width, size)
    canvas = np.zeros((channels, size, size), array.dtype)
    place = np.s_[:, box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]
    planes = array.transpose(2, 0, 1)
    if (height, width) != (box.height, box.width):
        floats = torch.from_numpy(planes.astype(np.float32))[None]
        shape = (box.height, box.width)
        resized = F.interpolate(floats, shape, mode="bilinear", antialias=True, align_corners=False)
        planes = resized[0].round_().clamp_(0, RANGES[array.dtype.name]).numpy()
    canvas[place] = planes
    return canvas


def pictures(array: Pixels) -> list[Image.Image]:
    """The array for people: RGB images of its own size, the colours, then a grey one an X channel.

    The X channels of 16 bits are stretched to their own range, as ``stretched`` does: sensors
    seldom fill 16 bits, and what they leave empty would be black.
    """
    planes = array.astype(np.float32) / RANGES[array.dtype.name]
    extra = [planes[..., place] for place in range(len(COLOURS), planes.shape[2])]
    if array.dtype != np.uint8:
        extra = [(plane - plane.min()) / max(np.ptp(plane), 1e-6) for plane in extra]
    panels = [planes[..., : len(COLOURS)], *(np.repeat(p[..., None], 3, -1) for p in extra)]
    return [Image.fromarray(np.rint(panel * 255).astype(np.uint8)) for panel in panels]


def mapped(path: Path) -> Pixels:
    """The array of a file, whatever it holds; read-only, not in memory.

    Raises:
        DamagedImage: when there is no whole one.
    """
    with _told(path):
        return np.lib.format.open_memmap(path, mode="r")


def not_numbers(array: Pixels) -> str:
    """How many NaN are in an array of floats, and where the first is; '' for other types."""
    if array.dtype.kind != "f":
        return ""
    wrong = np.isnan(array)
    if not wrong.any():
        return ", without NaN"
    first = np.unravel_index(int(wrong.argmax()), array.shape)
    where = " ".join(f"{axis} {at}" for axis, at in zip(AXES, first, strict=False))
    return f", {int(wrong.sum())} NaN, the first at {where}"


def sampled(path: Path) -> bytes:
    """A little of a file, from all over it: what differs where its pixels were changed widely."""
    last = max(path.stat().st_size - SAMPLE, 0)
    pieces = []
    with path.open("rb", buffering=0) as file:
        for place in range(SAMPLES):
            file.seek(last * place // (SAMPLES - 1))
            pieces.append(file.read(SAMPLE))
    return b"".join(pieces)


@contextlib.contextmanager
def _told(path: Path) -> Any:
    """Makes ``DamagedImage`` of what NumPy says of a file that is no whole array."""
    try:
        yield
    except HEADER_ERRORS as error:
        said = one_line(error)
        kind = "unreadable"
        if path.is_file() and path.stat().st_size == 0:
            kind = "empty"
        elif "mmap length" in said or "reshape" in said or "Failed to read" in said:
            kind = "truncated"
        elif "magic string" in said:
            kind = "not_an_image"
        raise DamagedImage(kind, f"{path}: no whole NumPy array ({said})") from None


def _unusable(array: Pixels) -> str:
    """Why an array is no frame, with what to do; '' if it is one."""
    told = "×".join(map(str, array.shape)) or "a single number"
    if array.ndim != 3 or array.shape[2] > MOST_CHANNELS:
        turn = ": np.moveaxis(array, 0, -1)" if array.ndim == 3 and array.shape[0] < 17 else ""
        return f"shape {told}: store (height, width, channels){turn}"
    if array.dtype.name not in RANGES:
        return f"{array.dtype.name}{not_numbers(array)}: store uint8 or uint16"
    if array.shape[2] <= len(COLOURS):
        return f"shape {told}: store red, green, blue and at least one more channel"
    if min(array.shape[:2]) < MIN_SIDE:
        return f"shape {told}: a side is under {MIN_SIDE} pixels; leave it out"
    return ""
