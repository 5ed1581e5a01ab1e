"""Videos that tests make for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FORMATS = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}


def colours(count: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """Frames [H, W, 3] that differ, of a ``size`` of width and height."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    frames = []
    for number in range(count):
        planes = [60 + 8 * number + x // 2, 200 - 5 * number - y // 2, np.full_like(x, 90)]
        frames.append(np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8))
    return frames


def write_video(
    path: Path, frames: Sequence[NDArray[np.uint8]], codec: str = "ffv1", rate: int = 10
) -> Path:
    """A video of RGB frames; ``ffv1`` keeps them as they are."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = FORMATS.get(codec, "yuv420p")
        stream.bit_rate = 2_000_000
        stream.gop_size = 5
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
