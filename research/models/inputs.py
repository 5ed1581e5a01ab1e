"""The input that networks were designed for."""

from __future__ import annotations

from dataclasses import dataclass

from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class InputSpec:
    """The input that a network was designed for.

    Attributes:
        size: side of the square input in pixels.
        mean: mean of RGB on a 0…1 scale.
        std: standard deviation of RGB on a 0…1 scale.
        crop_pct: side of the validation crop as a fraction of the image's short side.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float


def input_spec(name: str | None) -> InputSpec:
    """The input that the network ``model.name`` was designed for.

    From timm's pretrained configuration if it has one of this name. Otherwise 32 px for the CIFAR
    networks of the DenseNet paper (``densenet_bc_…``) and 224 px for others, with ImageNet's mean
    and std.
    """
    of_cifar = name is not None and name.startswith("densenet_bc_")
    default = InputSpec(32 if of_cifar else 224, IMAGENET_MEAN, IMAGENET_STD, 0.875)
    if name is None or of_cifar:
        return default
    import timm  # only here: models of other libraries start without it

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:
        return default
    if cfg is None:
        return default
    return InputSpec(cfg.input_size[-1], tuple(cfg.mean), tuple(cfg.std), float(cfg.crop_pct))
