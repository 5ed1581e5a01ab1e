from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.selection import Selection
from research.config import compose_config
from research.data.augment import Augment, Augmentation
from research.data.crops import PadCrop
from research.data.transforms import CoefficientTransform, PixelTransform
from tests.conftest import user_error

ALL = Selection(tuple(range(64)), tuple(range(64)))
NONE = Augmentation(None, 9, 2, 0.0, 0.0, 0.0, 1.0)
COLOUR = (0.2, 0.4, 0.6)


def images(count: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def batch(inputs: Tensor | Blocks, count: int) -> ClassificationBatch:
    """Every image with a label of its own, so that ``labels_b`` names the partner."""
    return ClassificationBatch(torch.arange(count), inputs, torch.arange(count))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(settings_: Augmentation, inputs: Tensor | Blocks, seed: int = 0) -> Any:
    count = len(inputs.y if isinstance(inputs, Blocks) else inputs)
    result = settings_.mix(batch(inputs, count), draw(seed))
    assert result.labels_b is not None
    assert result.lam is not None
    assert result.lam.dtype == torch.float32
    assert torch.equal(result.labels, torch.arange(count))
    assert sorted(result.labels_b.tolist()) == list(range(count))
    return result


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 6),
    st.integers(1, 5),
    st.integers(4, 9),
    st.integers(4, 9),
    st.integers(0, 99),
    st.sampled_from(["constant", "reflect"]),
)
def test_padded_cuts_equal_torchvisions(
    padding: int, count: int, height: int, width: int, seed: int, mode: str
) -> None:
    assume(mode == "constant" or padding < min(height, width))
    inputs = images(count, 12)[:, :, :height, :width]
    crop = PadCrop(padding, mode)
    corners = crop.corners(seed, 1, count)
    result = crop.crop(inputs, torch.from_numpy(corners))
    for image, cut, (top, left) in zip(inputs, result, corners.tolist(), strict=True):
        padded = TF.pad(image, [padding] * 4, padding_mode=mode)
        assert torch.equal(cut, TF.crop(padded, top, left, height, width))


def test_padded_cuts_are_drawn_as_torchvision_draws_them() -> None:
    corners = PadCrop(4).corners(0, 1, 20_000)
    counts = np.bincount(9 * corners[:, 0] + corners[:, 1], minlength=81)
    assert len(counts) == 81
    assert stats.chisquare(counts).pvalue > 1e-3
    assert not np.array_equal(corners, PadCrop(4).corners(0, 2, 20_000))
    assert not np.array_equal(corners, PadCrop(4).corners(1, 1, 20_000))


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "autoaugment_cifar"])
def test_policies_are_torchvisions(policy: str) -> None:
    same: Any = {
        "randaugment": v2.RandAugment(3, 12),
        "trivialaugment": v2.TrivialAugmentWide(),
        "autoaugment_cifar": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    }[policy]
    change = replace(NONE, policy=policy, operations=3, magnitude=12)
    inputs = images(24)
    before = torch.get_rng_state()
    result = change.pixels(inputs, COLOUR, draw(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert result.dtype == torch.uint8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=draw(3))))
        expected = torch.stack([same(image) for image in inputs])
    assert torch.equal(result, expected)
    assert sum(not torch.equal(a, b) for a, b in zip(result, inputs, strict=True)) > 12
    assert torch.equal(result, change.pixels(inputs, COLOUR, draw(3)))
    assert not torch.equal(result, change.pixels(inputs, COLOUR, draw(4)))
    assert len(change.pixels(inputs[:0], COLOUR, draw(3))) == 0


def erased(inputs: Tensor, probability: float) -> Tensor:
    """Which pixels were filled: [B, H, W] bool."""
    result = replace(NONE, erasing=probability).pixels(inputs, COLOUR, draw(1))
    fill = torch.tensor([51, 102, 153], dtype=torch.uint8)[:, None, None]
    filled: Tensor = (result == fill).all(1)
    assert torch.equal(result, torch.where(filled[:, None], fill, inputs))
    return filled


def test_erasing_fills_rectangles_of_the_mean_colour() -> None:
    inputs = torch.zeros(600, 3, 40, 24, dtype=torch.uint8)
    filled = erased(inputs, 0.4)
    chosen = filled.flatten(1).any(1)
    assert stats.binomtest(int(chosen.sum()), 600, 0.4).pvalue > 1e-3
    for mask in filled[chosen]:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
    assert filled[:, 0].any()
    assert filled[:, -1].any()
    assert not erased(inputs, 0.0).any()


