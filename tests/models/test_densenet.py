from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from research.compression.blocks import Blocks
from research.compression.selection import Selection, select_frequencies
from research.compression.stems import StemSpec
from research.config.options import option_node
from research.models.densenet import densenet
from tests.conftest import as_if_trained

# Of shared knowledge on the architecture, counted once with torchvision's class.
PUBLISHED = {
    ("densenet121", "imagenet"): {1000: 7_978_856, 100: 7_056_356, 10: 6_964_106},
    ("densenet169", "imagenet"): {1000: 14_149_480, 100: 12_650_980, 10: 12_501_130},
    ("densenet201", "imagenet"): {1000: 20_013_928, 100: 18_285_028, 10: 18_112_138},
    ("densenet264", "imagenet"): {1000: 33_337_704, 100: 30_917_604, 10: 30_675_594},
    ("densenet121", "cifar"): {100: 7_048_548, 10: 6_956_298},
    ("densenet169", "cifar"): {100: 12_643_172, 10: 12_493_322},
    ("densenet201", "cifar"): {100: 18_277_220, 10: 18_104_330},
    ("densenet264", "cifar"): {100: 30_909_796, 10: 30_667_786},
    ("densenet_bc_100_12", "cifar"): {100: 800_032, 10: 769_162},
    ("densenet_bc_250_24", "cifar"): {100: 15_480_556, 10: 15_324_406},
    ("densenet_bc_190_40", "cifar"): {100: 25_821_620, 10: 25_624_430},
}
VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned")


def configured(option: str, classes: int, size: int = 32, **changes: Any) -> nn.Module:
    """The model of ``conf/model/OPTION.yaml``, filled in as ``build.model`` does."""
    filled = {"num_classes": classes, "image_size": size}
    settings = {k: v for k, v in option_node("model", option).items() if k != "_target_"}
    return densenet(**{**settings, **filled, **changes})


def tiny(classes: int = 5, **changes: Any) -> nn.Module:
    """A network of thousands of parameters."""
    sizes = {"block_layers": (2, 2, 2), "growth_rate": 4, "initial_features": 8}
    return configured("densenet121", classes, **(sizes | changes))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("option", "stem"), PUBLISHED)
def test_parameters_are_as_many_as_published(option: str, stem: str) -> None:
    with torch.device("meta"):
        model = configured(option, 10, stem=stem)
        for classes, count in PUBLISHED[option, stem].items():
            model.classifier = nn.Linear(model.classifier.in_features, classes)
            assert parameters(model) == count
        few = configured(option, 3, stem=stem, block_layers=[1])
    assert few.classifier.out_features == 3


