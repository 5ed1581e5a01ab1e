"""Hand-crafted measures of photo quality: sharpness, exposure, colour."""

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
MAX_SHARPNESS: Final = 1000.0
"""Variance of the Laplacian that counts as fully sharp."""
COLOURFULNESS_SCALE: Final = 100.0
MAX_CONTRAST: Final = 0.8


def measure_quality(rgb: NDArray[np.uint8]) -> dict[str, float]:
    """The measures of one photo, at the given size.

    Grey is ITU-R 601's luma, rounded to whole numbers.

    - ``sharpness_raw``: variance of the 3×3 Laplacian of grey, edges mirrored.
    - ``sharpness``: ``sharpness_raw`` / 1000, at most 1.
    - ``exposure``: half the fraction of pixels that are neither black nor white, plus half the
      entropy of the grey histogram over its greatest value, ln 256.
    - ``colourfulness_raw``: of Hasler and Süsstrunk (2003), over 100.
    - ``colourfulness``: ``colourfulness_raw``, at most 1.
    - ``contrast_raw``: standard deviation of grey over its mean; 0 for a black photo.
    - ``contrast``: ``contrast_raw`` / 0.8, at most 1.
    - ``brightness``: mean of grey, on a 0…1 scale.
    - ``colour_variance``: mean of the variances of red, green and blue, on a 0…1 scale.

    Args:
        rgb: uint8 [H, W, 3].

    Raises:
        ValueError: for an array of another shape or type.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise ValueError(f"{rgb.dtype} {rgb.shape} is not a photo: expected uint8 [H, W, 3]")
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
    histogram = np.bincount(grey.ravel(), minlength=256) / grey.size
    levels = np.arange(256)
    mean = float(histogram @ levels)
    std = math.sqrt(float(histogram @ np.square(levels - mean)))
    sharpness = laplacian_variance(grey)
    colourfulness, variance = _colour_measures(rgb)
    contrast = std / mean if mean else 0.0
    return {
        "sharpness": min(sharpness / MAX_SHARPNESS, 1.0),
        "exposure": _exposure(histogram),
        "colourfulness": min(colourfulness, 1.0),
        "contrast": min(contrast / MAX_CONTRAST, 1.0),
        "sharpness_raw": sharpness,
        "colourfulness_raw": colourfulness,
        "contrast_raw": contrast,
        "brightness": mean / 255,
        "colour_variance": variance,
    }


def quality_vector(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The measures as a feature [len(QUALITY)], ``UNBOUNDED`` ones as ln(1 + x)."""
    measures = measure_quality(rgb)
    values = [math.log1p(measures[key]) if key in UNBOUNDED else measures[key] for key in QUALITY]
    return np.array(values, np.float32)


def laplacian_variance(grey: NDArray[np.uint8]) -> float:
    """Variance of the 3×3 Laplacian of a grey photo [H, W], edges mirrored."""
    padded = np.pad(grey, 1, mode="reflect").astype(np.int16)
    centre = padded[1:-1, 1:-1]
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    laplacian -= 4 * centre  # within ±4 · 255, which fits in int16
    return float(np.var(laplacian, dtype=np.float64))


def _exposure(histogram: NDArray[np.float64]) -> float:
    nonzero = histogram[histogram > 0]
    entropy = -float(nonzero @ np.log(nonzero))
    clipped = float(histogram[0] + histogram[255])
    return 0.5 * (1 - clipped) + 0.5 * entropy / math.log(256)


def _colour_measures(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """(colourfulness over 100, mean variance of the channels on a 0…1 scale).

    Both follow from the means and covariances of the channels.
    """
    pixels = rgb.reshape(-1, 3).astype(np.float64)
    mean = pixels.mean(0)
    centred = pixels - mean
    covariance = centred.T @ centred / len(pixels)
    axes = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])  # red to green, yellow to blue
    std = math.sqrt(max(float(np.trace(axes @ covariance @ axes.T)), 0.0))
    mean_norm = np.linalg.norm(axes @ mean)
    colourfulness = float(std + 0.3 * mean_norm) / COLOURFULNESS_SCALE
    return colourfulness, float(np.trace(covariance)) / 3 / 255**2
