"""The demo's photo series: one scene taken a few times, with the errors that photographers make.

Each photo has errors of some of four kinds: it is blurred, noisy, too dark or too bright, or its
subject is cut off by the frame. The sum of what they cost is its quality, and a pair's preference
the logistic of the difference of qualities. Blur is one error among four, so that the sharper photo
is often, not always, the better one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from research.data.index import ProgressCallback
from research.data.once import create_once
from research.data.pairs.lists import LISTS, series_name
from research.utils.errors import UserError

RECIPE: Final = 1  # raise it whenever the rendered files would change
RECORD: Final = "photo_demo.json"
FOLDER: Final = "train_val"
PHOTOS: Final = "train_val/train_val_imgs"
HELD_OUT: Final = 5
"""Every so many-th series is in the list of validation."""
SIZES: Final = ((256, 192), (192, 256), (256, 171), (240, 240))
"""Width and height of the photos of a series, in turn."""
COSTS: Final = (2.3, 2.2, 2.4, 1.8)
"""Of the worst blur, noise, exposure and composition, in units of the logistic."""
LUMA: Final = (0.299, 0.587, 0.114)
CLOSEST: Final = 0.2
"""Least difference of quality in a series: nobody could tell less."""

Plane = NDArray[np.float32]


class Errors(NamedTuple):
    """Of one photo, each 0…1 but exposure, which is -1 (dark) … 1 (bright)."""

    blur: float
    noise: float
    exposure: float
    composition: float

    @property
    def quality(self) -> float:
        """0 for a photo without errors, less for all others."""
        return -float(np.abs(self) @ np.array(COSTS))


@dataclass(frozen=True)
class PhotoDemo:
    """Demo photos as a data set's configuration names them.

    Attributes:
        root: folder of the photos; may not exist yet.
        series: how many, at least 10; a series has 2 to 5 photos.
        seed: non-negative.
    """

    root: str
    series: int
    seed: int

    def render(self, progress: ProgressCallback | None = None) -> Path:
        """Make sure that the photos and their pair lists lie in ``root``.

        A series depends on (seed, its number) alone, so that more series begin with the files of
        fewer. Other demo photos in ``root`` are replaced, anything else is left alone.

        Returns:
            ``root``.

        Raises:
            UserError: too few series, a negative seed, or a ``root`` of something else.
        """
        if self.series < 2 * HELD_OUT or self.seed < 0:
            raise UserError(
                "dataset.demo",
                f"demo photos: {self.series} series, seed {self.seed}",
                f"give at least {2 * HELD_OUT} series and a seed of 0 or more",
            )
        record = {"recipe": RECIPE, "seed": self.seed, "series": self.series}
        make = partial(self._make, progress=progress)
        return create_once(Path(self.root), "dataset.root", RECORD, record, _is_ours, make)

    def _make(self, root: Path, progress: ProgressCallback | None) -> None:
        (root / PHOTOS).mkdir(parents=True)
        lists: dict[str, list[str]] = {split: [] for split in LISTS}
        for number in range(1, self.series + 1):
            rng = np.random.default_rng((self.seed, number))
            errors = draw_errors(rng, int(rng.integers(2, 6)))
            scene = Scene(rng, *SIZES[number % len(SIZES)])
            for photo, wrong in enumerate(errors, 1):
                file = root / PHOTOS / f"{series_name(number)}-{photo:02d}.JPG"
                Image.fromarray(scene.photo(wrong)).save(file, quality=92, subsampling=0)
            split = "val" if number % HELD_OUT == 0 else "train"
            lists[split].extend(_rows(number, [wrong.quality for wrong in errors]))
            if progress is not None:
                progress("rendering demo photos", number, self.series)
        for split, rows in lists.items():
            (root / FOLDER / LISTS[split]).write_text("".join(rows))


def draw_errors(rng: Generator, count: int) -> list[Errors]:
    """The errors of a series' photos, whose qualities differ by ``CLOSEST`` or more."""
    found: list[Errors] = []
    while len(found) < count:
        kinds = rng.permutation(len(COSTS))[: int(rng.integers(1, 3))]
        sizes = np.zeros(len(COSTS))
        sizes[kinds] = rng.uniform(0, 1, len(kinds))
        sizes[2] *= rng.choice((-1, 1))
        errors = Errors(*sizes.tolist())
        if all(abs(errors.quality - other.quality) >= CLOSEST for other in found):
            found.append(errors)
    return found