@pytest.mark.parametrize(
    ("layers", "growth"),
    [
        (40, 12),
        (100, 12),
        *(pytest.param(*sizes, marks=pytest.mark.long) for sizes in ((250, 24), (190, 40))),
    ],
)
def test_the_papers_networks_have_their_depth_and_growth(layers: int, growth: int) -> None:
    with torch.device("meta"):
        model = configured(f"densenet_bc_{layers}_{growth}", 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == layers  # and the classifier
    assert convolutions[0].out_channels == 2 * growth
    assert {m.out_channels for m in convolutions[1:] if m.kernel_size == (3, 3)} == {growth}
    assert {m.stride for m in convolutions} == {(1, 1)}
    # Each layer's weights from the definition, without any library.
    features, expected = 2 * growth, 27 * 2 * growth
    for block in range(3):
        for _ in range((layers - 4) // 6):
            expected += 2 * features + 4 * growth * features
            expected += 8 * growth + 36 * growth**2
            features += growth
        if block < 2:
            expected += 2 * features + features * (features // 2)
            features //= 2
    assert parameters(model) == expected + 2 * features + 10 * features + 10


@pytest.mark.long
@pytest.mark.parametrize(
    ("depth", "gmac"), [("121", 2.83), ("169", 3.36), ("201", 4.29), ("264", 5.75)]
)
def test_multiply_adds_are_those_published(depth: str, gmac: float) -> None:
    with torch.device("meta"):
        assert macs(configured(f"densenet{depth}", 1000, 224), 224) / 1e9 == pytest.approx(
            gmac, abs=0.01
        )


@pytest.mark.parametrize(("stem", "gmac"), [("imagenet", 0.058), ("cifar", 0.888)])
def test_the_cifar_stem_costs_fifteen_times_as_much(stem: str, gmac: float) -> None:
    with torch.device("meta"):
        model = configured("densenet121", 10, stem=stem)
        assert macs(model, 32) / 1e9 == pytest.approx(gmac, abs=0.0006)


def macs(model: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(
    "name",
    [
        "densenet121",
        *(pytest.param(f"densenet{depth}", marks=pytest.mark.long) for depth in (169, 201)),
    ],
)
@torch.no_grad()
def test_torchvisions_weights_load_strictly_and_give_its_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = models.get_model(name, weights=None, num_classes=10)
    as_if_trained(theirs)
    with torch.device("meta"):
        ours = configured(name, 10, 224)
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.eval()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.eval()(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stem", "size", "sides"),
    [
        ("cifar", 96, [96, 48, 24]),
        ("imagenet", 32, [8, 4, 2]),
        ("auto", 32, [32, 16, 8]),
        ("auto", 64, [64, 32, 16]),
        ("auto", 65, [17, 8, 4]),
        ("auto", 96, [24, 12, 6]),
    ],
)
def test_the_stem_sets_the_resolution_of_the_blocks(stem: str, size: int, sides: list[int]) -> None:
    model = tiny(size=size, stem=stem)
    seen: list[int] = []
    for name, module in model.features.named_children():
        if name.startswith("denseblock"):
            module.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[-1]))
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)
    assert seen == sides


def test_dropout_stands_after_the_last_convolution_of_each_layer() -> None:
    model = tiny(dropout=0.5)
    seen: list[Tensor] = []
    layers = [m for n, m in model.named_modules() if n.split(".")[-1].startswith("denselayer")]
    for layer in layers:
        layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    torch.manual_seed(0)
    model(torch.randn(4, 3, 32, 32))
    assert len(seen) == 6
    assert all(0.4 < (output == 0).float().mean() < 0.6 for output in seen[:4])
    seen.clear()
    model.eval()(torch.randn(4, 3, 32, 32))
    assert not any((output == 0).any() for output in seen)


def test_memory_efficient_learns_the_same() -> None:
    torch.manual_seed(0)
    plain = tiny(size=32).double()
    saving = tiny(size=32, memory_efficient=True).double()
    saving.load_state_dict(plain.state_dict())
    images, labels = torch.randn(4, 3, 32, 32).double(), torch.arange(4)
    for model in (plain, saving):
        nn.functional.cross_entropy(model(images), labels).backward()
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    other = saving.state_dict()
    for name, value in plain.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, other[name], msg=name)


def spec(variant: str, window: int = 4) -> StemSpec:
    kept = select_frequencies(window, "corner")
    return StemSpec(variant, Selection(kept, kept), "full", "blocks")


def noise(window: int, count: int, size: int) -> Blocks:
    kept, grid = window * window, size // 8
    return Blocks(
        torch.randn(count, kept, grid, grid), torch.randn(count, 2, kept, grid // 2, grid // 2)
    )


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_behind_every_stem(variant: str, stem: str) -> None:
    torch.manual_seed(0)
    model = tiny(size=64, stem=stem, coefficients=spec(variant))
    own = [n for n, _ in model.named_parameters() if n.startswith("backbone.features.conv0")]
    assert bool(own) == (variant == "reconstruction")
    inputs = noise(4, 4, 64)
    solver = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):  # the refinement before a layer that starts at zero follows a step later
        solver.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.arange(4)).backward()
        solver.step()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.long
@pytest.mark.parametrize("option", ["densenet121", "densenet_bc_100_12"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_paper_sizes_take_every_stem(option: str, variant: str) -> None:
    # Autocast, which the decoder turns off, knows no meta device.
    with torch.device("cpu" if variant == "reconstruction" else "meta"), torch.no_grad():
        model = configured(option, 7, coefficients=spec(variant)).eval()
        assert model(noise(4, 2, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("window", "growth", "first", "layers"),
    [
        (1, 4, 8, (1, 2, 3, 2)),
        (2, 8, 16, (2, 3, 6, 4)),
        (4, 16, 32, (3, 6, 12, 8)),
        (8, 32, 64, (6, 12, 24, 16)),
    ],
)
def test_the_pruned_trunk_scales_in_growth_width_and_depth(
    window: int, growth: int, first: int, layers: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        model = configured("densenet121", 7, coefficients=spec("luma_fusion_pruned", window))
    blocks = [model.backbone.features.get_submodule(f"denseblock{i}") for i in range(1, 5)]
    assert tuple(len(list(block.children())) for block in blocks) == layers
    assert blocks[0].denselayer1.conv1.in_channels == first
    assert blocks[0].denselayer1.conv2.out_channels == growth
    assert math.isclose(spec("luma_fusion_pruned", window).trunk_scale, window / 8)
