"""The demo's RGB + thermal + event frames: a road on which each sensor sees what others do not.

An object, a pedestrian or a vehicle, is seen by one sensor alone: as paint in the colours, by its
warmth, or by the events that it fires; a third of them each. What is no object is there in every
sensor too: posts, bushes and lane marks, warm spots without outline, scratches of events. By day
and by night, which alters colours and warmth of the scene. Every eighth sequence is empty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from research.data.frames.frame import BoxXYXY
from research.data.index import ProgressCallback
from research.data.once import create_once
from research.data.rgbx.arrays import COLOURS
from research.data.rgbx.layout import DESCRIPTION
from research.utils.errors import UserError

RECIPE = 1  # raise it whenever the rendered files would change
RECORD = "rgbx_demo.json"
CLASSES = ("pedestrian", "vehicle")
CHANNELS = (*COLOURS, "thermal", "event")
LENGTH = 6
"""Frames of a sequence."""
LEAST = 2 * LENGTH + 1
"""Images of three sequences: one for training, one for validation, one for testing."""
EMPTY = 8
"""Every so many-th sequence is empty."""
SENSORS = 3
HEIGHTS = (0.75, 0.8, 0.7)
"""Of the frames, in turn, as shares of their width."""
PAINT = ((235, 60, 50), (240, 200, 40), (60, 110, 240), (245, 130, 30), (60, 220, 220))
"""Colours of what the colours see."""

Plane = NDArray[np.float32]
"""[H, W], 0…255, or of more channels."""


@dataclass(frozen=True)
class RgbxDemo:
    """Demo frames as a data set's configuration names them.

    Attributes:
        root: folder of the frames; may not exist yet.
        images: how many, at least 13; a sequence has 6.
        seed: non-negative.
        size: width of the frames in pixels, at least 64, give or take a tenth.
    """

    root: str
    images: int
    seed: int
    size: int

    def render(self, progress: ProgressCallback | None = None) -> Path:
        """Make sure that ``images/*.npy``, ``labels/*.txt`` and their records lie in ``root``.

        A sequence depends on (seed, its number, ``size``) alone, so that more images begin with
        the files of fewer. Other demo frames in ``root`` are replaced, anything else is left alone.

        Returns:
            ``root``.

        Raises:
            UserError: too few or too small images, a negative seed, or a ``root`` of something
                else.
        """
        if self.images < LEAST or self.size < 64 or self.seed < 0:
            raise UserError(
                "dataset.demo",
                f"demo frames: {self.images} images of {self.size} pixels, seed {self.seed}",
                f"give at least {LEAST} images, 64 pixels, and a seed of 0 or more",
            )
        record = {"recipe": RECIPE, "seed": self.seed, "images": self.images, "size": self.size}
        make = partial(self._make, progress=progress)
        return create_once(Path(self.root), "dataset.root", RECORD, record, _is_ours, make)

    def _make(self, root: Path, progress: ProgressCallback | None) -> None:
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        for first in range(0, self.images, LENGTH):
            number = first // LENGTH
            scene = Scene((self.seed, number), number, self.size)
            for moment in range(min(LENGTH, self.images - first)):
                pixels, objects = scene.frame(moment)
                name = f"seq{number:03d}_{moment:02d}"
                np.save(root / "images" / f"{name}.npy", pixels)
                rows = [_row(label, box) for label, _, box in objects]
                (root / "labels" / f"{name}.txt").write_text("".join(rows))
            if progress is not None:
                progress("rendering demo frames", min(first + LENGTH, self.images), self.images)
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        (root / DESCRIPTION).write_text(json.dumps({"channels": CHANNELS}) + "\n")


class Scene:
    """A sequence: a place, its light, and what moves through it.

    Args:
        key: what it is drawn from.
        number: of the sequence, which decides what every so many-th one has.
        size: about its width in pixels.
    """

    def __init__(self, key: tuple[int, int], number: int, size: int) -> None:
        self.rng = rng = np.random.default_rng(key)
        self.width = round(size * rng.uniform(0.9, 1.1) / 4) * 4
        self.height = round(self.width * HEIGHTS[number % len(HEIGHTS)])
        self.rows, self.columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        self.night = bool(rng.random() < 0.5)
        self.colours, self.heat = self._place()
        # The event sensor tells of ratios, so that the place is as faint by night as by day.
        steps = np.hypot(*np.gradient(self.colours.mean(-1))).astype(np.float32)
        self.events = steps * (0.75 if self.night else 0.15)
        count = 0 if number % EMPTY == EMPTY - 1 else int(rng.integers(2, 5))
        self.movers: list[Mover] = []
        for _ in range(20 * count):  # a place that no other passes is looked for
            mover = Mover(rng, self.width, self.height, (number + len(self.movers)) % SENSORS)
            if len(self.movers) < count and not any(map(mover.meets, self.movers)):
                self.movers.append(mover)

    def frame(self, moment: int) -> tuple[NDArray[np.uint8], list[tuple[int, int, BoxXYXY]]]:
        """What the sensors see at a moment.

        Returns:
            [H, W, 5] pixels, and (class, sensor, box) of every object.
        """
        rng = self.rng
        colours, heat, events = self.colours.copy(), self.heat.copy(), self.events.copy()
        self._scratch(events)
        objects = []
        for mover in self.movers:
            cover, inner = mover.cover(self.columns, self.rows, moment)
            if mover.sensor == 0:
                paint = np.array(PAINT[mover.tone], np.float32) * (0.75 if self.night else 1)
                painted = paint * (1 - 0.7 * inner[..., None])
                colours += (painted - colours) * cover[..., None]
            elif mover.sensor == 1:
                heat += (235 - 50 * inner - heat) * cover
            else:
                fired = 60 + 70 * (rng.random(cover.shape, np.float32) < 0.35) + 40 * inner
                events += (fired - events) * cover
                events += (245 - events) * (4 * cover * (1 - cover) + _rim(cover)).clip(0, 1)
            objects.append((mover.label, mover.sensor, mover.box(cover)))
        planes = np.concatenate([colours, heat[..., None], events[..., None]], -1)
        noise = rng.normal(0, 1, planes.shape).astype(np.float32) * (5, 5, 5, 4, 3)
        return np.clip(planes + noise, 0, 255).astype(np.uint8), objects

    def _place(self) -> tuple[Plane, Plane]:
        """Colours [H, W, 3] and warmth [H, W] of the road and what stands about."""
        rng, x, y = self.rng, self.columns / self.width, self.rows / self.height
        horizon, bend = rng.uniform(0.2, 0.4), rng.uniform(0.3, 0.7)
        depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
        sky, ground, road = (np.array(c) for c in ((150, 165, 180), (105, 110, 85), (95, 95, 98)))
        across = np.abs(x - bend) / (0.05 + 0.55 * depth)
        on_road = ((across < 1) & (depth > 0))[..., None]
        colours = np.where(y[..., None] < horizon, sky, np.where(on_road, road, ground))
        dashes = (across < 0.06) & (np.sin(18 * np.sqrt(depth)) > 0) & (depth > 0)
        colours = np.where(dashes[..., None], 175, colours).astype(np.float32)
        heat = 70 + 35 * depth + 15 * on_road[..., 0] - 25 * (y < horizon)
        heat = heat.astype(np.float32) - (20 if self.night else 0)
        for _ in range(rng.integers(3, 7)):  # bushes without outline, warm spots without one
            grey = rng.uniform(60, 150) + rng.uniform(-12, 12, 3)
            colours += (grey - colours) * (0.8 * self._spot())[..., None]
            heat += rng.uniform(20, 60) * self._spot()
        for _ in range(rng.integers(1, 4)):  # posts
            post = np.abs(x - rng.uniform()) < 0.008
            colours[post & (y > horizon * 0.6) & (y < rng.uniform(0.5, 0.9))] = rng.uniform(50, 140)
        colours *= 1 + 0.1 * _cloud(rng, self.height, self.width)[..., None]
        heat *= 1 + 0.08 * _cloud(rng, self.height, self.width)
        light = rng.uniform(0.25, 0.4) if self.night else rng.uniform(0.8, 1.1)
        return colours * np.float32(light), heat

    def _spot(self) -> Plane:
        rng = self.rng
        x, y = rng.uniform(0, self.width), rng.uniform(0.2, 1) * self.height
        wide, high = rng.uniform(0.04, 0.12, 2) * self.width
        far = np.square((self.columns - x) / wide) + np.square((self.rows - y) / high)
        return np.asarray(np.exp(-far), np.float32)

    def _scratch(self, events: Plane) -> None:
        """Noise of the event sensor: single pixels, and short lines."""
        rng = self.rng
        events[rng.random(events.shape, np.float32) < 0.012] = 150
        for _ in range(rng.integers(3, 9)):
            length, angle = rng.uniform(5, 16), rng.uniform(0, np.pi)
            along = np.linspace(0, length, 24)
            columns = (rng.uniform(0, self.width) + along * np.cos(angle)).astype(int)
            rows = (rng.uniform(0, self.height) + along * np.sin(angle)).astype(int)
            inside = (columns < self.width) & (columns >= 0) & (rows < self.height)
            events[rows[inside], columns[inside]] = 200


class Mover:
    """An object on its straight way, all of it in view.

    Args:
        rng: what it is drawn from.
        width: of the frames in pixels.
        height: of the frames in pixels.
        sensor: that sees it: 0 colours, 1 thermal, 2 event.
    """

    def __init__(self, rng: Generator, width: int, height: int, sensor: int) -> None:
        self.sensor = sensor
        self.label, self.tone = int(rng.integers(len(CLASSES))), int(rng.integers(len(PAINT)))
        longest = rng.uniform(33, 55) / 160 * width
        shape = (rng.uniform(0.45, 0.55), 1) if self.label == 0 else (1, rng.uniform(0.5, 0.62))
        self.extent = longest * np.array(shape)
        room = np.array([width, height]) - self.extent - 2
        ends = np.clip(rng.uniform(0, 1, 2) + rng.uniform(-0.12, 0.12, (2, 2)), 0, 1)
        self.start, self.end = self.extent / 2 + 1 + room * ends

    def centre(self, moment: int) -> NDArray[np.float64]:
        return np.asarray(self.start + (self.end - self.start) * moment / (LENGTH - 1))

    def meets(self, other: Mover) -> bool:
        """Whether the two come within 3 pixels of each other."""
        reach = (self.extent + other.extent) / 2 + 3
        return any(
            (np.abs(self.centre(moment) - other.centre(moment)) < reach).all()
            for moment in range(LENGTH)
        )

    def cover(self, columns: Plane, rows: Plane, moment: int) -> tuple[Plane, Plane]:
        """How much of each pixel is covered by it, and by its inner parts; both [H, W], 0…1."""
        x, y = self.centre(moment)
        half = self.extent / 2
        u, v = (columns + 0.5 - x) / half[0], (rows + 0.5 - y) / half[1]
        if self.label == 0:  # a head on a body
            head = np.hypot(u / 0.55, (v + 0.72) / 0.28) - 1
            body = (np.abs(u) ** 3 + np.abs((v - 0.24) / 0.76) ** 3) ** (1 / 3) - 1
            cover = np.maximum(_filled(head, 0.28 * half[1]), _filled(body, half[0]))
            return cover, _filled(np.maximum(np.abs(u) / 0.12, np.abs(v - 0.75) / 0.3) - 1, 1.5)
        # A cabin on a long body, with a window in it.
        cabin = np.maximum(np.abs(u) / 0.6, np.abs(v + 0.5) / 0.5) - 1
        body = (np.abs(u) ** 4 + np.abs((v - 0.4) / 0.6) ** 4) ** (1 / 4) - 1
        cover = np.maximum(_filled(cabin, half[1] / 2), _filled(body, half[1] / 2))
        return cover, _filled(np.maximum(np.abs(u) / 0.42, np.abs(v + 0.45) / 0.28) - 1, 3.0)

    @staticmethod
    def box(cover: Plane) -> BoxXYXY:
        """Around the pixels that it covers by half or more."""
        height, width = cover.shape
        rows, columns = np.nonzero(cover >= 0.5)
        edges = columns.min() / width, rows.min() / height
        return (*edges, (columns.max() + 1) / width, (rows.max() + 1) / height)


def _filled(beyond: Plane, radius: float) -> Plane:
    """Soft over a pixel where a shape ends; ``beyond`` it, in units of ``radius`` pixels."""
    return np.clip(0.5 - beyond * np.float32(radius), 0, 1)


def _rim(cover: Plane) -> Plane:
    """The pixels just inside a shape."""
    padded = np.pad(cover, 1)
    least = np.minimum.reduce(
        [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    )
    return np.asarray(((cover >= 0.5) & (least < 0.5)).astype(np.float32))


def _cloud(rng: Generator, height: int, width: int) -> Plane:
    """Smooth noise, [H, W], about -1…1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (6, 8)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _row(label: int, box: BoxXYXY) -> str:
    x0, y0, x1, y1 = box
    return f"{label} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"


def _is_ours(root: Path) -> bool:
    """True if ``root`` has our record, and no other files than it tells of."""
    try:
        images = int(json.loads((root / RECORD).read_text())["images"])
    except (OSError, ValueError, TypeError, KeyError):
        return False
    names = {f"seq{n // LENGTH:03d}_{n % LENGTH:02d}" for n in range(images)}
    expected = {
        Path(RECORD),
        Path("classes.txt"),
        Path(DESCRIPTION),
        *(Path("images", f"{name}.npy") for name in names),
        *(Path("labels", f"{name}.txt") for name in names),
    }
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()} <= expected
