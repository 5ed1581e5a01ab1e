"""Read the quantised DCT coefficients of a JPEG file, without decoding pixels.

libjpeg-turbo (through ``jpegio``) does the entropy decoding. The markers are parsed here first (see
``jpeg_header``), because libjpeg accepts truncated files without an error and allocates whatever a
header claims, and jpegio numbers quantisation tables by their order in the file. libjpeg is called
only for files that are complete, of plausible size and of a supported kind. References are to ITU-T
T.81 (JPEG).

``jpegio`` is imported when it is needed: pixels do not need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from research.compression.jpeg_header import (
    DQT,
    EOI,
    FRAMES,
    MAX_BYTES,
    SOS,
    Header,
    check_file,
    check_markers,
    check_size,
    read_header,
    segments,
    unsupported_reason,
)
from research.compression.selection import ZIGZAG
from research.utils.errors import DamagedImage

_NATURAL = np.array(ZIGZAG)


def require_jpegio() -> None:
    """Import ``jpegio``, so that a missing package is reported before the first file is read."""
    import jpegio  # noqa: F401


class UnsupportedJpeg(Exception):
    """An undamaged JPEG whose coefficients cannot be used: decode its pixels instead.

    Attributes:
        reason: one word under which the fallback is counted, see ``unsupported_reason``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Plane:
    """The coefficients of one component.

    Attributes:
        quantised: int32 [8·rows, 8·cols]; coefficient (v, u) of block (i, j) is at
            [8·i + v, 8·j + u].
        table: int32 [8, 8], the quantisation step of each (v, u).
    """

    quantised: NDArray[np.int32]
    table: NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return self.quantised.shape[0] // 8, self.quantised.shape[1] // 8

    def crop(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """A box of blocks, dequantised, float32 [8·height, 8·width] in the layout of the plane."""
        part = self.quantised[8 * top : 8 * (top + height), 8 * left : 8 * (left + width)]
        steps = np.tile(self.table.astype(np.float32), (1, width))
        out = np.multiply(part.reshape(height, 8, -1), steps, dtype=np.float32)
        return out.reshape(8 * height, 8 * width)

    def blocks(self) -> NDArray[np.int32]:
        """Dequantised int32 [rows, cols, 64], frequency row-major."""
        rows, cols = self.shape
        grid = self.quantised.reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3)
        return (grid * self.table).reshape(rows, cols, 64)


@dataclass(frozen=True)
class Planes:
    """A JPEG's coefficients, on the orthonormal scale of the plane minus 128.

    A component of h × w pixels has ceil(h/8) × ceil(w/8) blocks; the last row and column may be
    partly padding.
    """

    header: Header
    planes: tuple[Plane, ...]

    @property
    def y(self) -> NDArray[np.int32]:
        """[rows, cols, 64], dequantised."""
        return self.planes[0].blocks()

    @property
    def cb(self) -> NDArray[np.int32] | None:
        """[rows, cols, 64], dequantised; ``None`` in a grey image."""
        return self.planes[1].blocks() if len(self.planes) == 3 else None

    @property
    def cr(self) -> NDArray[np.int32] | None:
        """[rows, cols, 64], dequantised; ``None`` in a grey image."""
        return self.planes[2].blocks() if len(self.planes) == 3 else None


def read_planes(path: str | os.PathLike[str]) -> Planes:
    """Read the coefficients of all components of a file.

    Raises:
        DamagedImage: as ``check_file``, ``read_header``, ``check_size`` and ``check_markers``; also
            ``truncated`` if the end marker is missing, and ``unreadable`` if libjpeg fails.
        UnsupportedJpeg: if the coefficients cannot be used, see ``unsupported_reason``.
    """
    import jpegio

    path = Path(path)
    size = check_file(path)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES)
    header = read_header(data)
    check_size(header, size)
    reason = unsupported_reason(header)
    if reason is not None:
        raise UnsupportedJpeg(reason)
    parts = list(segments(data))
    check_markers(parts)
    if parts[-1][0] != EOI:
        raise DamagedImage("truncated", "no end-of-image marker")
    tables = _tables(parts)
    try:
        coefficients = jpegio.read(path).coef_arrays
    except RuntimeError as error:
        raise DamagedImage("unreadable", str(error)) from None
    return Planes(header, tuple(map(Plane, coefficients, tables)))


def _tables(parts: list[tuple[int, bytes]]) -> list[NDArray[np.int32]]:
    """The quantisation table of each component, [8, 8], in the order of the frame.

    A component uses the table in its slot at the start of its first scan; the slot may be
    redefined later.
    """
    slots: dict[int, NDArray[np.int32]] = {}
    frame: list[tuple[int, int]] = []
    tables: dict[int, NDArray[np.int32]] = {}
    for marker, body in parts:
        if marker == DQT:
            slots.update(_quantisation(body))
        elif marker in FRAMES:
            frame = list(zip(body[6::3], body[8::3], strict=True))
        elif marker == SOS:
            scan = body[1 : 1 + 2 * body[0] : 2] if body else b""
            for component, slot in frame:
                if component in scan and component not in tables:
                    if slot not in slots:
                        raise DamagedImage("unreadable", "a quantisation table is missing")
                    tables[component] = slots[slot]
    if any(component not in tables for component, _ in frame):
        raise DamagedImage("unreadable", "a component is in no scan")
    return [tables[component] for component, _ in frame]


def _quantisation(body: bytes) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Yield (slot, table [8, 8]) for each table of a segment (T.81, B.2.4.1)."""
    start = 0
    while start < len(body):
        dtype = np.dtype(">u2" if body[start] >> 4 else "u1")
        end = start + 1 + 64 * dtype.itemsize
        if end > len(body):
            raise DamagedImage("unreadable", "a quantisation table is cut short")
        table = np.empty(64, np.int32)
        table[_NATURAL] = np.frombuffer(body[start + 1 : end], dtype)
        yield body[start] & 15, table.reshape(8, 8)
        start = end
