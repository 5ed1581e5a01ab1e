"""What can be said of a photo's quality without learning: sharpness, exposure, colours."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY: Final = (
    "sharpness",
    "exposure",
    "colourfulness",
    "contrast",
    "sharpness_raw",
    "colourfulness_raw",
    "contrast_raw",
    "brightness",
    "colour_variance",
)
"""The measures, in the order of the feature ``quality``."""
UNBOUNDED: Final = ("sharpness_raw", "colourfulness_raw", "contrast_raw")
"""Measures with long tails; the feature takes their logarithm."""
SHARP: Final = 1000.0
"""Variance of the Laplacian from which a photo counts as fully sharp."""
COLOURFUL: Final = 100.0
CONTRASTY: Final = 0.8


def measures(rgb: NDArray[np.uint8]) -> dict[str, float]:
    """The measures of one photo, at the size that is given.

    Grey is ITU-R 601's luma, rounded to whole numbers.

    - ``sharpness_raw``: variance of the 3×3 Laplacian of grey, edges mirrored.
    - ``sharpness``: that over 1000, at most 1.
    - ``exposure``: half the share of pixels that are neither black nor white, plus half the
      entropy of the grey histogram over its greatest value, ln 256.
    - ``colourfulness_raw``: of Hasler and Süsstrunk (2003), over 100.
    - ``colourfulness``: that, at most 1.
    - ``contrast_raw``: standard deviation of grey over its mean; 0 for a black photo.
    - ``contrast``: that over 0.8, at most 1.
    - ``brightness``: mean of grey, on a 0…1 scale.
    - ``colour_variance``: mean of the variances of red, green and blue, on a 0…1 scale.

    Args:
        rgb: uint8 [H, W, 3].

    Raises:
        ValueError: for an array of another kind.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise ValueError(f"{rgb.dtype} {rgb.shape} is no photo; give uint8 [H, W, 3]")
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    levels = np.arange(256)
    mean = float(shares @ levels)
    spread = math.sqrt(float(shares @ np.square(levels - mean)))
    sharpness = sharpness_of(grey)
    colourfulness, variance = _colours(rgb)
    contrast = spread / mean if mean else 0.0
    return {
        "sharpness": min(sharpness / SHARP, 1.0),
        "exposure": _exposure(shares),
        "colourfulness": min(colourfulness, 1.0),
        "contrast": min(contrast / CONTRASTY, 1.0),
        "sharpness_raw": sharpness,
        "colourfulness_raw": colourfulness,
        "contrast_raw": contrast,
        "brightness": mean / 255,
        "colour_variance": variance,
    }


def vector(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The measures as a feature [len(QUALITY)], ``UNBOUNDED`` ones as ln(1 + x)."""
    found = measures(rgb)
    values = [math.log1p(found[key]) if key in UNBOUNDED else found[key] for key in QUALITY]
    return np.array(values, np.float32)


def sharpness_of(grey: NDArray[np.uint8]) -> float:
    """Variance of the 3×3 Laplacian of a grey photo [H, W], its edges mirrored."""
    framed = np.pad(grey, 1, mode="reflect").astype(np.int16)
    centre = framed[1:-1, 1:-1]
    laplacian = framed[:-2, 1:-1] + framed[2:, 1:-1] + framed[1:-1, :-2] + framed[1:-1, 2:]
    laplacian -= 4 * centre  # at most 4 * 255 either way, which int16 holds
    return float(np.var(laplacian, dtype=np.float64))


def _exposure(shares: NDArray[np.float64]) -> float:
    filled = shares[shares > 0]
    entropy = -float(filled @ np.log(filled))
    clipped = float(shares[0] + shares[255])
    return 0.5 * (1 - clipped) + 0.5 * entropy / math.log(256)


def _colours(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """(colourfulness over 100, mean variance of the channels on a 0…1 scale).

    Both follow from the means and covariances of the channels.
    """
    pixels = rgb.reshape(-1, 3).astype(np.float64)
    mean = pixels.mean(0)
    centred = pixels - mean
    covariance = centred.T @ centred / len(pixels)
    axes = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])  # red to green, yellow to blue
    spread = math.sqrt(max(float(np.trace(axes @ covariance @ axes.T)), 0.0))
    shift = np.linalg.norm(axes @ mean)
    return float(spread + 0.3 * shift) / COLOURFUL, float(np.trace(covariance)) / 3 / 255**2
