"""The offline demo data set: rendered scenes in real JPEG files, in the image-folder layout.

The classes differ in shape and texture alone. Colours, brightness, polarity (light on dark or
dark on light), position, rotation, scale and background are drawn independently of the class, so
that a linear classifier on colours has little to learn from. Structures are at least about 1/16 of
the short side, and no class is the mirror image of another: classes can still be told apart after
flips, random resized crops and without the high frequencies of every 8×8 block.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from research.demos.render_once import render_once
from research.utils.errors import UserError
from research.utils.progress import track

VERSION = 1  # increase it whenever the rendered files change
SPLITS = ("train", "val")
MANIFEST = "scenes.json"
TILT = 0.3  # radians

Field = NDArray[np.float64]
"""A number per pixel, [H, W]. Lengths are in units of the image's short side; as the outline of
a figure: the approximate signed distance to its edge, positive inside."""


# Shapes: signed distance in the frame of the figure, whose outer radius is 1.


def _crescent(x: Field, y: Field) -> Field:
    return np.minimum(1 - np.hypot(x, y), np.hypot(x - 0.55, y) - 0.75)


def _cross(x: Field, y: Field) -> Field:
    across, along = np.abs(x), np.abs(y)
    bar = np.minimum(0.27 - across, 0.95 - along)
    return np.maximum(bar, np.minimum(0.27 - along, 0.95 - across))


def _ring(x: Field, y: Field) -> Field:
    return 0.24 - np.abs(np.hypot(x, y) - 0.76)


def _star(x: Field, y: Field) -> Field:
    fifth = 2 * np.pi / 5
    turn = np.abs(np.mod(np.arctan2(x, -y), fifth) - fifth / 2)  # 0 in a notch, fifth / 2 at a tip
    u, v, r = np.cos(fifth / 2 - turn), np.sin(fifth / 2 - turn), np.hypot(x, y)
    notch_u, notch_v = 0.42 * np.cos(fifth / 2), 0.42 * np.sin(fifth / 2)
    edge = np.hypot(1 - notch_u, notch_v)
    return ((1 - r * u) * notch_v - r * v * (1 - notch_u)) / edge


def _triangle(x: Field, y: Field) -> Field:
    sides = [y * np.cos(a) + x * np.sin(a) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return 0.5 - np.maximum.reduce(sides)


def _scatter(shape: Callable[[Field, Field], Field], rng: Generator, x: Field, y: Field) -> Field:
    """One large figure near the centre and up to three smaller ones that do not touch it."""
    placed: list[tuple[float, float, float]] = []
    outline = np.full_like(x, -1.0)
    for attempt in range(1 + rng.integers(2, 7)):
        radius = rng.uniform(0.3, 0.42) if attempt == 0 else rng.uniform(0.16, 0.22)
        away = rng.uniform(0.0, 0.1) if attempt == 0 else rng.uniform(0.45, 0.75)
        bearing = rng.uniform(0, 2 * np.pi)
        cx, cy = away * np.cos(bearing), away * np.sin(bearing)
        if any(np.hypot(cx - px, cy - py) < radius + pr for px, py, pr in placed):
            continue
        placed.append((cx, cy, radius))
        u, v = _turn((x - cx) / radius, (y - cy) / radius, rng.uniform(-TILT, TILT))
        outline = np.maximum(outline, shape(u, v) * radius)
    return outline


# Textures: they fill the frame.


def _bands(phase: Field, period: float | Field, share: float = 0.5) -> Field:
    """Bands at whole numbers of ``phase``, ``share`` of a period wide."""
    return (share / 2 - np.abs(phase - np.rint(phase))) * period


def _bricks(rng: Generator, x: Field, y: Field) -> Field:
    height, joint = rng.uniform(0.19, 0.28), rng.uniform(0.055, 0.075)
    length = height * rng.uniform(1.7, 2.2)
    row = y / height + rng.uniform()
    column = x / length + rng.uniform() + 0.5 * np.mod(np.floor(row), 2)
    to_rows, to_columns = height * np.mod(row, 1), length * np.mod(column, 1)
    inside = np.minimum(
        np.minimum(to_rows, height - to_rows), np.minimum(to_columns, length - to_columns)
    )
    return inside - joint / 2


def _checks(rng: Generator, x: Field, y: Field) -> Field:
    period = rng.uniform(0.26, 0.42)
    across, along = (_bands(c / period + rng.uniform(), period) for c in (x, y))
    return np.minimum(np.abs(across), np.abs(along)) * np.sign(across * along)


def _rays(rng: Generator, x: Field, y: Field) -> Field:
    cx, cy = rng.uniform(-0.15, 0.15, 2)
    count, r = int(rng.integers(7, 12)), np.hypot(x - cx, y - cy)
    phase = np.arctan2(y - cy, x - cx) * count / (2 * np.pi) + rng.uniform()
    return _bands(phase, 2 * np.pi * r / count)


def _ripples(rng: Generator, x: Field, y: Field) -> Field:
    cx, cy = rng.uniform(-0.15, 0.15, 2)
    period = rng.uniform(0.15, 0.24)
    return _bands(np.hypot(x - cx, y - cy) / period + rng.uniform(), period)


def _spots(rng: Generator, x: Field, y: Field) -> Field:
    period = rng.uniform(0.2, 0.32)
    row = y / period + rng.uniform()
    column = x / period + rng.uniform() + 0.5 * np.mod(np.rint(row), 2)
    return period * (
        rng.uniform(0.28, 0.36) - np.hypot(row - np.rint(row), column - np.rint(column))
    )


def _stripes(rng: Generator, x: Field, y: Field) -> Field:
    period = rng.uniform(0.14, 0.26)
    return _bands(x / period + rng.uniform(), period, rng.uniform(0.4, 0.6))


def _waves(rng: Generator, x: Field, y: Field) -> Field:
    period, length = rng.uniform(0.17, 0.26), rng.uniform(0.35, 0.5)
    swing = length * rng.uniform(0.2, 0.26)
    shifted = x + swing * np.sin(2 * np.pi * (y / length + rng.uniform()))
    return _bands(shifted / period + rng.uniform(), period)


_SCENES: dict[str, Callable[[Generator, Field, Field], Field]] = {
    "bricks": _bricks,
    "checks": _checks,
    "crescents": partial(_scatter, _crescent),
    "crosses": partial(_scatter, _cross),
    "rays": _rays,
    "rings": partial(_scatter, _ring),
    "ripples": _ripples,
    "spots": _spots,
    "stars": partial(_scatter, _star),
    "stripes": _stripes,
    "triangles": partial(_scatter, _triangle),
    "waves": _waves,
}
CLASSES: tuple[str, ...] = tuple(_SCENES)
"""The class names, sorted: a class's index is its place in the image folder."""


