"""Demo data: capture runs rendered as a flight through a tunnel of tissue with polyps.

A polyp is recognised by its shape, a lit dome with a dark rim and pits. Colour, brightness, edges
and highlights carry little information: flat patches of the same outlines and colours, folds,
vessels and reflections are not objects; light, tissue and tint differ between runs and drift
within a run. About a fifth of the frames is empty, in sequences. The largest polyp of a frame is
clearly larger than the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from research.data.frames.capture import MANIFEST
from research.data.frames.frame import BoxXYXY
from research.data.frames.run_writer import RunWriter
from research.demos.render_once import render_once
from research.utils.errors import UserError
from research.utils.progress import track

VERSION = 1  # increase it when the rendered files change
RECORD = "captures.json"
SIZES = ((320, 240), (384, 288), (300, 300), (288, 384), (352, 264), (256, 320))
"""Width and height in pixels of the runs; runs cycle through them."""
MAX_OBJECTS = 4
SPAN = 30  # frames per unit of time
STARTED = 1_700_000_000.0  # fixed start time: files must not depend on the current time

Plane = NDArray[np.floating]
"""[H, W] or [H, W, 3]."""


@dataclass(frozen=True)
class CaptureDemo:
    """A set of rendered capture runs.

    Attributes:
        root: folder of the runs; created on first use.
        runs: number of runs, at least 2.
        frames: frames of each run, at least 5.
        seed: non-negative.
    """

    root: str
    runs: int
    frames: int
    seed: int

    def render(self) -> Path:
        """Render the runs into ``root``, unless it contains them already.

        A run is a function of (seed, its number, ``frames``): a set with more runs starts with the
        files of a smaller set. ``root/captures.json`` records the settings; demo runs with other
        settings are replaced, other files are never touched.

        Returns:
            ``root``.

        Raises:
            UserError: for too few runs or frames, a negative seed, or a ``root`` with other files.
        """
        if self.runs < 2 or self.frames < 5 or self.seed < 0:
            raise UserError(
                "dataset.demo",
                f"demo captures: {self.runs} runs of {self.frames} frames, seed {self.seed}",
                "set at least 2 runs, 5 frames, and a seed of 0 or more",
            )
        record = {
            "recipe": VERSION,
            "seed": self.seed,
            "runs": self.runs,
            "frames": self.frames,
        }
        root = Path(self.root)
        return render_once(root, "dataset.demo.root", RECORD, record, _is_ours, self._make)

    def _make(self, root: Path) -> None:
        for number in track(range(self.runs), "rendering demo captures", unit="runs"):
            _write_run(root / f"run_{number + 1:03d}", (self.seed, number), self.frames)


def _is_ours(root: Path) -> bool:
    """True if ``root`` has a record of demo runs, and no other runs or files."""
    try:
        record = json.loads((root / RECORD).read_text())
        runs, frames = int(record["runs"]), int(record["frames"])
    except (OSError, ValueError, TypeError, KeyError):
        return False
    stems = [f"frame_{number:05d}" for number in range(frames)]
    inner = [MANIFEST, *(f"images/{s}.jpg" for s in stems), *(f"labels/{s}.json" for s in stems)]
    expected = {f"run_{number + 1:03d}/{name}" for number in range(runs) for name in inner}
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    return files <= {RECORD, *expected}


def _write_run(folder: Path, key: tuple[int, int], frames: int) -> None:
    rng = np.random.default_rng(key)
    width, height = SIZES[key[1] % len(SIZES)]
    wall = _Wall(rng, width, height)
    polyps, patches = _scenes(rng, width, height, frames)
    quality, subsampling = int(rng.integers(75, 96)), int(rng.integers(0, 3))
    with RunWriter(
        folder, seed=key[0], max_frames=frames, started_at=STARTED + 3600 * key[1]
    ) as run:
        for number in range(frames):
            moment = number / SPAN
            pixels = wall.paint(moment)
            for patch in patches:
                if patch.first <= moment < patch.last:
                    patch.paint(pixels, wall, moment, flat=True)
            boxes = [
                polyp.paint(pixels, wall, moment, flat=False)
                for polyp in polyps
                if polyp.first <= moment < polyp.last
            ]
            wall.add_glints(pixels, rng)
            image = wall.expose(pixels, moment, rng)
            run.add(
                image,
                boxes,
                source="sim_auto",
                suffix=".jpg",
                quality=quality,
                subsampling=subsampling,
            )


class _Wall:
    """The tunnel of a run: tissue, folds and lumen, and the lamp of the camera.

    Lengths are in units of the short side of the image, times in units of ``SPAN`` frames.
    """

    def __init__(self, rng: Generator, width: int, height: int) -> None:
        self.width, self.height, self.short = width, height, min(width, height)
        self.rows, self.columns = (
            axis.astype(np.float32) / self.short for axis in np.mgrid[:height, :width]
        )
        self.half_rows, self.half_columns = self.rows[::2, ::2], self.columns[::2, ::2]
        self.centre = np.array([width, height]) / (2 * self.short)
        self.lumen = _Path(rng, self.centre + rng.uniform(-0.25, 0.25, 2), (0.12, 0.12))
        self.lamp = _Path(rng, self.centre + rng.uniform(-0.2, 0.2, 2), (0.15, 0.15))
        self.lamp_reach, self.gain = rng.uniform(0.45, 0.9), rng.uniform(0.75, 1.15)
        self.ambient = rng.uniform(0.35, 0.55)
        self.depth, self.bore = rng.uniform(0.3, 0.75), rng.uniform(0.1, 0.3)
        self.folds = rng.uniform(1.0, 2.2), rng.uniform(0.1, 0.3), rng.uniform(-1.5, 1.5)
        self.fold_strength, self.lobes = rng.uniform(0.1, 0.3), int(rng.integers(2, 5))
        self.phase = rng.uniform(0, 2 * np.pi, 4)
        self.grain, self.tint = rng.uniform(1, 4), rng.uniform(-0.08, 0.08, 3)
        self.colour = np.array([rng.uniform(150, 215), 0, 0])
        self.colour[1] = self.colour[0] * rng.uniform(0.45, 0.75)
        self.colour[2] = self.colour[1] * rng.uniform(0.65, 1.0)
        self.margin = int(0.25 * self.short)
        self.drift = _Path(rng, np.full(2, 0.125), (0.12, 0.12))
        self.tissue = self._tissue(rng)

    def _tissue(self, rng: Generator) -> Plane:
        """Albedo of the wall, [H, W, 3], larger than the image by a margin."""
        height, width = self.height + self.margin, self.width + self.margin
        mottle = sum(
            (_noise(rng, height, width, cell * self.short) * weight)
            for cell, weight in ((0.3, 0.09), (0.1, 0.05), (0.03, rng.uniform(0.02, 0.06)))
        )
        ridge = np.abs(_noise(rng, height, width, rng.uniform(0.12, 0.25) * self.short))
        vessels = np.clip(1 - ridge / 0.07, 0, 1) * rng.uniform(0.0, 0.3)
        hue = _noise(rng, height, width, 0.35 * self.short) * 0.05
        planes = [
            colour * (1 + mottle + side * hue - depth * vessels)
            for colour, side, depth in zip(self.colour, (1, -1, -0.5), (0.4, 1, 0.9), strict=True)
        ]
        return np.stack(planes, axis=-1).astype(np.float32)

    def paint(self, moment: float) -> Plane:
        """The lit wall, [H, W, 3], in 0…255 and above."""
        x, y = self.lumen.at(moment)
        across, down = self.half_columns - np.float32(x), self.half_rows - np.float32(y)
        squared = across * across + down * down
        angle = np.arctan2(down, across)
        frequency, wobble, speed = self.folds
        turn = np.sin(self.lobes * angle + np.float32(self.phase[0]))
        phase = np.log(squared + np.float32(0.02)) * np.float32(0.5 * frequency)
        phase = 2 * np.pi * (phase + wobble * turn - speed * moment)
        crest = np.exp(5 * (np.cos(phase) - 1)) - np.exp(5 * (np.cos(phase + 0.8) - 1))
        lamp = self.light(self.half_columns, self.half_rows, moment)
        hole = 1 - self.depth * np.exp(-squared / np.float32(self.bore**2))
        light = lamp * hole * (1 + self.fold_strength * crest)
        smooth = Image.fromarray(light.astype(np.float32))
        resized = smooth.resize((self.width, self.height), Image.Resampling.BILINEAR)
        full = np.asarray(resized, dtype=np.float32)
        left, top = (self.drift.at(moment) * self.short).astype(int)
        tissue = self.tissue[top : top + self.height, left : left + self.width]
        return tissue * full[..., None]

    def light(self, x: Plane, y: Plane, moment: float) -> Plane:
        """Brightness of the lamp at points of the wall."""
        lit_x, lit_y = self.lamp.at(moment)
        away = (x - np.float32(lit_x)) ** 2 + (y - np.float32(lit_y)) ** 2
        return (self.ambient + np.exp(-away / np.float32(self.lamp_reach**2))) * self.gain

    def add_glints(self, pixels: Plane, rng: Generator) -> None:
        """Add reflections of the lamp on wet tissue at random points."""
        for _ in range(rng.integers(2, 9)):
            x, y = rng.uniform(0, 1, 2) * 2 * self.centre
            long, flat = rng.uniform(0.008, 0.03), rng.uniform(0.35, 1)
            window = self.window(x, y, 2 * long)
            u, v = _turned(self.columns[window] - x, self.rows[window] - y, rng.uniform(0, np.pi))
            cover = np.clip(2 - 2 * np.hypot(u, v / flat) / long, 0, 1)[..., None]
            pixels[window] += (245 - pixels[window]) * cover

    def expose(self, pixels: Plane, moment: float, rng: Generator) -> Image.Image:
        """Simulate the camera: drifting exposure and white balance, and noise."""
        swing = np.sin(self.phase[1:] + 2 * np.pi * moment * np.array([1.0, 0.7, 0.5]))
        balance = 1 + self.tint + 0.05 * swing + 0.08 * swing[0]
        noise = rng.normal(0, self.grain, (self.height // 2 + 1, self.width // 2 + 1))
        fine: Plane = noise.astype(np.float32).repeat(2, 0).repeat(2, 1)
        exposed = pixels * balance.astype(np.float32)
        exposed += fine[: self.height, : self.width, None]
        return Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8))

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Rows and columns within ``reach`` of a point."""
        edges = np.array([x - reach, x + reach, y - reach, y + reach]) * self.short
        left, right = np.clip([np.floor(edges[0]), np.ceil(edges[1])], 0, self.width).astype(int)
        top, bottom = np.clip([np.floor(edges[2]), np.ceil(edges[3])], 0, self.height).astype(int)
        return slice(top, bottom), slice(left, right)


