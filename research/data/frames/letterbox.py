"""Letterboxing: resizes whole images into a square, and maps boxes to it and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Boxes = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Letterbox:
    """Position of an image in a square canvas: as large as fits, centred, padded with black.

    Width and height on the canvas are rounded to whole pixels separately. Boxes are mapped with
    the rounded size: the common scale would shift them by up to one source pixel per canvas pixel.

    Attributes:
        scale: canvas pixels per source pixel, before rounding.
        pad_x: black columns on the left.
        pad_y: black rows on top.
        width: width of the image on the canvas in pixels.
        height: height of the image on the canvas in pixels.
        size: side of the canvas in pixels.
        source_width: width of the source image in pixels.
        source_height: height of the source image in pixels.
    """

    scale: float
    pad_x: int
    pad_y: int
    width: int
    height: int
    size: int
    source_width: int
    source_height: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> Self:
        """The letterbox of a ``height`` × ``width`` image in a ``size`` × ``size`` canvas."""
        scale = min(size / width, size / height)
        new_width, new_height = (max(1, int(side * scale + 0.5)) for side in (width, height))
        return cls(
            scale=scale,
            pad_x=(size - new_width) // 2,
            pad_y=(size - new_height) // 2,
            width=new_width,
            height=new_height,
            size=size,
            source_width=width,
            source_height=height,
        )

    def image(self, pixels: Image.Image) -> NDArray[np.uint8]:
        """The canvas, uint8 [size, size, 3]; resized with PIL's antialiased bilinear filter.

        Args:
            pixels: RGB image of the source size.
        """
        canvas = Image.new("RGB", (self.size, self.size))
        resized = pixels.resize((self.width, self.height), Image.Resampling.BILINEAR)
        canvas.paste(resized, (self.pad_x, self.pad_y))
        return np.array(canvas)

    def boxes(self, boxes: Boxes) -> Boxes:
        """Map boxes to the canvas.

        Args:
            boxes: [N, 4] xyxy, fractions of the source image.

        Returns:
            [N, 4] xyxy, fractions of the canvas, clipped to it.
        """
        mapped = (boxes * self._extent() + self._offset()) / self.size
        return np.clip(mapped, 0, 1).astype(boxes.dtype)

    def inverse(self, boxes: Boxes) -> Boxes:
        """Map boxes back to the source image; the inverse of ``boxes``.

        Args:
            boxes: [N, 4] xyxy, fractions of the canvas.

        Returns:
            [N, 4] xyxy in pixels of the source image, clipped to it.
        """
        fractions = (boxes * self.size - self._offset()) / self._extent()
        return np.clip(fractions * self.sides, 0, self.sides).astype(boxes.dtype)

    @property
    def sides(self) -> NDArray[np.float64]:
        """[4] width, height, width, height of the source image in pixels."""
        return np.array([self.source_width, self.source_height] * 2, dtype=np.float64)

    def _extent(self) -> NDArray[np.float64]:
        return np.array([self.width, self.height] * 2, dtype=np.float64)

    def _offset(self) -> NDArray[np.float64]:
        return np.array([self.pad_x, self.pad_y] * 2, dtype=np.float64)
