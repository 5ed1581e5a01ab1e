"""Files with an EXIF orientation, for tests."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def tag(stored: Path, path: Path, orientation: int) -> Path:
    """The same JPEG file with an EXIF orientation; its pixels are not encoded again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes()
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    data = stored.read_bytes()
    path.write_bytes(data[:2] + segment + data[2:])
    return path
