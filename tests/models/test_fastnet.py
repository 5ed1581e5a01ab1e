from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from research.models.fastnet import STDS, BiasBatchNorm, FastNet, Whitening


def network(classes: int = 10) -> FastNet:
    torch.manual_seed(0)
    return FastNet(classes, [64, 256, 256], bias_scale=8.0, logit_scale=0.11)


def test_parameters_and_operations_are_those_documented() -> None:
    net = network().eval()
    assert sum(p.numel() for p in net.parameters()) == 1_971_328
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.12, abs=0.005)


@pytest.mark.parametrize("size", [32, 64, 40])
def test_images_of_any_larger_size_become_logits(size: int) -> None:
    assert network(7)(torch.randn(3, 3, size, size)).shape == (3, 7)


def test_whitening_is_a_rotation_divided_by_the_stds() -> None:
    weight = Whitening().weight
    stds = torch.tensor(STDS).flatten()
    basis = weight[:12].flatten(1) * stds[:, None]
    assert torch.allclose(basis @ basis.T, torch.eye(12), atol=1e-6)
    assert torch.equal(weight[12:], -weight[:12])
    # Noise that has these stds in that basis comes out white.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 12, generator=generator) * stds
    patches = (noise @ basis).reshape(-1, 3, 2, 2)
    features = F.conv2d(patches, weight).flatten(1)[:, :12]
    assert torch.allclose(features.T.cov(), torch.eye(12), atol=0.04)


def test_convolutions_are_initialised_to_the_identity() -> None:
    first = network().features[2]
    images = torch.randn(2, 24, 9, 9)
    assert torch.allclose(first(images)[:, :24], images, atol=1e-6)


def test_biases_learn_faster_by_the_square_of_their_scale() -> None:
    changes = []
    for scale in (1.0, 8.0):
        norm = BiasBatchNorm(3, scale)
        optimizer = torch.optim.SGD(norm.parameters(), lr=0.01)
        images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        before = norm(images)
        before.sum().backward()
        optimizer.step()
        changes.append((norm(images) - before).mean().item())
    assert changes[1] == pytest.approx(64 * changes[0], rel=1e-4)
