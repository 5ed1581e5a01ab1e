"""Encoders: how one image file becomes one sample of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.selection import Selection, stored_order
from research.data.crops import CentreCrop
from research.data.frames.letterbox import Letterbox
from research.data.image_files import decode
from research.data.image_modes import to_rgb
from research.data.readers import BitstreamReader, PixelReader, Reader
from research.data.transforms import CoefficientTransform
from research.data.warehouse.manifest import TensorSpec
from research.utils.errors import DamagedImage

OPTIONAL = {"ignored": "uint8", "areas": "float32"}
"""Tensors that a store of frames has only if its source needs them, with their types."""


@dataclass(frozen=True)
class SampleSpec:
    """One sample to encode.

    Attributes:
        name: path of the image relative to the source; unique in it.
        group: the samples of a group stay in one split.
        file: the image.
        target: label or boxes of the sample; JSON-serializable.
        parts: further files of the sample, such as the image of another sensor.
    """

    name: str
    group: str
    file: Path
    target: Any
    parts: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return self.file, *self.parts


class Encoded(NamedTuple):
    """Arrays of one sample.

    Attributes:
        arrays: by tensor name, as ``SampleEncoder.tensors`` declares them.
        fallback: why the file was not read the direct way; '' if it was.
    """

    arrays: dict[str, NDArray[np.generic]]
    fallback: str = ""


class SampleEncoder(Protocol):
    """Encodes files into samples. Must be small and picklable: every worker gets a copy."""

    @property
    def kind(self) -> str:
        """A key of ``manifest.KINDS``."""
        ...

    def transform(self) -> dict[str, Any]:
        """The settings, for the manifest and the version hash."""
        ...

    def tensors(self) -> dict[str, TensorSpec]:
        """Type and shape of the arrays that ``encode`` returns."""
        ...

    def index_entry(self, sample: SampleSpec) -> dict[str, Any]:
        """Entries of ``samples.jsonl`` in addition to name, group and hash."""
        ...

    def encode_all(self, samples: Sequence[SampleSpec]) -> Iterator[Encoded | DamagedImage]:
        """Read and encode samples, in their order; an error for each that cannot be read."""
        ...


class SingleEncoder(SampleEncoder, Protocol):
    """Encodes one sample after the other."""

    def encode(self, sample: SampleSpec) -> Encoded:
        """Read and encode one sample.

        Raises:
            DamagedImage: if the file cannot be read.
        """
        ...

    def encode_all(self, samples: Sequence[SampleSpec]) -> Iterator[Encoded | DamagedImage]:
        for sample in samples:
            try:
                yield self.encode(sample)
            except DamagedImage as error:
                yield error


@dataclass(frozen=True)
class FrameEncoder(SingleEncoder):
    """Letterboxed frames with their boxes.

    Tensors of a sample: ``images`` uint8 [S, S, 3] RGB, ``boxes`` float32 [M, 4] xyxy as fractions
    of the canvas, ``mask`` uint8 [M] (1 for a slot with a box; slots are filled from the first
    on), ``labels`` int64 [M], ``sizes`` int32 [2] height and width of the source image. Only if a
    frame of the source has any: ``ignored`` uint8 [M] (1 for an ignore region), ``areas`` float32
    [M] declared areas in pixels of the source image (see ``Frame``; otherwise those of the boxes).

    Attributes:
        image_size: S, side of the canvas in pixels.
        max_boxes: M, slots for boxes in a frame.
        optional: names in ``OPTIONAL`` of the tensors that the source needs.
    """

    image_size: int
    max_boxes: int
    optional: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "frames"

    def transform(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "max_boxes": self.max_boxes, "resize": "letterbox"}

    def tensors(self) -> dict[str, TensorSpec]:
        size, slots = self.image_size, self.max_boxes
        return {
            "images": TensorSpec("uint8", (size, size, 3)),
            "boxes": TensorSpec("float32", (slots, 4)),
            "mask": TensorSpec("uint8", (slots,)),
            "labels": TensorSpec("int64", (slots,)),
            "sizes": TensorSpec("int32", (2,)),
            **{name: TensorSpec(OPTIONAL[name], (slots,)) for name in self.optional},
        }

    def index_entry(self, sample: SampleSpec) -> dict[str, Any]:
        ignored = sum(sample.target.get("ignored", ()))
        counts = {"boxes": len(sample.target["boxes"]) - ignored}
        return {**counts, "ignored": ignored} if ignored else counts

    def images(self, sample: SampleSpec) -> tuple[dict[str, NDArray[np.generic]], int, int]:
        """The canvas (and what else is stored of the pixels); height and width of the source."""
        image = to_rgb(decode(sample.file))
        letterbox = Letterbox.of(image.height, image.width, self.image_size)
        return {"images": letterbox.image(image)}, image.height, image.width

    def encode(self, sample: SampleSpec) -> Encoded:
        images, height, width = self.images(sample)
        letterbox = Letterbox.of(height, width, self.image_size)
        boxes = np.array(sample.target["boxes"], dtype=np.float64).reshape(-1, 4)
        slots = {
            name: np.zeros(tensor.shape, tensor.dtype)
            for name, tensor in self.tensors().items()
            if name not in (*images, "sizes")
        }
        slots["boxes"][: len(boxes)] = letterbox.boxes(boxes)
        slots["mask"][: len(boxes)] = 1
        slots["labels"][: len(boxes)] = sample.target["labels"]
        if "ignored" in slots:
            slots["ignored"][: len(boxes)] = sample.target.get("ignored", 0)
        if "areas" in slots:
            own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            declared = np.array(sample.target.get("areas", own), dtype=np.float64)
            slots["areas"][: len(boxes)] = declared * (width * height)
        sizes = np.array([height, width], dtype=np.int32)
        return Encoded({**images, "sizes": sizes, **slots})


@dataclass(frozen=True)
class CoefficientEncoder(SingleEncoder):
    """Centre squares of images as block-major DCT coefficients, in the units of JPEG.

    Tensors of a sample: ``y`` int16 [S/8, S/8, window²], ``cbcr`` int16 [2, S/16, S/16, window²],
    ``labels`` int64 []. Frequencies are in ``selection.stored_order``, so that a smaller window is
    a prefix of each block.

    Attributes:
        image_size: S, a multiple of 16, in pixels.
        window: 1…8, side of the corner of frequencies that is stored.
        source: ``bitstream``: coefficients of the file itself, see ``BitstreamReader``;
            ``pixels``: coefficients of the decoded and resized image, rounded.
    """

    image_size: int
    window: int
    source: str

    @property
    def kind(self) -> str:
        return "coefficients"

    def transform(self) -> dict[str, Any]:
        return asdict(self)

    def tensors(self) -> dict[str, TensorSpec]:
        grid, count = self.image_size // 8, self.window**2
        return {
            "y": TensorSpec("int16", (grid, grid, count)),
            "cbcr": TensorSpec("int16", (2, grid // 2, grid // 2, count)),
            "labels": TensorSpec("int64", ()),
        }

    def index_entry(self, sample: SampleSpec) -> dict[str, Any]:
        return {"label": sample.target}

    def encode(self, sample: SampleSpec) -> Encoded:
        read = self.reader.read(sample.file, CentreCrop(1.0), np.random.default_rng(0))
        y, cbcr = read.arrays if self.source == "bitstream" else self._dct(read.arrays[0])
        label = np.array(sample.target, dtype=np.int64)
        return Encoded({"y": y, "cbcr": cbcr, "labels": label}, read.fallback)

    @property
    def selection(self) -> Selection:
        order = stored_order(self.window)
        return Selection(order, order)

    @cached_property
    def reader(self) -> Reader:
        if self.source == "bitstream":
            return BitstreamReader(self.image_size, self.selection)
        return PixelReader(self.image_size)

    @cached_property
    def pixel_transform(self) -> CoefficientTransform:
        return CoefficientTransform(self.selection, "full", None, flip=False).eval()

    def _dct(self, pixels: NDArray[np.generic]) -> tuple[NDArray[np.int16], ...]:
        index = torch.zeros(1, dtype=torch.int64)
        batch = ClassificationBatch(index, torch.from_numpy(pixels.copy())[None], index)
        blocks = self.pixel_transform(batch, None).inputs
        assert isinstance(blocks, Blocks)
        block_major = blocks.y[0].permute(1, 2, 0), blocks.cbcr[0].permute(0, 2, 3, 1)
        return tuple(part.round().to(torch.int16).numpy() for part in block_major)

    def __getstate__(self) -> dict[str, Any]:
        # Workers get the settings only; reader and transform are created there.
        return asdict(self)
