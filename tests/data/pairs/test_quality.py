from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, stats

from research.data.pairs.quality import QUALITY, measures, sharpness_of, vector

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


def slow(rgb: NDArray[np.uint8]) -> dict[str, float]:
    """The formulae as they are written, in double precision, a histogram bin at a time."""
    red, green, blue = rgb.astype(np.int64).transpose(2, 0, 1)
    grey = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.float64)
    shares = np.array([(grey == level).mean() for level in range(256)])
    entropy = stats.entropy(shares)
    rg, yb = red - green, (red + green) / 2 - blue
    colourfulness = (
        np.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    ) / 100
    # scipy's "mirror" leaves the edge itself out, as OpenCV's default border does.
    sharpness = ndimage.laplace(grey, mode="mirror").var() if min(grey.shape) > 1 else None
    contrast = grey.std() / grey.mean() if grey.any() else 0.0
    found = {
        "exposure": 0.5 * (1 - shares[0] - shares[255]) + 0.5 * entropy / math.log(256),
        "colourfulness_raw": colourfulness,
        "colourfulness": min(colourfulness, 1),
        "contrast_raw": contrast,
        "contrast": min(contrast / 0.8, 1),
        "brightness": grey.mean() / 255,
        "colour_variance": np.mean([(c / 255).var() for c in (red, green, blue)]),
    }
    if sharpness is not None:
        found |= {"sharpness_raw": sharpness, "sharpness": min(sharpness / 1000, 1)}
    return found


@settings(max_examples=40, deadline=None)
@given(PHOTOS)
def test_the_measures_are_their_formulae(rgb: NDArray[np.uint8]) -> None:
    found = measures(rgb)
    assert tuple(found) == QUALITY
    for key, value in slow(rgb).items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


def test_extremes_are_known() -> None:
    black = measures(np.zeros((9, 9, 3), np.uint8))
    assert black == dict.fromkeys(QUALITY, 0.0)
    board = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    found = measures(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    # Every neighbour is of the other colour: the Laplacian is 4 · 255 either way.
    assert found["sharpness_raw"] == pytest.approx(1020**2)
    assert found["sharpness"] == found["contrast"] == 1
    assert found["contrast_raw"] == pytest.approx(1)
    assert found["exposure"] == pytest.approx(0.5 * math.log(2) / math.log(256))
    assert found["colourfulness"] == 0
    assert found["colour_variance"] == pytest.approx(0.25)


def test_blur_lowers_sharpness() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    values = [sharpness_of(ndimage.gaussian_filter(noise, sigma)) for sigma in (0, 0.5, 1, 2)]
    assert values == sorted(values, reverse=True)


def test_the_feature_takes_the_logarithm_of_what_has_a_long_tail() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    found, feature = measures(rgb), vector(rgb)
    assert feature.dtype == np.float32
    assert feature[QUALITY.index("sharpness_raw")] == pytest.approx(
        math.log(1 + found["sharpness_raw"])
    )
    assert feature[QUALITY.index("brightness")] == pytest.approx(found["brightness"])


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros(0)])
def test_what_is_no_photo_is_refused(wrong: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="is no photo"):
        measures(wrong)  # type: ignore[arg-type]
