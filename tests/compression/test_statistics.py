from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.fft import dctn

from research.compression import statistics
from research.compression.blocks import Blocks
from research.compression.selection import ALL_FREQUENCIES, ZIGZAG, Selection
from research.compression.statistics import Statistics
from research.data.crops import CentreCrop
from research.data.readers import PixelReader
from research.data.transforms import EPSILON, CoefficientTransform
from tests.conftest import prepared, user_error

Compose = Callable[..., dict[str, Any]]


def batches() -> list[Blocks]:
    """Three batches of unequal length; each frequency has its own mean and std."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, 65).float()
    result = []
    for count in (3, 1, 2):
        y = torch.randn(count, 64, 4, 4, generator=generator) * scale[:, None, None] + 500
        cbcr = torch.randn(count, 2, 64, 2, 2, generator=generator) - 3 * scale[:, None, None]
        result.append(Blocks(y, cbcr))
    return result


def test_mean_and_std_equal_those_of_numpy() -> None:
    result = statistics.measure(batches(), ALL_FREQUENCIES)
    y = np.concatenate([b.y.numpy() for b in batches()]).astype(np.float64)
    cbcr = np.concatenate([b.cbcr.numpy() for b in batches()]).astype(np.float64)
    np.testing.assert_allclose(result.y_mean, y.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(result.y_std, y.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(result.cbcr_mean, cbcr.mean((0, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(result.cbcr_std, cbcr.std((0, 3, 4)), rtol=1e-5)
    assert result.images == 6
    assert result.y_mean.shape == (64,)
    assert result.cbcr_std.shape == (2, 64)


def test_a_constant_frequency_has_std_zero() -> None:
    result = statistics.measure(
        [Blocks(torch.full((2, 64, 2, 2), 999.7), torch.ones(2, 2, 64, 1, 1))],
        ALL_FREQUENCIES,
    )
    assert result.y_std.max() < 1e-2
    assert not result.y_std.isnan().any()


def test_no_image_is_a_user_error() -> None:
    with user_error("dataset"):
        statistics.measure([], ALL_FREQUENCIES)


def test_measured_once_a_key(tmp_path: Path) -> None:
    calls = []

    def make() -> Statistics:
        calls.append(1)
        return statistics.measure(batches(), ALL_FREQUENCIES)

    first = statistics.cached(tmp_path / "s", {"range": "full", "size": 64}, make)
    again = statistics.cached(tmp_path / "s", {"size": 64, "range": "full"}, make)
    assert len(calls) == 1
    for name in ("y_mean", "y_std", "cbcr_mean", "cbcr_std"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(
            getattr(first, name), getattr(statistics.measure(batches(), ALL_FREQUENCIES), name)
        )
    assert first.images == again.images == 6
    statistics.cached(tmp_path / "s", {"range": "studio", "size": 64}, make)
    assert len(calls) == 2
    stored = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("*.json")]
    assert sorted(entry["key"]["range"] for entry in stored) == ["full", "studio"]


def test_a_failed_measurement_leaves_nothing_behind(tmp_path: Path) -> None:
    with user_error("dataset"):
        statistics.cached(tmp_path, {"a": 1}, lambda: statistics.measure([], ALL_FREQUENCIES))
    result = statistics.cached(
        tmp_path, {"a": 1}, lambda: statistics.measure(batches(), ALL_FREQUENCIES)
    )
    assert result.images == 6


def studio_dct(pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Slow reference, one RGB image [3, H, W]: studio planes, then scipy block by block."""
    red, green, blue = pixels.astype(np.float64)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [(blue - y) / 1.772, (red - y) / 1.402]
    chroma = [c.reshape(c.shape[0] // 2, 2, -1, 2).mean((1, 3)) * 224 / 255 for c in chroma]
    return blockwise(y * 219 / 255 + 16 - 128), np.stack([blockwise(c) for c in chroma])


def blockwise(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, W] to [blocks, 64]."""
    rows, cols = plane.shape[0] // 8, plane.shape[1] // 8
    cut = plane.reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3)
    return dctn(cut, axes=(2, 3), norm="ortho").reshape(-1, 64)


def test_a_run_is_normalised_by_the_numbers_of_its_training_images(small: Compose) -> None:
    config = small("compression.range=studio", "compression.order=zigzag", "compression.window=2")
    data = prepared(config)
    transform = data.transform()
    assert isinstance(transform, CoefficientTransform)
    crop = CentreCrop(config["dataset"]["crop_pct"])
    reader, rng = PixelReader(32), np.random.default_rng(0)
    files = data.splits["train"].files
    pairs = [studio_dct(reader.read(file, crop, rng).arrays[0]) for file in files]  # type: ignore[arg-type]
    y = np.concatenate([luma for luma, _ in pairs])
    cbcr = np.concatenate([chroma for _, chroma in pairs], axis=1)
    frequencies = list(ZIGZAG[:4])
    expected = {
        "y_mean": y.mean(0)[frequencies],
        "y_std": y.std(0)[frequencies] + EPSILON,
        "cbcr_mean": cbcr.mean(1)[:, frequencies],
        "cbcr_std": cbcr.std(1)[:, frequencies] + EPSILON,
    }
    for name, values in expected.items():
        result = getattr(transform, name).squeeze((-1, -2)).numpy()
        np.testing.assert_allclose(result, values, atol=2e-3, err_msg=name)


def test_another_run_on_the_same_data_measures_nothing(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    original = statistics.measure

    def watch(batches: Iterator[Blocks], which: Selection) -> Statistics:
        measured.append(1)
        return original(batches, which)

    monkeypatch.setattr(statistics, "measure", watch)

    def transform(*overrides: str) -> Any:
        config = small(*overrides)
        return prepared(config).transform()

    wide = transform("compression.window=8")
    narrow = transform("compression.window=2", "compression=luma_fusion")
    assert len(measured) == 1
    assert torch.equal(narrow.y_mean, wide.y_mean[[0, 1, 8, 9]])
    for count, override in enumerate(
        [
            "compression.range=full",
            "compression.source=bitstream",
            "dataset.image_size=48",
            "dataset.crop_pct=1.0",
            "compression.statistics_images=8",
            "dataset.max_train_images=20",
        ],
        start=2,
    ):
        transform(override)
        assert len(measured) == count, override


def test_reconstruction_measures_nothing(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "measure", None)
    config = small("compression=reconstruction")
    transform: Any = prepared(config).transform()
    assert not transform.y_mean.any()
    assert (transform.cbcr_std == 1).all()
