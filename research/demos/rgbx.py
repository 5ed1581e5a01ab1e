"""Rendered RGB + thermal + event frames of a road for the demo data set.

Each object (pedestrian or vehicle) is visible in one sensor only: in the colours, in the thermal
channel, or in the event channel, a third of the objects each. Every sensor also has distractors:
posts, bushes and lane marks in the colours, blurred warm spots, and scratches of events. Day and
night change the colours and the temperature of the scene. Every eighth sequence is empty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from research.data.frames.frame import BoxXYXY
from research.data.rgbx.arrays import COLOURS
from research.data.rgbx.layout import DESCRIPTION
from research.demos.render_once import render_once
from research.utils.errors import UserError
from research.utils.progress import track

VERSION = 1  # increase it whenever the rendered files change
RECORD = "rgbx_demo.json"
CLASSES = ("pedestrian", "vehicle")
CHANNELS = (*COLOURS, "thermal", "event")
SEQUENCE_FRAMES = 6
MIN_IMAGES = 2 * SEQUENCE_FRAMES + 1
"""Images of three sequences: one each for training, validation and testing."""
EMPTY_EVERY = 8
"""Every eighth sequence is empty."""
MIN_SIZE = 64
SENSORS = 3
HEIGHTS = (0.75, 0.8, 0.7)
"""Heights of the frames of a sequence, in turn, as fractions of their width."""
PAINT = ((235, 60, 50), (240, 200, 40), (60, 110, 240), (245, 130, 30), (60, 220, 220))
"""Colours of the objects that are visible in the colours."""

Plane = NDArray[np.float32]
"""[H, W] or [H, W, C], 0…255."""


@dataclass(frozen=True)
class RgbxDemo:
    """Demo frames with YOLO labels.

    Attributes:
        root: folder of the frames; may not exist yet.
        images: number of images, at least 13; a sequence has 6.
        seed: seed of the scenes, non-negative.
        size: width of the frames in pixels, ±10 %; at least 64.
    """

    root: str
    images: int
    seed: int
    size: int
    classes: ClassVar[tuple[str, ...]] = CLASSES

    def render(self) -> Path:
        """Render ``images/*.npy`` and ``labels/*.txt`` into ``root``, unless they exist.

        A sequence is a function of (seed, its number, ``size``): a set with more images starts with
        the files of a smaller set. Demo frames with other settings are replaced, other files are
        never touched.

        Returns:
            ``root``.

        Raises:
            UserError: for too few or too small images, a negative seed, or a ``root`` with other
                files.
        """
        minimums = {"images": MIN_IMAGES, "seed": 0, "size": MIN_SIZE}
        for key, minimum in minimums.items():
            if (value := getattr(self, key)) < minimum:
                raise UserError(
                    f"dataset.demo.{key}",
                    f"dataset.demo.{key}={value}: must be at least {minimum}",
                )
        record = {"recipe": VERSION, "seed": self.seed, "images": self.images, "size": self.size}
        return render_once(Path(self.root), "dataset.root", RECORD, record, _is_ours, self._make)

    def _make(self, root: Path) -> None:
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        firsts = range(0, self.images, SEQUENCE_FRAMES)
        for first in track(firsts, "rendering demo frames", unit="sequences"):
            number = first // SEQUENCE_FRAMES
            scene = RoadScene((self.seed, number), number, self.size)
            for index in range(min(SEQUENCE_FRAMES, self.images - first)):
                pixels, objects = scene.frame(index)
                name = f"seq{number:03d}_{index:02d}"
                np.save(root / "images" / f"{name}.npy", pixels)
                rows = [_yolo_row(label, box) for label, _, box in objects]
                (root / "labels" / f"{name}.txt").write_text("".join(rows))
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        (root / DESCRIPTION).write_text(json.dumps({"channels": CHANNELS}) + "\n")


class RoadScene:
    """The scene of a sequence: background, light, and moving objects.

    Args:
        key: seed of its random number generator.
        number: number of the sequence.
        size: approximate width of the frames in pixels.
    """

    def __init__(self, key: tuple[int, int], number: int, size: int) -> None:
        self.rng = rng = np.random.default_rng(key)
        self.width = round(size * rng.uniform(0.9, 1.1) / 4) * 4
        self.height = round(self.width * HEIGHTS[number % len(HEIGHTS)])
        self.rows, self.columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        self.night = bool(rng.random() < 0.5)
        self.colours, self.heat = self._background()
        # Event sensors measure ratios: the background is as faint by night as by day.
        edges = np.hypot(*np.gradient(self.colours.mean(-1))).astype(np.float32)
        self.events = edges * (0.75 if self.night else 0.15)
        count = 0 if number % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(2, 5))
        self.objects: list[MovingObject] = []
        for _ in range(20 * count):  # rejects candidates that touch other objects
            sensor = (number + len(self.objects)) % SENSORS
            candidate = MovingObject(rng, self.width, self.height, sensor)
            if len(self.objects) < count and not any(map(candidate.touches, self.objects)):
                self.objects.append(candidate)

    def frame(self, index: int) -> tuple[NDArray[np.uint8], list[tuple[int, int, BoxXYXY]]]:
        """A frame of the sequence.

        Returns:
            [H, W, 5] pixels, and (class, sensor, box) of every object.
        """
        rng = self.rng
        colours, heat, events = self.colours.copy(), self.heat.copy(), self.events.copy()
        self._scratch(events)
        objects = []
        for item in self.objects:
            cover, inner = item.cover(self.columns, self.rows, index)
            if item.sensor == 0:
                paint = np.array(PAINT[item.tone], np.float32) * (0.75 if self.night else 1)
                painted = paint * (1 - 0.7 * inner[..., None])
                colours += (painted - colours) * cover[..., None]
            elif item.sensor == 1:
                heat += (235 - 50 * inner - heat) * cover
            else:
                fired = 60 + 70 * (rng.random(cover.shape, np.float32) < 0.35) + 40 * inner
                events += (fired - events) * cover
                events += (245 - events) * (4 * cover * (1 - cover) + _rim(cover)).clip(0, 1)
            objects.append((item.label, item.sensor, item.box(cover)))
        planes = np.concatenate([colours, heat[..., None], events[..., None]], -1)
        noise = rng.normal(0, 1, planes.shape).astype(np.float32) * (5, 5, 5, 4, 3)
        return np.clip(planes + noise, 0, 255).astype(np.uint8), objects

    def _background(self) -> tuple[Plane, Plane]:
        """Colours [H, W, 3] and temperature [H, W] of the road with distractors."""
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
        for _ in range(rng.integers(3, 7)):  # bushes, and warm spots
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
        """A Gaussian at a random position, [H, W], 0…1."""
        rng = self.rng
        x, y = rng.uniform(0, self.width), rng.uniform(0.2, 1) * self.height
        width, height = rng.uniform(0.04, 0.12, 2) * self.width
        distance = np.square((self.columns - x) / width) + np.square((self.rows - y) / height)
        return np.asarray(np.exp(-distance), np.float32)

    def _scratch(self, events: Plane) -> None:
        """Add noise of the event sensor in place: single pixels, and short lines."""
        rng = self.rng
        events[rng.random(events.shape, np.float32) < 0.012] = 150
        for _ in range(rng.integers(3, 9)):
            length, angle = rng.uniform(5, 16), rng.uniform(0, np.pi)
            along = np.linspace(0, length, 24)
            columns = (rng.uniform(0, self.width) + along * np.cos(angle)).astype(int)
            rows = (rng.uniform(0, self.height) + along * np.sin(angle)).astype(int)
            inside = (columns < self.width) & (columns >= 0) & (rows < self.height)
            events[rows[inside], columns[inside]] = 200


class MovingObject:
    """An object that moves along a straight line within the frame.

    Args:
        rng: random number generator.
        width: width of the frames in pixels.
        height: height of the frames in pixels.
        sensor: the sensor in which it is visible: 0 colours, 1 thermal, 2 event.
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

    def centre(self, index: int) -> NDArray[np.float64]:
        """(x, y) in pixels in a frame of the sequence."""
        return np.asarray(self.start + (self.end - self.start) * index / (SEQUENCE_FRAMES - 1))

    def touches(self, other: MovingObject) -> bool:
        """Whether the two come within 3 pixels of each other in any frame."""
        reach = (self.extent + other.extent) / 2 + 3
        return any(
            (np.abs(self.centre(index) - other.centre(index)) < reach).all()
            for index in range(SEQUENCE_FRAMES)
        )

    def cover(self, columns: Plane, rows: Plane, index: int) -> tuple[Plane, Plane]:
        """Fraction of each pixel covered by the object, and by its details; [H, W] each, 0…1."""
        x, y = self.centre(index)
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
        """Box around the pixels that are covered by half or more."""
        height, width = cover.shape
        rows, columns = np.nonzero(cover >= 0.5)
        edges = columns.min() / width, rows.min() / height
        return (*edges, (columns.max() + 1) / width, (rows.max() + 1) / height)


def _filled(distance: Plane, radius: float) -> Plane:
    """Antialiased interior of a shape, 0…1.

    Args:
        distance: signed distance from its edge, negative inside, in units of ``radius`` pixels.
        radius: pixels.
    """
    return np.clip(0.5 - distance * np.float32(radius), 0, 1)


def _rim(cover: Plane) -> Plane:
    """The pixels just inside a shape."""
    padded = np.pad(cover, 1)
    least = np.minimum.reduce(
        [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    )
    return np.asarray(((cover >= 0.5) & (least < 0.5)).astype(np.float32))


def _cloud(rng: Generator, height: int, width: int) -> Plane:
    """Smooth noise [H, W], about -1…1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (6, 8)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _yolo_row(label: int, box: BoxXYXY) -> str:
    x0, y0, x1, y1 = box
    return f"{label} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"


def _is_ours(root: Path) -> bool:
    """True if ``root`` contains a record and demo frames only."""
    try:
        images = int(json.loads((root / RECORD).read_text())["images"])
    except (OSError, ValueError, TypeError, KeyError):
        return False
    names = {f"seq{n // SEQUENCE_FRAMES:03d}_{n % SEQUENCE_FRAMES:02d}" for n in range(images)}
    expected = {
        Path(RECORD),
        Path("classes.txt"),
        Path(DESCRIPTION),
        *(Path("images", f"{name}.npy") for name in names),
        *(Path("labels", f"{name}.txt") for name in names),
    }
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()} <= expected
