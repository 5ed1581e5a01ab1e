"""``ClassificationData``: base of the data sets of RGB images with one label each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Unpack

from research.compression.selection import Selection
from research.compression.statistics import Statistics
from research.data.augment import Augment, Augmentation
from research.data.coefficients import CoefficientSpec
from research.data.datamodule import Common, DataModule
from research.data.transforms import CoefficientTransform, DeviceTransform, PixelTransform


class CommonImages(Common):
    """The arguments of these data sets.

    Attributes:
        num_classes: required number of classes; ``None`` for any.
        image_size: side of the network's square input in pixels; ``None``: the network's own.
        random_flip: which training images are flipped (on the device), see ``transforms.flipped``.
        mean: mean of RGB on a 0…1 scale, for pixels; ``None``: the network's own.
        std: standard deviation of RGB on a 0…1 scale; ``None``: the network's own.
        augmentation: further augmentation of training images, on the device.
    """

    num_classes: int | None
    image_size: int | None
    random_flip: bool | str
    mean: Sequence[float] | None
    std: Sequence[float] | None
    augmentation: Augmentation


class ClassificationData(DataModule):
    """Labelled images as pixels, or as DCT coefficients for a network on coefficients."""

    unit = "images"

    def __init__(
        self,
        num_classes: int | None,
        image_size: int | None,
        random_flip: bool | str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augmentation: Augmentation,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.num_classes = num_classes
        self.image_size = image_size or self.network.size
        self.random_flip = random_flip
        self.mean = list(mean or self.network.mean)
        self.std = list(std or self.network.std)
        self.augment = Augment(augmentation, self.mean)
        self.coefficients = self.network.coefficients

    def transform(self, *, measured: bool = True) -> DeviceTransform:
        spec = self.coefficients
        if spec is None:
            return PixelTransform(self.mean, self.std, self.random_flip, self.augment)
        return CoefficientTransform(
            spec.selection,
            spec.range_,
            self._statistics(spec) if measured else None,
            self.random_flip,
            self._shipped(spec),
            self.augment,
        )

    def _shipped(self, spec: CoefficientSpec) -> Selection:
        """The frequencies of batches of coefficients."""
        return spec.selection

    @abstractmethod
    def _statistics(self, spec: CoefficientSpec) -> Statistics | None:
        """Statistics of all 64 frequencies over the training split with validation crops."""
