"""The letterbox: a whole image in a square, and boxes there and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Boxes = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Letterbox:
    """Where an image of one size lies in a square canvas: as large as fits, centred on black.

    Boxes follow the size that the image really has on the canvas, which is rounded to whole
    pixels on each axis by itself; the common scale would shift them by up to a source pixel a
    canvas pixel.

    Attributes:
        scale: canvas pixels a source pixel, before rounding.
        pad_x: black columns on the left.
        pad_y: black rows on top.
        width: of the image on the canvas, in pixels.
        height: of the image on the canvas, in pixels.
        size: side of the canvas in pixels.
        source_width: of the image itself, in pixels.
        source_height: of the image itself, in pixels.
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
        """The letterbox of an image ``height`` × ``width`` in a ``size`` × ``size`` canvas."""
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
            pixels: RGB, of the source size.
        """
        canvas = Image.new("RGB", (self.size, self.size))
        resized = pixels.resize((self.width, self.height), Image.Resampling.BILINEAR)
        canvas.paste(resized, (self.pad_x, self.pad_y))
        return np.array(canvas)

    def boxes(self, boxes: Boxes) -> Boxes:
        """Boxes on the canvas.

        Args:
            boxes: [N, 4] xyxy as shares of the source image.

        Returns:
            [N, 4] xyxy as shares of the canvas, clipped to it.
        """
        placed = (boxes * self._extent() + self._offset()) / self.size
        return np.clip(placed, 0, 1).astype(boxes.dtype)

    def inverse(self, boxes: Boxes) -> Boxes:
        """Boxes in the source image: the way back of ``boxes``.

        Args:
            boxes: [N, 4] xyxy as shares of the canvas.

        Returns:
            [N, 4] xyxy in pixels of the source image, clipped to it.
        """
        source = np.array([self.source_width, self.source_height] * 2, dtype=np.float64)
        shares = (boxes * self.size - self._offset()) / self._extent()
        return np.clip(shares * source, 0, source).astype(boxes.dtype)

    def _extent(self) -> NDArray[np.float64]:
        return np.array([self.width, self.height] * 2, dtype=np.float64)

    def _offset(self) -> NDArray[np.float64]:
        return np.array([self.pad_x, self.pad_y] * 2, dtype=np.float64)