class Scene:
    """What a series shows: a subject with fine stripes before a hazy, textured ground.

    Args:
        rng: what it is drawn from.
        width: of the photos in pixels.
        height: of the photos in pixels.
    """

    def __init__(self, rng: Generator, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = width, height
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        side = np.float32(min(width, height))
        self.x, self.y = (columns - width / 2) / side, (rows - height / 2) / side
        self.ground = self._ground()
        self.place = rng.uniform(-0.05, 0.05, 2)
        self.radius = rng.uniform(0.28, 0.32)
        self.angle, self.pitch = rng.uniform(0, np.pi), rng.uniform(0.115, 0.125)
        self.round = bool(rng.random() < 0.5)
        self.away = rng.uniform(0, 2 * np.pi)

    def photo(self, errors: Errors) -> NDArray[np.uint8]:
        """[H, W, 3] with these errors."""
        reach = np.array([self.width, self.height]) / min(self.width, self.height)
        way = np.array([np.cos(self.away), np.sin(self.away)]) * reach
        pixels = self._with_subject(
            self.place + (0.25 * (errors.composition > 0) + 0.5 * errors.composition) * way
        )
        if errors.blur:
            # Light that is out of focus, over an image that is sharp: its share decides.
            share = np.float32(1 - np.sqrt(1 - 0.95 * errors.blur))
            pixels += share * (gaussian_filter(pixels, (3, 3, 0)) - pixels)
        if errors.exposure:
            # The root: a little too much light ruins little, so that it is shown, too.
            pixels += np.float32(0.46 * np.sign(errors.exposure) * abs(errors.exposure) ** 0.6)
        if errors.noise:
            pixels = pixels + errors.noise * self._noise()
        return np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)

    def _ground(self) -> Plane:
        """Two hazy colours with fine grain, in the middle of the range."""
        rng = self.rng
        tones = [0.5 + 0.05 * (_colour(rng.uniform()) - 0.5) for _ in range(2)]
        share = 1 / (1 + np.exp(-(self.y - rng.uniform(-0.15, 0.15)) * 40))[..., None]
        grain = gaussian_filter(rng.normal(0, 1, self.x.shape), 0.8)
        clouds = gaussian_filter(rng.normal(0, 1, self.x.shape), 14)
        shade = 0.035 * grain / grain.std() + 0.12 * clouds / clouds.std()
        return np.asarray(tones[0] + (tones[1] - tones[0]) * share + shade[..., None], np.float32)

    def _with_subject(self, place: NDArray[np.float64]) -> Plane:
        u, v = self.x - place[0], self.y - place[1]
        far = np.hypot(u, v) if self.round else np.maximum(np.abs(u), np.abs(v)) * 1.12
        cover = np.clip((self.radius - far) * min(self.width, self.height) + 0.5, 0, 1)[..., None]
        along = u * np.cos(self.angle) + v * np.sin(self.angle)
        stripes = (
            0.5
            + 0.45
            * np.sin(2 * np.pi * along * self.pitch * min(self.width, self.height))[..., None]
        )
        return np.asarray(self.ground + (stripes - self.ground) * cover, np.float32)

    def _noise(self) -> Plane:
        """Blotches of colour, as bright as what is below them."""
        blotches = gaussian_filter(self.rng.normal(0, 1, (*self.x.shape, 3)), (1.3, 1.3, 0))
        blotches -= (blotches @ LUMA)[..., None]
        grain = self.rng.normal(0, 0.01, self.x.shape)[..., None]
        return np.asarray(0.2 * blotches / blotches.std() + grain, np.float32)


def _colour(hue: float) -> NDArray[np.float64]:
    """RGB 0…1 of a hue 0…1."""
    return np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)


def _rows(number: int, qualities: list[float]) -> list[str]:
    """Lines of a pair list: every pair of a series."""
    ranks = 1 + np.argsort(np.argsort(-np.array(qualities)))
    return [
        f"{number} {one + 1} {two + 1} "
        f"{1 / (1 + np.exp(qualities[two] - qualities[one])):.2f} {ranks[one]} {ranks[two]}\n"
        for one, two in combinations(range(len(qualities)), 2)
    ]


def _is_ours(root: Path) -> bool:
    """True if ``root`` has our record, and no other files than it tells of."""
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