class _Bump:
    """A polyp, or a flat patch with the outline and colour of one.

    Args:
        rng: random number generator.
        width: width of the image in pixels.
        height: height of the image in pixels.
        size: mean length, as a fraction of the short side.
    """

    def __init__(self, rng: Generator, width: int, height: int, size: float) -> None:
        short = min(width, height)
        span = np.array([width, height]) / short - 0.8 * size
        self.path = _Path(rng, 0.4 * size + span * rng.uniform(0.25, 0.75, 2), tuple(span * 0.45))
        self.low, self.high = np.full(2, 0.4 * size), 0.4 * size + span
        self.size, self.growth = size, rng.uniform(-0.12, 0.12)
        self.flatness, self.angle = rng.uniform(0.74, 1), rng.uniform(0, np.pi)
        self.spin, self.lobes = rng.uniform(-0.5, 0.5), int(rng.integers(2, 6))
        self.lobe, self.lobe_phase = rng.uniform(0, 0.06), rng.uniform(0, 2 * np.pi)
        self.tone = rng.uniform(0.72, 1.08) * (1 + rng.uniform(-0.14, 0.14, 3))
        self.pits, self.pit_phases = rng.uniform(2.2, 3.6), rng.uniform(0, 2 * np.pi, 2).tolist()
        self.pit_strength = rng.uniform(0.15, 0.25)
        self.first, self.last = 0.0, 1.0

    def geometry(self, moment: float) -> tuple[float, float, float]:
        """Centre x, y and length at a time."""
        x, y = np.clip(self.path.at(moment), self.low, self.high)
        return float(x), float(y), self.size * (1 + self.growth * np.sin(np.pi * (2 * moment - 1)))

    def paint(self, pixels: Plane, wall: _Wall, moment: float, flat: bool) -> BoxXYXY:
        """Paint it; returns the box of the pixels that are covered by at least half."""
        x, y, size = self.geometry(moment)
        window = wall.window(x, y, 0.75 * size)
        radius = np.float32(size / 2)
        across, down = wall.columns[window] - np.float32(x), wall.rows[window] - np.float32(y)
        u, v = _turned(across / radius, down / radius, self.angle + self.spin * moment)
        v = v / np.float32(self.flatness)
        outline = 1 + self.lobe * (np.cos(self.lobes * np.arctan2(v, u) + self.lobe_phase) - 1)
        rho = np.hypot(u, v) / outline
        edge = np.float32(0.15 if flat else 1.2 / (wall.short * radius))
        cover = np.clip((1 - rho) / edge + 0.5, 0, 1)
        tone = wall.colour * self.tone
        if not flat:
            towards = wall.lamp.at(moment) - (x, y)
            lean_x, lean_y = (0.55 * towards / max(0.2, np.hypot(*towards))).tolist()
            shade = self._dome(u, v, rho, (lean_x * across + lean_y * down) / radius)
            shadow = np.clip(1.3 - rho, 0, 0.3) * np.float32(1.3)
            pixels[window] *= (1 - shadow * (1 - cover))[..., None]
        else:
            shade = np.ones_like(rho)
        light = wall.light(wall.columns[window], wall.rows[window], moment)
        painted = (light * shade)[..., None] * tone.astype(np.float32)
        # A patch is a semi-transparent stain on the tissue.
        pixels[window] += (painted - pixels[window]) * (cover * (0.6 if flat else 1))[..., None]
        return _extent(cover >= 0.5, window, wall)

    def _dome(self, u: Plane, v: Plane, rho: Plane, lean: Plane) -> Plane:
        """Brightness of a pitted half ellipsoid, mean about 1; ``lean`` is towards the light."""
        rise = np.sqrt(np.clip(1 - rho * rho, 0, 1))
        facing = 0.75 * rise + lean
        waves = np.sin(np.pi * self.pits * u + self.pit_phases[0])
        waves = waves * np.sin(np.pi * self.pits * v + self.pit_phases[1])
        return 0.6 + 0.8 * facing + self.pit_strength * waves * (0.3 + rise)


