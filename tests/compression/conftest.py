"""Real JPEG files of every kind that the compression tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jpegio
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

MakeJpeg = Callable[..., Path]


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """[height, width, 3]: colour gradients under smooth noise, so that every plane has detail."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    noise = np.kron(rng.uniform(-60, 60, (height // 5 + 1, width // 5 + 1, 3)), np.ones((5, 5, 1)))
    slopes = np.stack([rows * 150 / height, cols * 150 / width, 150 - rows * 150 / height], -1)
    return np.clip(slopes + 50 + noise[:height, :width], 0, 255).astype(np.uint8)


@pytest.fixture
def make_jpeg(tmp_path: Path) -> MakeJpeg:
    """``make_jpeg(height, width, sampling, progressive=False, arithmetic=False, quality=85)``.

    ``sampling`` is ``444``, ``422``, ``440``, ``420``, ``411`` or ``grey``.
    """

    def make(
        height: int,
        width: int,
        sampling: str,
        *,
        progressive: bool = False,
        arithmetic: bool = False,
        quality: int = 85,
    ) -> Path:
        pixels = picture(height, width)
        if sampling == "grey":
            pixels, space, factors = np.ascontiguousarray(pixels[..., :1]), "GRAY", "Gray"
        else:
            space, factors = "RGB", sampling
        path = tmp_path / f"{height}x{width}_{sampling}_{progressive}_{arithmetic}_{quality}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(pixels, quality, space, factors))
        if progressive or arithmetic:
            image = jpegio.read(path)
            image.progressive_mode, image.arith_code = progressive, arithmetic
            jpegio.write(image, str(path))
        return path

    return make