def test_erased_rectangles_are_of_torchvisions_sizes() -> None:
    inputs = torch.zeros(1500, 3, 32, 32, dtype=torch.uint8)
    filled = erased(inputs, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        their = [v2.RandomErasing(p=1.0).make_params([image]) for image in inputs]
    for axis, key in ((1, "h"), (2, "w")):
        ours = filled.any(3 - axis).sum(1).numpy()
        assert stats.ks_2samp(ours, [params[key] for params in their]).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_a_weighted_sum_with_lam_of_a_beta_distribution(alpha: float) -> None:
    inputs = torch.randn(500, 3, 2, 2, generator=draw(0))
    result = mixed(replace(NONE, mixup=alpha), inputs)
    lam = result.lam[:, None, None, None]
    expected = lam * inputs + (1 - lam) * inputs[result.labels_b]
    torch.testing.assert_close(result.inputs, expected, atol=1e-6, rtol=1e-5)
    assert stats.kstest(result.lam.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_pastes_a_rectangle_and_lam_is_its_area() -> None:
    inputs = torch.randn(400, 1, 20, 12, generator=draw(0))
    result = mixed(replace(NONE, cutmix=1.0), inputs)
    partners = inputs[result.labels_b]
    pasted = (result.inputs != inputs).flatten(1, 1).any(1)
    assert torch.equal(result.inputs, torch.where(pasted[:, None], partners, inputs))
    itself = result.labels_b == torch.arange(400)
    for mask, lam, same in zip(pasted, result.lam, itself, strict=True):
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()
        if not same:
            assert lam == pytest.approx(1 - mask.float().mean().item(), abs=1e-6)
    # Boxes are clipped to the image, so lam is larger than uniform on average.
    assert 0.55 < result.lam.mean() < 0.75
    assert result.lam.min() < 0.2


def test_with_both_an_image_gets_either_or_none() -> None:
    inputs = torch.randn(800, 1, 16, 16, generator=draw(0))
    both = replace(NONE, mixup=1.0, cutmix=1.0)
    result = mixed(both, inputs)
    changed = (result.inputs != inputs).flatten(1).float().mean(1)
    assert stats.binomtest(int((changed > 0.99).sum()), 800, 0.5).pvalue > 1e-4
    result = mixed(replace(both, mix_probability=0.25), inputs)
    untouched = result.lam == 1
    assert torch.equal(result.inputs[untouched], inputs[untouched])
    assert 0.7 < untouched.float().mean() < 0.85
    assert NONE.mix(batch(inputs, 800), draw(0)).labels_b is None


def coefficients(pixels: Tensor) -> Blocks:
    transform = CoefficientTransform(ALL, "studio", None, flip=False).eval()
    result: Blocks = transform(batch(pixels, len(pixels)), None).inputs
    return result


def test_mixup_of_coefficients_is_coefficients_of_mixup() -> None:
    pixels = images(12)
    change = replace(NONE, mixup=1.0)
    blocks = mixed(change, coefficients(pixels), seed=2)
    plain = mixed(change, pixels.float(), seed=2)
    assert torch.equal(blocks.labels_b, plain.labels_b)
    torch.testing.assert_close(blocks.lam, plain.lam)
    expected = coefficients(plain.inputs)
    for a, b in zip(blocks.inputs, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)


def test_cutmix_of_coefficients_is_that_of_pixels_aligned_to_16() -> None:
    pixels = images(40, 96)
    result = mixed(replace(NONE, cutmix=1.0), coefficients(pixels), seed=2)
    own = (result.inputs.cbcr == coefficients(pixels).cbcr).all(2).all(1)  # [B, 6, 6]
    mask = own.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    expected = coefficients(torch.where(mask, pixels, pixels[result.labels_b]))
    for a, b in zip(result.inputs, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(result.lam, own.float().mean((1, 2)))
    assert (result.lam < 1).sum() > 5


def transforms(change: Augmentation) -> list[Any]:
    augment = Augment(change, COLOUR)
    return [
        PixelTransform(COLOUR, (0.2, 0.2, 0.2), flip=True, augment=augment),
        CoefficientTransform(ALL, "full", None, flip=True, augment=augment),
    ]


def flat(result: Any) -> Tensor:
    inputs = result.inputs
    return inputs.y if isinstance(inputs, Blocks) else inputs


@pytest.mark.parametrize("kind", [0, 1])
def test_transforms_augment_in_training_only(kind: int) -> None:
    everything = Augmentation("trivialaugment", 9, 2, 0.5, 0.5, 1.0, 1.0)
    transform, plain = transforms(everything)[kind], transforms(NONE)[kind]
    pixels = batch(images(16), 16)
    before = torch.get_rng_state()
    one, again, two = (transform(pixels, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flat(one), flat(again))
    assert torch.equal(one.lam, again.lam)
    assert not torch.equal(flat(one), flat(two))
    assert one.to(torch.device("cpu")).labels_b is not None
    transform.eval()
    plain.eval()
    judged = transform(pixels, None)
    assert judged.labels_b is None
    assert torch.equal(flat(judged), flat(plain(pixels, None)))


def test_each_stage_reaches_the_network() -> None:
    pixels = batch(images(8), 8)
    for transform, bare in zip(
        transforms(replace(NONE, erasing=1.0)), transforms(NONE), strict=True
    ):
        transform.flip = bare.flip = False
        seen, unseen = flat(transform(pixels, draw(0))), flat(bare(pixels, draw(0)))
        changed = (seen != unseen).flatten(1).any(1)
        assert changed.all()


def test_coefficients_from_files_are_mixed_only() -> None:
    raw = coefficients(images(8))
    blocks = Blocks(
        raw.y.permute(0, 2, 3, 1).round().to(torch.int16),
        raw.cbcr.permute(0, 1, 3, 4, 2).round().to(torch.int16),
    )
    both = transforms(replace(NONE, policy="randaugment", mixup=1.0))[1]
    mix = transforms(replace(NONE, mixup=1.0))[1]
    a, b = (transform(batch(blocks, 8), draw(0)) for transform in (both, mix))
    assert torch.equal(flat(a), flat(b))
    assert a.lam is not None


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("dataset.augmentation.policy=randaugment", "dataset.augmentation.policy"),
        ("dataset.augmentation.erasing=0.5", "dataset.augmentation.erasing"),
        ("dataset=cifar10", "compression.source"),
    ],
)
def test_augmentation_of_bitstream_coefficients_is_refused(line: str, key: str) -> None:
    with user_error(key, line.removeprefix("dataset.augmentation.")):
        compose_config(["compression.source=bitstream", line])


def test_coefficients_from_files_may_be_mixed() -> None:
    cfg, *_ = compose_config(["compression.source=bitstream", "dataset.augmentation.mixup=0.2"])
    assert (cfg.compression.source, cfg.dataset.augmentation.mixup) == ("bitstream", 0.2)
