from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from research.batch import ClassificationBatch
from research.data import folder as folder_module
from research.data.baseline import linear_top1
from research.data.loader import EpochLoader, SampleKey
from tests.conftest import prepared

Compose = Callable[..., dict[str, Any]]


class Colours:
    """Noisy images of one colour a class; the labels may be shuffled."""

    skipped: dict[str, int] = {}  # noqa: RUF012 - never written

    def __init__(self, count: int, seed: int, *, shuffled: bool, std: float = 20) -> None:
        rng = np.random.default_rng(seed)
        colours = np.array([[190, 70, 70], [70, 190, 70], [70, 70, 190], [150, 150, 60]])
        labels = np.arange(count) % 4
        noise = rng.normal(0, std, (count, 3, 32, 32))
        images = (colours[labels][:, :, None, None] + noise).clip(0, 255)
        self.images = torch.from_numpy(images.astype(np.uint8))
        self.labels = torch.from_numpy(rng.permutation(labels) if shuffled else labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        index = torch.tensor([key.index for key in keys])
        return ClassificationBatch(index, self.images[index], self.labels[index])


def top1(train: Colours, val: Colours) -> float:
    loaders = (EpochLoader(split, 16, seed=0, train=False) for split in (train, val))
    return linear_top1(*loaders)


def test_separable_colours_are_classified() -> None:
    train, val = Colours(64, 0, shuffled=False), Colours(40, 1, shuffled=False)
    assert top1(train, val) == 1.0


def test_shuffled_labels_stay_near_chance() -> None:
    train, val = Colours(120, 0, shuffled=True), Colours(400, 1, shuffled=True)
    # Chance is 0.25 with std 0.022; the best of five penalties is a little above.
    assert 0.15 < top1(train, val) < 0.35


def test_the_position_of_brightness_is_a_feature() -> None:
    # The same mean colour everywhere: only the DC coefficients differ between left and right.
    def split(seed: int) -> Colours:
        data = Colours(48, seed, shuffled=False)
        ramp = torch.linspace(40, 200, 32).expand(3, 32, 32)
        noise = torch.randint(
            -9, 10, (48, 3, 32, 32), generator=torch.Generator().manual_seed(seed)
        )
        for number in range(48):
            image = ramp if number % 2 else ramp.flip(-1)
            data.images[number] = (image + noise[number]).to(torch.uint8)
        data.labels = torch.arange(48) % 2
        return data

    assert top1(split(0), split(1)) == 1.0


def test_of_a_composed_data_set_it_is_fitted_once(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in (("train", 6), ("val", 4)):
        for label, colour in enumerate(((200, 60, 60), (60, 60, 200))):
            folder = tmp_path / "colours" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                tint = tuple(value + 5 * number for value in colour)
                Image.new("RGB", (40, 50), tint).save(folder / f"{number}.jpg")
    config = small(
        f"dataset.train_dirs=[{tmp_path / 'colours' / 'train'}]",
        f"dataset.val_dir={tmp_path / 'colours' / 'val'}",
        "compression.source=bitstream",
        "dataset.linear_baseline=true",
    )
    expected = "top1 1.0000 (n=8 images), a linear classifier on mean colour and DC values"
    assert prepared(config).baseline() == expected
    monkeypatch.setattr(folder_module, "linear_top1", lambda *loaders: 0.5)
    assert prepared(config).baseline() == expected
    first = tmp_path / "colours" / "val" / "class0" / "0.jpg"
    Image.new("RGB", (40, 50), (0, 255, 0)).save(first)
    assert prepared(config).baseline() == expected.replace("1.0000", "0.5000")