def _turn(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _light(rng: Generator, x: Field, y: Field, strength: float) -> Field:
    """A linear gradient in a random direction and a broad soft spot, each within ±strength."""
    along, _ = _turn(x, y, rng.uniform(0, 2 * np.pi))
    cx, cy = rng.uniform(-0.5, 0.5, 2)
    spot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.02, 0.2))
    return rng.uniform(-strength, strength) * along + rng.uniform(-strength, strength) * spot


def _paint(rng: Generator, name: str) -> Image.Image:
    """One scene of class ``name``: YCbCr, 72 to 200 pixels a side, or now and then grey."""
    short = int(rng.integers(72, 151))
    height, width = rng.permutation([short, min(200, int(short * rng.uniform(1.0, 1.5)))])
    rows, columns = np.mgrid[:height, :width] + 0.5
    x, y = (columns - width / 2) / short, (rows - height / 2) / short
    outline = _SCENES[name](rng, *_turn(x, y, rng.uniform(-TILT, TILT)))
    cover = np.clip(outline * short + 0.5, 0, 1)
    dome = np.clip(outline * 12, 0, 1) - 0.5  # darker rims (or lighter) make figures look round
    middle, half_contrast = rng.uniform(95, 160), rng.choice([-1, 1]) * rng.uniform(35, 65)
    tones = [middle + half_contrast * np.array([-1, 1]), *(128 + rng.uniform(-45, 45, (2, 2)))]
    grain = rng.uniform(0, 4)
    planes = []
    for (ground_tone, figure_tone), strength in zip(tones, (22, 12, 12), strict=True):
        ground = ground_tone + sum(_light(rng, x, y, strength) for _ in range(2))
        figure = figure_tone + _light(rng, x, y, strength / 2) + strength * dome / 2
        plane = ground + (figure - ground) * cover + rng.normal(0, grain, x.shape)
        planes.append(Image.fromarray(np.clip(np.rint(plane), 0, 255).astype(np.uint8)))
    return planes[0] if rng.uniform() < 0.08 else Image.merge("YCbCr", planes)


