"""A baseline for image classification: a linear classifier on colour and brightness."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from research.compression.dct import rgb_to_ycbcr
from research.data.loader import EpochLoader
from research.utils.progress import track, track_batches


def linear_top1(train: EpochLoader, val: EpochLoader) -> float:
    """Validation top-1 accuracy of a linear classifier on mean colour and DC coefficients.

    The features are the mean of each RGB channel and the DC of every luma and chroma block. The
    classifier is a multinomial logistic regression. The best of five L2 penalties is selected on
    the validation split, so the accuracy is optimistic.

    Args:
        train: uint8 pixels [B, 3, H, W] of the training split, without augmentation.
        val: the same of the validation split.

    Returns:
        Accuracy, 0…1.
    """
    x, labels = _features(train)
    x_val, labels_val = _features(val)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = (x - mean) / std, (x_val - mean) / std
    penalties = track((1e-4, 1e-3, 1e-2, 1e-1, 1.0), "fitting the baseline", unit="fits")
    scores = (_fit(x, labels, penalty)(x_val) for penalty in penalties)
    return max((score.argmax(1) == labels_val).double().mean().item() for score in scores)


def _fit(x: Tensor, labels: Tensor, penalty: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(x.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(x), labels) + penalty * layer.weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return layer.requires_grad_(False)


def _features(loader: EpochLoader) -> tuple[Tensor, Tensor]:
    features, labels = [], []
    for batch in track_batches(loader.epoch(0), "reading for the baseline", len(loader)):
        rgb = batch.inputs.float()
        y, cbcr = rgb_to_ycbcr(rgb)
        dc = [F.avg_pool2d(plane, 8).flatten(1) for plane in (y[:, None], cbcr)]
        features.append(torch.cat([rgb.mean((2, 3)), *dc], dim=1))
        labels.append(batch.labels)  # type: ignore[attr-defined]
    return torch.cat(features), torch.cat(labels)
