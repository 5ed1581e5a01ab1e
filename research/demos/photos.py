"""Rendered photo series for the demo data set: photos of one scene with different defects.

Each photo has one or two of four defects: blur, noise, wrong exposure, or a subject that is cut off
by the frame. The quality of a photo is minus the weighted sum of its defects, and the preference of
a pair is the logistic function of the difference in quality. Blur is one defect of four, so the
sharper photo is often, but not always, the better one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from research.data.pairs.lists import LISTS, series_name
from research.demos.render_once import render_once
from research.utils.errors import UserError
from research.utils.progress import track

VERSION: Final = 1  # increase it whenever the rendered files change
RECORD: Final = "photo_demo.json"
FOLDER: Final = "train_val"
PHOTOS: Final = "train_val/train_val_imgs"
VAL_EVERY: Final = 5
"""Every fifth series is in the validation list."""
SIZES: Final = ((256, 192), (192, 256), (256, 171), (240, 240))
"""Width and height of the photos of a series, in turn."""
WEIGHTS: Final = (2.3, 2.2, 2.4, 1.8)
"""Weights of blur, noise, exposure and composition, in units of the logistic function."""
LUMA: Final = (0.299, 0.587, 0.114)
MIN_DIFFERENCE: Final = 0.2
"""Smallest difference in quality within a series."""

Plane = NDArray[np.float32]


class Defects(NamedTuple):
    """Defects of a photo in 0…1; exposure is in -1 (dark) … 1 (bright)."""

    blur: float
    noise: float
    exposure: float
    composition: float

    @property
    def quality(self) -> float:
        """0 for a photo without defects, negative for all others."""
        return -float(np.abs(self) @ np.array(WEIGHTS))


@dataclass(frozen=True)
class PhotoDemo:
    """Demo photos with pair lists, in the layout of PhotoTriage.

    Attributes:
        root: folder of the photos; may not exist yet.
        series: number of series, at least 10; a series has 2 to 5 photos.
        seed: seed of the scenes, non-negative.
    """

    root: str
    series: int
    seed: int
    classes: ClassVar[tuple[str, ...]] = ()

    def render(self) -> Path:
        """Render the photos and their pair lists into ``root``, unless they exist.

        A series is a function of (seed, its number): a set with more series starts with the files
        of a smaller set. Demo photos with other settings are replaced, other files are never
        touched.

        Returns:
            ``root``.

        Raises:
            UserError: for too few series, a negative seed, or a ``root`` with other files.
        """
        for key, value, minimum in (("series", self.series, 2 * VAL_EVERY), ("seed", self.seed, 0)):
            if value < minimum:
                raise UserError(
                    f"dataset.demo.{key}",
                    f"dataset.demo.{key}={value}: must be at least {minimum}",
                )
        record = {"recipe": VERSION, "seed": self.seed, "series": self.series}
        return render_once(Path(self.root), "dataset.root", RECORD, record, _is_ours, self._make)

    def _make(self, root: Path) -> None:
        (root / PHOTOS).mkdir(parents=True)
        lists: dict[str, list[str]] = {split: [] for split in LISTS}
        numbers = range(1, self.series + 1)
        for number in track(numbers, "rendering demo photos", unit="series"):
            rng = np.random.default_rng((self.seed, number))
            defects = draw_defects(rng, int(rng.integers(2, 6)))
            scene = PhotoScene(rng, *SIZES[number % len(SIZES)])
            for photo, defect in enumerate(defects, 1):
                file = root / PHOTOS / f"{series_name(number)}-{photo:02d}.JPG"
                Image.fromarray(scene.photo(defect)).save(file, quality=92, subsampling=0)
            split = "val" if number % VAL_EVERY == 0 else "train"
            lists[split].extend(_pair_rows(number, [defect.quality for defect in defects]))
        for split, rows in lists.items():
            (root / FOLDER / LISTS[split]).write_text("".join(rows))


def draw_defects(rng: Generator, count: int) -> list[Defects]:
    """Defects of the photos of a series, whose qualities differ by at least ``MIN_DIFFERENCE``."""
    defects: list[Defects] = []
    while len(defects) < count:
        kinds = rng.permutation(len(WEIGHTS))[: int(rng.integers(1, 3))]
        sizes = np.zeros(len(WEIGHTS))
        sizes[kinds] = rng.uniform(0, 1, len(kinds))
        sizes[2] *= rng.choice((-1, 1))
        candidate = Defects(*sizes.tolist())
        if all(abs(candidate.quality - d.quality) >= MIN_DIFFERENCE for d in defects):
            defects.append(candidate)
    return defects


class PhotoScene:
    """The scene of a series: a subject with fine stripes on a hazy, textured background.

    Args:
        rng: random number generator.
        width: width of the photos in pixels.
        height: height of the photos in pixels.
    """

    def __init__(self, rng: Generator, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = width, height
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        side = np.float32(min(width, height))
        self.x, self.y = (columns - width / 2) / side, (rows - height / 2) / side
        self.background = self._background()
        self.centre = rng.uniform(-0.05, 0.05, 2)
        self.radius = rng.uniform(0.28, 0.32)
        self.angle, self.pitch = rng.uniform(0, np.pi), rng.uniform(0.115, 0.125)
        self.round = bool(rng.random() < 0.5)
        self.direction = rng.uniform(0, 2 * np.pi)  # of a subject that is cut off

    def photo(self, defects: Defects) -> NDArray[np.uint8]:
        """The photo [H, W, 3] with these defects."""
        extent = np.array([self.width, self.height]) / min(self.width, self.height)
        offset = np.array([np.cos(self.direction), np.sin(self.direction)]) * extent
        pixels = self._with_subject(
            self.centre + (0.25 * (defects.composition > 0) + 0.5 * defects.composition) * offset
        )
        if defects.blur:
            # A weighted sum of a blurred and the sharp image.
            fraction = np.float32(1 - np.sqrt(1 - 0.95 * defects.blur))
            pixels += fraction * (_blurred(pixels, (3, 3, 0)) - pixels)
        if defects.exposure:
            # The power makes small exposure errors visible.
            pixels += np.float32(0.46 * np.sign(defects.exposure) * abs(defects.exposure) ** 0.6)
        if defects.noise:
            pixels = pixels + defects.noise * self._noise()
        return np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)

    def _background(self) -> Plane:
        """Two hazy colours with fine grain, of medium brightness."""
        rng = self.rng
        tones = [0.5 + 0.05 * (_colour(rng.uniform()) - 0.5) for _ in range(2)]
        blend = 1 / (1 + np.exp(-(self.y - rng.uniform(-0.15, 0.15)) * 40))[..., None]
        grain = _blurred(rng.normal(0, 1, self.x.shape), 0.8)
        clouds = _blurred(rng.normal(0, 1, self.x.shape), 14)
        shade = 0.035 * grain / grain.std() + 0.12 * clouds / clouds.std()
        return np.asarray(tones[0] + (tones[1] - tones[0]) * blend + shade[..., None], np.float32)

    def _with_subject(self, centre: NDArray[np.float64]) -> Plane:
        u, v = self.x - centre[0], self.y - centre[1]
        distance = np.hypot(u, v) if self.round else np.maximum(np.abs(u), np.abs(v)) * 1.12
        cover = np.clip((self.radius - distance) * min(self.width, self.height) + 0.5, 0, 1)[
            ..., None
        ]
        along = u * np.cos(self.angle) + v * np.sin(self.angle)
        stripes = (
            0.5
            + 0.45
            * np.sin(2 * np.pi * along * self.pitch * min(self.width, self.height))[..., None]
        )
        return np.asarray(self.background + (stripes - self.background) * cover, np.float32)

    def _noise(self) -> Plane:
        """Colour noise that leaves the luma unchanged, and a little grey noise."""
        blotches = _blurred(self.rng.normal(0, 1, (*self.x.shape, 3)), (1.3, 1.3, 0))
        blotches -= (blotches @ LUMA)[..., None]
        grain = self.rng.normal(0, 0.01, self.x.shape)[..., None]
        return np.asarray(0.2 * blotches / blotches.std() + grain, np.float32)


def _blurred(values: NDArray[Any], sigma: float | tuple[float, ...]) -> NDArray[Any]:
    from scipy.ndimage import gaussian_filter

    blurred: NDArray[Any] = gaussian_filter(values, sigma)
    return blurred


def _colour(hue: float) -> NDArray[np.float64]:
    """RGB in 0…1 of a hue in 0…1."""
    return np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)


def _pair_rows(number: int, qualities: list[float]) -> list[str]:
    """Rows of a pair list: every pair of a series."""
    ranks = 1 + np.argsort(np.argsort(-np.array(qualities)))
    return [
        f"{number} {one + 1} {two + 1} "
        f"{1 / (1 + np.exp(qualities[two] - qualities[one])):.2f} {ranks[one]} {ranks[two]}\n"
        for one, two in combinations(range(len(qualities)), 2)
    ]


def _is_ours(root: Path) -> bool:
    """True if ``root`` contains a record and demo photos only."""
    try:
        series = int(json.loads((root / RECORD).read_text())["series"])
    except (OSError, ValueError, TypeError, KeyError):
        return False
    names = {series_name(number) for number in range(1, series + 1)}
    expected = {Path(RECORD), *(Path(FOLDER, name) for name in LISTS.values())}
    for path in root.rglob("*"):
        file = path.relative_to(root)
        photo = file.parent == Path(PHOTOS) and file.name.partition("-")[0] in names
        if path.is_file() and not photo and file not in expected:
            return False
    return True
