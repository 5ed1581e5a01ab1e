"""Data that tests make for themselves, and a run small enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from research.config import compose_config, resolved

CLASSES = ("bars", "field", "spots")


def picture(kind: str, seed: int, size: tuple[int, int] = (56, 48)) -> Image.Image:
    """A noisy picture (width, height) of one of ``CLASSES``."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6)
    pattern = {
        "bars": np.sin(x / 2.5 + phase),
        "field": np.zeros((height, width)),
        "spots": np.sin(x / 2 + phase) * np.sin(y / 2 + phase),
    }[kind]
    colour = rng.uniform(60, 190, 3)
    pixels = colour + 50 * pattern[..., None] + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folders(root: Path, images: int, *, seed: int = 0, suffix: str = ".jpg") -> Path:
    """``root/CLASS/N.jpg`` with ``images`` a class, of mixed sizes and chroma samplings."""
    for label, kind in enumerate(CLASSES):
        folder = root / kind
        folder.mkdir(parents=True)
        for number in range(images):
            size = (40 + 8 * (number % 4), 40 + 5 * (number % 3))
            image = picture(kind, 1000 * seed + 100 * label + number, size)
            options = {"quality": 90, "subsampling": number % 3} if suffix == ".jpg" else {}
            image.save(folder / f"{number:03d}{suffix}", **options)
    return root


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A tree with ``train`` (24 images) and ``val`` (12 images) of three classes."""
    make_folders(tmp_path / "data" / "train", 8)
    make_folders(tmp_path / "data" / "val", 4, seed=1)
    return tmp_path / "data"


@pytest.fixture
def small(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Composes a run of seconds on ``folders``, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)

    def compose(*overrides: str) -> dict[str, Any]:
        return resolved(compose_config([*SMALL, *data_overrides(folders), *overrides])[0])

    return compose


SMALL = (
    "dataset=imagefolder",
    "model.name=resnet18",
    "dataset.image_size=32",
    "dataset.batch_size=8",
    "epochs=1",
    "device=cpu",
    "logging=csv",
    "optimizer.lr=0.02",
)


def data_overrides(folders: Path) -> list[str]:
    return [
        f"dataset.train_dirs=[{folders / 'train'}]",
        f"dataset.val_dir={folders / 'val'}",
        f"dataset.cache_dir={folders.parent / 'cache'}",
    ]


def run(config: dict[str, Any], name: str = "test") -> Path:
    """Train as ``train.py`` does; returns the run folder."""
    from research import runs, session

    folder, last = session.open_folder(config, name)
    with runs.occupied(folder):
        session.train(config, name, [], folder, last)
    return folder
