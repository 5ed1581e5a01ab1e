from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, stats

from research.data.pairs.quality import QUALITY, laplacian_variance, measure_quality, quality_vector

PHOTOS = st.builds(
    lambda seed, height, width, low, high: (
        np.random.default_rng(seed)
        .integers(min(low, high), max(low, high) + 1, (height, width, 3))
        .astype(np.uint8)
    ),
    seed=st.integers(0, 99),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
)


def reference(rgb: NDArray[np.uint8]) -> dict[str, float]:
    """The formulae as published, in double precision, one histogram bin at a time."""
    red, green, blue = rgb.astype(np.int64).transpose(2, 0, 1)
    grey = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.float64)
    histogram = np.array([(grey == level).mean() for level in range(256)])
    entropy = stats.entropy(histogram)
    rg, yb = red - green, (red + green) / 2 - blue
    colourfulness = (
        np.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    ) / 100
    # scipy's "mirror" does not repeat the edge, like OpenCV's default border.
    sharpness = ndimage.laplace(grey, mode="mirror").var() if min(grey.shape) > 1 else None
    contrast = grey.std() / grey.mean() if grey.any() else 0.0
    measures = {
        "exposure": 0.5 * (1 - histogram[0] - histogram[255]) + 0.5 * entropy / math.log(256),
        "colourfulness_raw": colourfulness,
        "colourfulness": min(colourfulness, 1),
        "contrast_raw": contrast,
        "contrast": min(contrast / 0.8, 1),
        "brightness": grey.mean() / 255,
        "colour_variance": np.mean([(c / 255).var() for c in (red, green, blue)]),
    }
    if sharpness is not None:
        measures |= {"sharpness_raw": sharpness, "sharpness": min(sharpness / 1000, 1)}
    return measures


@settings(max_examples=40, deadline=None)
@given(PHOTOS)
def test_measures_equal_their_formulae(rgb: NDArray[np.uint8]) -> None:
    measures = measure_quality(rgb)
    assert tuple(measures) == QUALITY
    for key, value in reference(rgb).items():
        assert measures[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


def test_extreme_images() -> None:
    black = measure_quality(np.zeros((9, 9, 3), np.uint8))
    assert black == dict.fromkeys(QUALITY, 0.0)
    board = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    measures = measure_quality(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    # Every neighbour has the other colour: the Laplacian is ±4 · 255.
    assert measures["sharpness_raw"] == pytest.approx(1020**2)
    assert measures["sharpness"] == measures["contrast"] == 1
    assert measures["contrast_raw"] == pytest.approx(1)
    assert measures["exposure"] == pytest.approx(0.5 * math.log(2) / math.log(256))
    assert measures["colourfulness"] == 0
    assert measures["colour_variance"] == pytest.approx(0.25)


def test_blur_lowers_sharpness() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    values = [laplacian_variance(ndimage.gaussian_filter(noise, sigma)) for sigma in (0, 0.5, 1, 2)]
    assert values == sorted(values, reverse=True)


def test_the_feature_is_logarithmic_in_unbounded_measures() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    measures, feature = measure_quality(rgb), quality_vector(rgb)
    assert feature.dtype == np.float32
    assert feature[QUALITY.index("sharpness_raw")] == pytest.approx(
        math.log(1 + measures["sharpness_raw"])
    )
    assert feature[QUALITY.index("brightness")] == pytest.approx(measures["brightness"])


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros(0)])
def test_invalid_arrays(wrong: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="is not a photo"):
        measure_quality(wrong)  # type: ignore[arg-type]
