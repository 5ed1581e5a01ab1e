"""Ways from a file to a training sample with other libraries: the peers of ``input``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.datasets.folder import pil_loader
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD
from research.data.crops import CropBox, RandomResizedCrop
from research.utils.errors import UserError

try:
    import cv2
    import simplejpeg
except ImportError:
    raise UserError("NAME", 'input needs simplejpeg and cv2: pip install -e ".[dev]"') from None

Pixels = NDArray[np.uint8]
ReadFile = Callable[[Path], object]
Cut = Callable[[Path, CropBox], Pixels]


class Peer(NamedTuple):
    """Reads a file.

    Attributes:
        sample: random crop, resize, flip; normalised floats, if its name does not say otherwise.
        cut: a crop, cut out and resized in the same way, uint8 [S, S, 3].
    """

    sample: ReadFile
    cut: Cut


def peers(size: int, crop: RandomResizedCrop) -> dict[str, Peer]:
    """Samples of ``size`` px, by name; the first is the reference.

    All resize with antialiased bilinear filters, except those whose name says otherwise.
    """
    cv2.setNumThreads(torch.get_num_threads())
    # torchvision 0.29 says at every call that torchcodec will replace its decoders.
    warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
    rng = np.random.default_rng(0)
    finish = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    random_crop = v2.RandomResizedCrop(size, crop.scale, crop.ratio, antialias=True)
    of_pil = v2.Compose([random_crop, v2.PILToTensor(), finish])
    of_tensors = v2.Compose([random_crop, finish])
    timm = {"scale": crop.scale, "ratio": crop.ratio, "color_jitter": None, "is_training": True}
    timm_floats = create_transform(size, **timm)
    timm_integers = create_transform(size, **timm, use_prefetcher=True)

    def resized(image: Tensor, box: CropBox) -> Pixels:
        image = functional.resized_crop(image, *box, [size, size], antialias=True)
        pixels: Pixels = image.permute(1, 2, 0).numpy()
        return pixels

    def with_pil(path: Path, box: CropBox) -> Pixels:
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = pil_loader(path).crop(edges)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))

    def with_cv2(path: Path, box: CropBox | None = None) -> Pixels:
        pixels = with_simplejpeg(path)
        top, left, height, width = box or crop.box(pixels.shape[0], pixels.shape[1], rng)
        cut = pixels[top : top + height, left : left + width]
        return np.asarray(cv2.resize(cut, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)

    return {
        "PIL + v2": Peer(lambda path: of_pil(pil_loader(path)), with_pil),
        "timm": Peer(lambda path: timm_floats(pil_loader(path)), with_pil),
        "timm, integers": Peer(lambda path: timm_integers(pil_loader(path)), with_pil),
        "torchvision.io + v2": Peer(
            lambda path: of_tensors(with_torchvision(path)),
            lambda path, box: resized(with_torchvision(path), box),
        ),
        "simplejpeg + v2": Peer(
            lambda path: of_tensors(as_tensor(with_simplejpeg(path))),
            lambda path, box: resized(as_tensor(with_simplejpeg(path)), box),
        ),
        "simplejpeg + cv2, not antialiased": Peer(
            lambda path: finish(as_tensor(with_cv2(path))), with_cv2
        ),
    }


def as_tensor(pixels: Pixels) -> Tensor:
    """Pixels [H, W, 3] as [3, H, W], not copied."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def with_torchvision(path: Path) -> Tensor:
    """Pixels uint8 [3, H, W]."""
    return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)


def with_simplejpeg(path: Path) -> Pixels:
    """Pixels uint8 [H, W, 3]."""
    # Not strict: it would refuse files with warnings, which the others read.
    pixels: Pixels = simplejpeg.decode_jpeg(path.read_bytes(), strict=False)
    return pixels
