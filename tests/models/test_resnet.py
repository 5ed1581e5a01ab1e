from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.dct import rgb_to_ycbcr, ycbcr_to_rgb
from research.compression.selection import Selection, select_frequencies
from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD, StemSpec
from research.data.transforms import CoefficientTransform
from research.models.resnet import resnet
from tests.conftest import as_if_trained, save_state, user_error

VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned")
ALL = tuple(range(64))


def spec(variant: str, window: int = 4, range_: str = "full") -> StemSpec:
    kept = select_frequencies(window, "corner")
    return StemSpec(variant, Selection(kept, kept), range_)


def network(
    name: str = "resnet18",
    stem: StemSpec | None = None,
    *,
    classes: int = 5,
    pretrained: Path | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    given = None if pretrained is None else str(pretrained)
    return resnet(name, classes, given, drop_rate, drop_path_rate, stem)


def blocks(window: int, count: int = 2, size: int = 64) -> Blocks:
    kept, grid = window * window, size // 8
    return Blocks(
        torch.zeros(count, kept, grid, grid), torch.zeros(count, 2, kept, grid // 2, grid // 2)
    )


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_resnet34_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert parameters(network("resnet34", classes=1000)) == 21_797_672


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet34d", "seresnet50"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_resnet_takes_every_stem(name: str, variant: str) -> None:
    # Autocast, which the decoder turns off, knows no meta device.
    with torch.device("cpu" if variant == "reconstruction" else "meta"), torch.no_grad():
        model = network(name, spec(variant)).eval()
        assert model(blocks(4, size=32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet10t", "resnet14t"])  # basic and bottleneck, deep stems
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_replaced_stem_is_removed(name: str, variant: str) -> None:
    model = network(name, spec(variant))
    names = [
        n for n, _ in model.named_parameters() if n.startswith(("backbone.conv1", "backbone.bn1"))
    ]
    assert bool(names) == (variant == "reconstruction")
    torch.manual_seed(0)
    inputs = Blocks(*(torch.randn_like(part) for part in blocks(4, count=4, size=32)))
    # What stands before layers that start at zero gets its gradient once these have moved.
    solver = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        solver.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.arange(4)).backward()
        solver.step()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


WIDTHS = {
    1: [8, 16, 32, 64],
    2: [16, 32, 64, 128],
    4: [32, 64, 128, 256],
    5: [40, 80, 160, 320],
    8: [64, 128, 256, 512],
}
DEPTHS = {
    "resnet34": {
        1: [1, 1, 1, 1],
        2: [1, 1, 2, 1],
        4: [2, 2, 3, 2],
        5: [2, 3, 4, 2],
        8: [3, 4, 6, 3],
    },
    "resnet50": {1: [1, 1, 1, 1], 2: [1, 1, 2, 1], 4: [2, 2, 3, 2], 8: [3, 4, 6, 3]},
    "resnet18": {1: [1, 1, 1, 1], 2: [1, 1, 1, 1], 4: [1, 1, 1, 1], 8: [2, 2, 2, 2]},
    "wide_resnet50_2": {4: [2, 2, 3, 2]},
}


@pytest.mark.parametrize(
    ("name", "window"), [(name, window) for name, depths in DEPTHS.items() for window in depths]
)
def test_the_pruned_trunk_scales_in_width_and_depth(name: str, window: int) -> None:
    with torch.device("meta"):
        trunk = network(name, spec("luma_fusion_pruned", window)).backbone
    stages = [getattr(trunk, f"layer{number}") for number in range(1, 5)]
    expansion = 1 if name in ("resnet18", "resnet34") else 4
    last = "conv2" if expansion == 1 else "conv3"
    assert [len(stage) for stage in stages] == DEPTHS[name][window]
    for stage, width in zip(stages, WIDTHS[window], strict=True):
        assert all(getattr(block, last).out_channels == expansion * width for block in stage)


def test_other_variants_keep_the_whole_trunk() -> None:
    with torch.device("meta"):
        whole = parameters(timm.create_model("resnet34", num_classes=5))
        own_stem = 3 * 64 * 49 + 2 * 64
        for variant in ("block_stem", "luma_fusion"):
            model = network("resnet34", spec(variant, 2))
            stem = 9 * 4 * 64 + 2 * 64 + 9 * 8 * 32 + 2 * 32 + 96 * 64 + 2 * 64
            assert parameters(model) == whole - own_stem + stem
        refinement = 9 * 3 * 32 + 2 * 32 + 9 * 32 * 3
        assert parameters(network("resnet34", spec("reconstruction"))) == whole + refinement


def rgb_network(classes: int = 5, seed: int = 0) -> nn.Module:
    """ResNet-18 on RGB with weights and running statistics as if trained."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("resnet18", num_classes=classes)
    as_if_trained(model)
    return model.eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("range_", ["full", "studio"])
@torch.no_grad()
def test_reconstruction_starts_as_the_rgb_network(tmp_path: Path, suffix: str, range_: str) -> None:
    rgb = rgb_network()
    file = save_state(rgb.state_dict(), tmp_path / f"rgb{suffix}")
    stem = spec("reconstruction", 8, range_)
    model = network(stem=stem, pretrained=file).eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=generator, dtype=torch.uint8)
    transform = CoefficientTransform(Selection(ALL, ALL), range_, None, flip=False).eval()
    index = torch.arange(3)
    inputs = transform(ClassificationBatch(index, pixels, index), None).inputs
    # The 4:2:0 image without any DCT in between.
    image = ycbcr_to_rgb(*rgb_to_ycbcr(pixels.float())) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = rgb((image - mean) / std)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(inputs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", ["block_stem", "luma_fusion"])
def test_pretrained_stages_carry_over_to_the_other_stems(tmp_path: Path, variant: str) -> None:
    state = rgb_network().state_dict()
    model = network(stem=spec(variant), pretrained=save_state(state, tmp_path / "a.pt"))
    own = model.backbone.state_dict()
    assert set(state) - set(own) == {k for k in state if k.startswith(("conv1.", "bn1."))}
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_a_classifier_of_another_width_is_not_loaded(tmp_path: Path) -> None:
    state = rgb_network(classes=1000).state_dict()
    model = network(pretrained=save_state(state, tmp_path / "a.safetensors"), classes=7)
    own = model.state_dict()
    assert own["fc.weight"].shape == (7, 512)
    same = [key for key in own if not key.startswith("fc.")]
    assert all(torch.equal(own[key], state[key]) for key in same)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = save_state({"trunk.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with user_error("model.pretrained", "none of the 1 tensors"):
        network(stem=spec("reconstruction"), pretrained=file)
    with user_error("model.pretrained", "none.pt"):
        network(pretrained=tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["resnet35", "vgg16", "vit_base_patch16_224"])
def test_only_timms_resnets(name: str) -> None:
    with user_error("model.name", name, "resnet34"):
        network(name)


def test_drop_rates_reach_the_network() -> None:
    model = network(drop_rate=0.25, drop_path_rate=0.5, stem=spec("block_stem"))
    assert model.backbone.drop_rate == 0.25
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.5)
