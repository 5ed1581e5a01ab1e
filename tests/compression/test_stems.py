from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from research.compression.blocks import Blocks
from research.compression.selection import Selection, select_frequencies
from research.compression.stems import StemSpec
from research.engine import build

VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned")
FEATURES = VARIANTS[1:]


def spec(
    variant: str, window: int = 4, range_: str = "full", refinement: str | None = "blocks"
) -> StemSpec:
    kept = select_frequencies(window, "corner")
    return StemSpec(variant, Selection(kept, kept), range_, refinement)


def blocks(kept: int = 16, count: int = 2, size: int = 64, chroma: int | None = None) -> Blocks:
    generator = torch.Generator().manual_seed(0)
    grid, chroma = size // 8, kept if chroma is None else chroma
    return Blocks(
        torch.randn(count, kept, grid, grid, generator=generator),
        torch.randn(count, 2, chroma, grid // 2, grid // 2, generator=generator),
    )


@pytest.mark.parametrize("variant", FEATURES)
def test_features_have_stride_4(variant: str) -> None:
    assert spec(variant).build(48)(blocks()).shape == (2, 48, 16, 16)


def test_reconstruction_returns_an_image() -> None:
    assert spec("reconstruction").build(64)(blocks()).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("variant", FEATURES)
def test_projections_are_3_by_3_and_the_join_1_by_1(variant: str) -> None:
    stem = spec(variant, window=2).build(40)
    shapes = [tuple(p.shape) for p in stem.parameters() if p.ndim == 4]
    assert shapes == [(64, 4, 3, 3), (32, 8, 3, 3), (40, 96, 1, 1)]


def influence(stem: torch.nn.Module, inputs: Blocks) -> tuple[Tensor, Tensor]:
    """[grid, grid] of how much the output changes when one block of luma, of Cr, is changed."""
    stem.eval()
    grid = inputs.y.shape[-1]
    base = stem(inputs)
    luma, chroma = torch.zeros(grid, grid), torch.zeros(grid // 2, grid // 2)
    for index in range(grid * grid):
        row, col = divmod(index, grid)
        y = inputs.y.clone()
        y[:, :, row, col] += 1
        luma[row, col] = (stem(Blocks(y, inputs.cbcr)) - base).abs().max()
        if row < grid // 2 and col < grid // 2:
            cbcr = inputs.cbcr.clone()
            cbcr[:, 1, :, row, col] += 1
            chroma[row, col] = (stem(Blocks(inputs.y, cbcr)) - base).abs().max()
    return luma, chroma


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_no_block_is_dropped(variant: str) -> None:
    # All of a 2×2 group of luma blocks count, at the edges too.
    torch.manual_seed(0)
    luma, chroma = influence(spec(variant).build(64), blocks(count=1, size=32))
    assert luma.min() > 1e-3
    assert chroma.min() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_channel_counts(variant: str) -> None:
    torch.manual_seed(0)
    stem, inputs = spec(variant).build(64).eval(), blocks(count=1, size=16)
    base = stem(inputs)
    for channel in range(16):
        y = inputs.y.clone()
        y[:, channel] += 1
        assert not torch.equal(stem(Blocks(y, inputs.cbcr)), base), channel
        for plane in range(2):
            cbcr = inputs.cbcr.clone()
            cbcr[:, plane, channel] += 1
            assert not torch.equal(stem(Blocks(inputs.y, cbcr)), base), (plane, channel)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("luma", "chroma"), [(10, 0), (0, 3), (64, 1)])
def test_an_empty_plane_has_no_branch(variant: str, luma: int, chroma: int) -> None:
    selection = Selection.from_settings(4, "zigzag", count_luma=luma, count_chroma=chroma)
    stem = StemSpec(variant, selection, "studio", "blocks").build(64)
    inputs = blocks(kept=luma, chroma=chroma)
    out = stem(inputs)
    assert out.shape == ((2, 3, 64, 64) if variant == "reconstruction" else (2, 64, 16, 16))
    if variant != "reconstruction":
        inputs_of = [p.shape[1] for p in stem.parameters() if p.ndim == 4]
        joined = 64 * (luma > 0) + 32 * (chroma > 0)
        assert inputs_of == [*([luma] if luma else []), *([2 * chroma] if chroma else []), joined]


@pytest.mark.parametrize("refinement", ["blocks", "pixels"])
def test_refinement_starts_as_an_identity_and_can_learn(refinement: str) -> None:
    stem: Any = spec("reconstruction", window=8, refinement=refinement).build(64)
    inputs = Blocks(*(20 * part for part in blocks(kept=64, size=32)))
    image = stem.decoder(*inputs) / 255
    expected = (image - stem.mean) / stem.std
    assert torch.equal(stem(inputs), expected)
    optimizer = torch.optim.SGD(stem.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        stem(inputs).square().mean().backward()
        optimizer.step()
    assert not torch.equal(stem(inputs), expected)
    assert all(p.grad.abs().max() > 0 for p in stem.parameters())


@torch.no_grad()
def test_without_refinement_the_stem_is_the_decoder() -> None:
    stem: Any = spec("reconstruction", refinement=None).build(64)
    assert list(stem.parameters()) == []
    inputs = blocks()
    expected = (stem.decoder(*inputs) / 255 - stem.mean) / stem.std
    assert torch.equal(stem(inputs), expected)


@torch.no_grad()
def test_the_refinement_of_blocks_reads_a_block_and_those_around_it() -> None:
    torch.manual_seed(0)
    stem: Any = spec("reconstruction", window=8, refinement="blocks").build(64).eval()
    nn.init.normal_(stem.refine[1].weight)
    # By hand: the 3·8·8 values of a block as channels, colour by colour, row by row.
    image = stem.decoder(*(inputs := blocks(kept=64, size=48))) / 255
    channels = image.reshape(2, 3, 6, 8, 6, 8).permute(0, 1, 3, 5, 2, 4).reshape(2, 192, 6, 6)
    residual = stem.refine(channels).reshape(2, 3, 8, 8, 6, 6).permute(0, 1, 4, 2, 5, 3)
    expected = (image + residual.reshape(2, 3, 48, 48) - stem.mean) / stem.std
    assert not torch.equal(residual, torch.zeros_like(residual))
    torch.testing.assert_close(stem(inputs), expected)
    # Two 3×3 convolutions, hence two blocks in each direction.
    changed = inputs.y.clone()
    changed[:, :, 0, 0] += 1
    reached = (stem(Blocks(changed, inputs.cbcr)) - stem(inputs)).abs().amax((0, 1)) > 0
    rows = reached.reshape(6, 8, 6, 8).any(3).any(1)
    assert rows[:3, :3].all()
    assert not rows[3:].any()
    assert not rows[:, 3:].any()


def test_only_the_pruned_variant_scales_the_trunk() -> None:
    for window in (1, 2, 4, 8):
        assert spec("luma_fusion_pruned", window).trunk_scale == window / 8
        assert all(spec(variant, window).trunk_scale == 1 for variant in VARIANTS[:3])
    ten = Selection.from_settings(4, "zigzag", count_luma=9, count_chroma=64)
    assert StemSpec("luma_fusion_pruned", ten, "full").trunk_scale == 3 / 8
    none = Selection.from_settings(4, "zigzag", count_luma=0)
    assert StemSpec("luma_fusion_pruned", none, "full").trunk_scale == 1 / 8


def test_data_and_stem_get_the_same_selection(small: Callable[..., dict[str, Any]]) -> None:
    config = small("compression.window=3")
    spec = build.network_input(config).coefficients
    stem = build.stem_spec(config["compression"])
    assert spec is not None
    assert stem is not None
    assert spec.selection is stem.selection


def test_only_reconstruction_takes_unnormalised_coefficients() -> None:
    assert [variant for variant in VARIANTS if not spec(variant).normalised] == ["reconstruction"]
    assert [variant for variant in VARIANTS if spec(variant).takes_image] == ["reconstruction"]
