from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research.compression.selection import covering
from research.data.block_samples import BlockCrop
from research.data.crops import CentreCrop
from research.data.loader import SampleKey
from research.data.readers import BitstreamReader
from tests.conftest import evaluated, prepared, run

Compose = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
STORED = (
    "compression=block_stem",
    "compression.source=bitstream",
    "compression.window=3",
    "dataset.stored_size=64",
)


def test_crops_are_squares_of_the_whole_image(small: Compose) -> None:
    config = small(*STORED)
    data = prepared(config)
    files = data.splits["train"].files
    shipped = covering(data.coefficients.selection)
    reader = BitstreamReader(64, shipped)
    samples = data.dataset("train", seed=5, train=True, device=CPU)
    seen = set()
    for epoch in (1, 2):
        batch = samples.__getitems__([SampleKey(epoch, i) for i in range(24)])
        for position, file in enumerate(files):
            y, cbcr = reader.read(file, CentreCrop(1.0), np.random.default_rng(0)).arrays
            fits = [
                (top, left)
                for top in range(3)
                for left in range(3)
                if np.array_equal(
                    batch.inputs.y[position], y[2 * top : 2 * top + 4, 2 * left : 2 * left + 4]
                )
                and np.array_equal(
                    batch.inputs.cbcr[position], cbcr[:, top : top + 2, left : left + 2]
                )
            ]
            assert fits
            seen.add((epoch, *fits[0]))
    assert len(seen) > 12
    centred = data.dataset("train", seed=5, train=False, device=CPU).__getitems__([SampleKey(0, 7)])
    read = data.read([files[7]])
    assert torch.equal(centred.inputs.y, read.inputs.y)
    assert torch.equal(centred.inputs.cbcr, read.inputs.cbcr)
    assert read.inputs.y.shape == (1, 4, 4, 9)


def test_corners_cover_all_positions_and_depend_on_seed_and_epoch() -> None:
    crop = BlockCrop(64, 32)
    corners = crop.corners(0, 1, 500)
    assert set(map(tuple, corners.tolist())) == set(itertools.product(range(3), repeat=2))
    assert np.array_equal(corners, crop.corners(0, 1, 500))
    assert not np.array_equal(corners, crop.corners(1, 1, 500))
    assert not np.array_equal(corners, crop.corners(0, 2, 500))
    assert crop.middle == 1
    assert not BlockCrop(64, 64).corners(0, 1, 9).any()


def test_the_shipped_order_does_not_change_the_input(small: Compose) -> None:
    """Cropped from stored images or read as selected, the model gets the same channels."""
    plain = small(*STORED[:3], "dataset.random_crop=false", "dataset.crop_pct=1.0")
    stored = small(*STORED[:3], "dataset.stored_size=32", "dataset.random_crop=false")
    seen = []
    for config in (plain, stored):
        data = prepared(config)
        batch = data.dataset("val", seed=0, train=False, device=CPU).__getitems__(
            [SampleKey(0, i) for i in range(4)]
        )
        seen.append(data.transform().eval()(batch, None).inputs)
    assert torch.equal(seen[0].y, seen[1].y)
    assert torch.equal(seen[0].cbcr, seen[1].cbcr)


def test_it_trains_and_evaluates(small: Compose, tmp_path: Path) -> None:
    folder = run(small(*STORED))
    result = evaluated(folder, "val", "last")
    assert result.metrics == result.logged


def test_damage_leaves_the_batch(small: Compose, folders: Path) -> None:
    victims = sorted((folders / "train").rglob("*.jpg"))[:8]
    for path in victims:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    data = prepared(small(*STORED))
    samples = data.dataset("train", seed=0, train=True, device=CPU)
    batch = samples.__getitems__([SampleKey(1, index) for index in range(12)])
    assert batch.skipped == {"left_out/truncated": 8}
    assert batch.index.tolist() == [8, 9, 10, 11]
    assert len(batch.inputs.y) == len(batch.labels) == 4
    empty = samples.__getitems__([SampleKey(1, index) for index in range(8)])
    assert len(empty) == 0
    assert empty.inputs.y.shape == (0, 4, 4, 9)