class _Path:
    """A smooth path around a centre."""

    def __init__(
        self, rng: Generator, middle: NDArray[np.float64], swing: tuple[float, float]
    ) -> None:
        self.middle, self.swing = middle, np.array(swing) * rng.uniform(0.4, 1, 2)
        self.start = rng.uniform(0, 2 * np.pi, 2)
        self.speed = rng.uniform(3, 8, 2) * rng.choice([-1, 1], 2)

    def at(self, moment: float) -> NDArray[np.float64]:
        return np.asarray(self.middle + self.swing * np.sin(self.start + self.speed * moment))


def _scenes(rng: Generator, width: int, height: int, frames: int) -> tuple[list[_Bump], ...]:
    """The polyps and the patches of a run.

    A run is divided into scenes of about ten frames, which end with frames without polyps. A scene
    has one large polyp throughout, and up to three smaller ones for a part of it. Patches are
    also visible in the frames without polyps.
    """
    count, end_of_run = max(1, round(frames / 10)), frames / SPAN
    polyps, patches = [], []
    for first, end in pairwise(np.linspace(0, end_of_run, count + 1).tolist()):
        last = end - (end - first) * rng.uniform(0.15, 0.3)
        main = _Bump(rng, width, height, rng.uniform(0.26, 0.4))
        main.first, main.last = first, last
        polyps.append(main)
        for _ in range(rng.choice(MAX_OBJECTS, p=(0.35, 0.3, 0.2, 0.15))):
            ends = first + (last - first) * np.sort(rng.uniform(0, 1, 2))
            for _ in range(8):  # rejection sampling: polyps should not overlap
                small = _Bump(rng, width, height, rng.uniform(0.165, 0.7 * main.size))
                small.first, small.last = ends.tolist()
                if not any(_touch(small, other) for other in polyps):
                    polyps.append(small)
                    break
        for _ in range(rng.integers(4)):
            patch = _Bump(rng, width, height, rng.uniform(0.14, 0.44))
            patch.first, patch.last = (first + end) / 2, (3 * end - first) / 2
            patches.append(patch)
    return polyps, patches


def _touch(one: _Bump, other: _Bump) -> bool:
    """True if two polyps come close while both are visible."""
    first, last = max(one.first, other.first), min(one.last, other.last)
    for moment in np.arange(first, last, 0.02):
        x0, y0, size0 = one.geometry(moment)
        x1, y1, size1 = other.geometry(moment)
        if np.hypot(x1 - x0, y1 - y0) < 0.55 * (size0 + size1):
            return True
    return False


def _extent(mask: NDArray[np.bool_], window: tuple[slice, slice], wall: _Wall) -> BoxXYXY:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = window[0].start, window[1].start
    return (
        float(left + columns[0]) / wall.width,
        float(top + rows[0]) / wall.height,
        float(left + columns[-1] + 1) / wall.width,
        float(top + rows[-1] + 1) / wall.height,
    )


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _noise(rng: Generator, height: int, width: int, cell: float) -> Plane:
    """Smooth noise [H, W] of standard deviation about 1, with bumps about ``cell`` pixels wide."""
    grid = rng.normal(size=(int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