def _write(path: Path, key: tuple[int, int, int, int], name: str) -> None:
    rng = np.random.default_rng(key)
    image = _paint(rng, name)
    image.save(
        path,
        "JPEG",
        quality=int(rng.integers(60, 96)),
        subsampling=int(rng.integers(0, 3)),  # 4:4:4, 4:2:2, 4:2:0
        progressive=bool(rng.uniform() < 0.2),
    )


def _is_ours(root: Path) -> bool:
    """True if nothing but demo scenes, whole or half-made, lies in ``root``."""
    files = (path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    return all(file == Path(MANIFEST) or _is_scene(file) for file in files)


def _is_scene(file: Path) -> bool:
    """Whether a path relative to the root is one of ``render_scenes``."""
    split, name = (*file.parts, "", "")[:2]
    known = split in SPLITS and name in CLASSES and len(file.parts) == 3
    return known and re.fullmatch(r"\d{5,}\.jpg", file.name) is not None


def render_scenes(root: Path, train_images: int, val_images: int, seed: int) -> Path:
    """Make sure that the demo data set lies in ``root``; render it if it does not.

    The files are ``root/train/CLASS/00000.jpg`` and ``root/val/CLASS/00000.jpg``: 72 to 200 pixels
    a side, quality 60 to 95, 4:4:4, 4:2:2, 4:2:0 or grey, baseline or progressive. Each depends on
    (seed, split, class, index) alone, so a larger set starts with the files of a smaller one. The
    classes of a split are balanced to within one image.

    ``root/scenes.json`` says what the folder holds. A folder without it, or made by another recipe,
    seed or count, is replaced; processes that ask at the same time wait for the first.

    Args:
        root: folder of the data set; may not exist yet.
        train_images: images over all classes, at least ``len(CLASSES)``.
        val_images: the same for the validation split.
        seed: non-negative; train and val draw from separate streams.

    Returns:
        ``root``.

    Raises:
        UserError: too few images, a negative seed, or a ``root`` that holds something else.
    """
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    if min(counts.values()) < len(CLASSES):
        raise UserError(
            "dataset.demo",
            f"the demo has {len(CLASSES)} classes: ask for at least {len(CLASSES)} train and val "
            f"images, not {train_images} and {val_images}",
        )
    if seed < 0:
        raise UserError("dataset.demo", f"the seed of the demo scenes is {seed}: give 0 or more")
    manifest = {"recipe": VERSION, "seed": seed, "classes": list(CLASSES), **counts}
    make = partial(_render, counts=counts, seed=seed)
    return render_once(root, "dataset.demo.root", MANIFEST, manifest, _is_ours, make)


def _render(root: Path, counts: dict[str, int], seed: int) -> None:
    for split, name in itertools.product(counts, CLASSES):
        (root / split / name).mkdir(parents=True)
    images = [(split, number) for split, count in counts.items() for number in range(count)]
    for split, number in track(images, "rendering demo scenes"):
        index, label = divmod(number, len(CLASSES))
        name = CLASSES[label]
        key = (seed, SPLITS.index(split), label, index)
        _write(root / split / name / f"{index:05d}.jpg", key, name)


@dataclass(frozen=True)
class Scenes:
    """The demo scenes as a data set's configuration names them; see ``render_scenes``."""

    root: str
    train_images: int
    val_images: int
    seed: int
    classes: ClassVar[tuple[str, ...]] = CLASSES

    def render(self) -> Path:
        """Render them, unless they are there; returns ``root``."""
        return render_scenes(Path(self.root), self.train_images, self.val_images, self.seed)
