from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from research.batch import ClassificationBatch
from research.compression.blocks import Blocks
from research.compression.dct import rgb_to_ycbcr, ycbcr_to_rgb
from research.compression.selection import Selection, select_frequencies
from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD, StemSpec
from research.data.transforms import CoefficientTransform
from research.models.resnet import resnet
from tests.conftest import as_if_trained, save_state, user_error

VARIANTS = ("reconstruction", "block_stem", "luma_fusion", "luma_fusion_pruned", "late_concat")
ALL = tuple(range(64))


def spec(
    variant: str, window: int = 4, range_: str = "full", refinement: str | None = "blocks"
) -> StemSpec:
    kept = select_frequencies(window, "corner")
    return StemSpec(variant, Selection(kept, kept), range_, refinement)


def network(
    name: str = "resnet18",
    stem: StemSpec | None = None,
    *,
    classes: int = 5,
    pretrained: Path | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layers: list[int] | None = None,
    widths: list[int] | None = None,
) -> nn.Module:
    given = None if pretrained is None else str(pretrained)
    return resnet(name, classes, given, drop_rate, drop_path_rate, layers, widths, stem)


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
        for refinement, size in (("blocks", 8), ("pixels", 1)):
            own = 2 * 9 * 3 * size**2 * 32 + 2 * 32
            stem = spec("reconstruction", refinement=refinement)
            assert parameters(network("resnet34", stem)) == whole + own
        assert parameters(network("resnet34", spec("reconstruction", refinement=None))) == whole


def rgb_network(classes: int = 5, seed: int = 0) -> nn.Module:
    """ResNet-18 on RGB with weights and running statistics as if trained."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("resnet18", num_classes=classes)
    as_if_trained(model)
    return model.eval()


@pytest.mark.parametrize(
    ("suffix", "refinement"), [(".safetensors", "blocks"), (".pt", "pixels"), (".pt", None)]
)
@pytest.mark.parametrize("range_", ["full", "studio"])
@torch.no_grad()
def test_reconstruction_starts_as_the_rgb_network(
    tmp_path: Path, suffix: str, refinement: str | None, range_: str
) -> None:
    rgb = rgb_network()
    file = save_state(rgb.state_dict(), tmp_path / f"rgb{suffix}")
    stem = spec("reconstruction", 8, range_, refinement)
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


LATE_STEM = 9 * 16 * 64 + 2 * 64 + 9 * 32 * 64 + 2 * 64 + (256 + 64) * 256 + 2 * 256
"""Parameters of the stem of ``late_concat`` for ResNet-34 at window 4: luma, chroma, join."""


def stages_of_resnet34(*depths: int, widths: tuple[int, ...] = (64, 128, 256, 512)) -> int:
    """Parameters of the stages, counted by hand: two 3×3 convolutions and two norms in a block."""
    total, inputs = 0, 64
    for width, depth in zip(widths, depths, strict=True):
        for block in range(depth):
            before = width if block else inputs
            total += 9 * before * width + 9 * width * width + 2 * 2 * width
            if before != width:
                total += before * width + 2 * width  # the shortcut
        inputs = width if depth else inputs
    return total


def test_parameters_of_late_concat_and_of_the_controls_are_those_counted_by_hand() -> None:
    classifier, rgb_stem = 512 * 1000 + 1000, 3 * 64 * 49 + 2 * 64
    with torch.device("meta"):
        assert parameters(network("resnet34", classes=1000)) == (
            rgb_stem + stages_of_resnet34(3, 4, 6, 3) + classifier
        )
        trunk = stages_of_resnet34(0, 2, 6, 3) + classifier
        late = network("resnet34", spec("late_concat"), classes=1000)
        assert parameters(late) == LATE_STEM + trunk
        control = network("resnet34", classes=1000, layers=[0, 2, 6, 3])
        assert parameters(control) == rgb_stem + trunk
        whole = network("resnet34", spec("late_concat"), classes=1000, layers=[0, 4, 6, 3])
        assert parameters(whole) == (LATE_STEM + stages_of_resnet34(0, 4, 6, 3) + classifier)
        # Of the pruned variant at window 4.
        widths = [32, 64, 128, 256]
        pruned = network("resnet34", classes=1000, layers=[2, 2, 3, 2], widths=widths)
        assert parameters(pruned) == (
            rgb_stem + (256 + 1) * 1000 + stages_of_resnet34(2, 2, 3, 2, widths=(32, 64, 128, 256))
        )


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        ("late_concat", {"layers": [0, 2, 6, 3]}),
        ("luma_fusion_pruned", {"layers": [2, 2, 3, 2], "widths": [32, 64, 128, 256]}),
    ],
)
@pytest.mark.parametrize("name", ["resnet34", "resnet50d", "seresnext50_32x4d", "wide_resnet50_2"])
def test_the_trunk_of_the_rgb_control_is_that_of_the_variant(
    variant: str, sizes: dict[str, list[int]], name: str
) -> None:
    with torch.device("meta"):
        trunk = network(name, spec(variant)).backbone.state_dict()
        control = network(name, **sizes).state_dict()
    own_stem = ("conv1.", "bn1.", "maxpool.")
    assert {key: value.shape for key, value in trunk.items()} == {
        key: value.shape for key, value in control.items() if not key.startswith(own_stem)
    }


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet26d", "resnetblur18", "resnetaa34d", "seresnet18", "resnet50_gn"]
)
@torch.no_grad()
def test_stage_2_of_late_concat_has_no_stride(name: str) -> None:
    # The first stage of a ResNet has none: one whose first stage is as large as stage 2 here.
    late = network(name, spec("late_concat"))
    as_if_trained(late)
    stage = late.eval().backbone.layer2
    widths = {"resnet26d": 512, "resnet50_gn": 512}.get(name, 128)
    expansion = stage[0].expansion
    reference = timm.create_model(
        name, layers=(len(stage), 1, 1, 1), channels=(widths // expansion, 64, 64, 64)
    ).layer1
    reference.load_state_dict(stage.state_dict())
    features = torch.randn(2, 64, 6, 6)
    torch.testing.assert_close(stage(features), reference.eval()(features))
    assert stage(features).shape == (2, widths, 6, 6)


@pytest.mark.parametrize(("luma", "chroma"), [(10, 5), (10, 0), (0, 3)])
@torch.no_grad()
def test_chroma_joins_after_the_first_block_of_stage_3(luma: int, chroma: int) -> None:
    selection = Selection.from_settings(4, "zigzag", count_luma=luma, count_chroma=chroma)
    model = network("resnet18", StemSpec("late_concat", selection, "full"))
    as_if_trained(model)
    stem, trunk = model.eval().stem, model.backbone
    y, cbcr = torch.randn(2, luma, 8, 8), torch.randn(2, 2, chroma, 4, 4)
    parts = []
    if luma:
        # One block of stage 2; of the two of stage 3, the first has the stride.
        assert len(trunk.layer2) == 1
        parts.append(trunk.layer3[0](trunk.layer2(stem.luma(y))))
        assert parts[0].shape == (2, 256, 4, 4)
    if chroma:
        # Cb, then Cr, each with all of its frequencies.
        parts.append(stem.chroma(torch.cat([cbcr[:, 0], cbcr[:, 1]], dim=1)))
        assert parts[-1].shape == (2, 64, 4, 4)
    joined = stem.joined(torch.cat(parts, dim=1)) if chroma else parts[0]
    pooled = trunk.layer4(trunk.layer3[1](joined)).mean((2, 3))
    torch.testing.assert_close(model(Blocks(y, cbcr)), trunk.fc(pooled))
    unused = [name for name, _ in model.named_parameters() if name.startswith("backbone.layer1")]
    assert unused == []


def test_late_concat_keeps_the_pretrained_weights_of_its_stages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = rgb_network().state_dict()
    with caplog.at_level("INFO"):
        model = network(
            stem=spec("late_concat"), pretrained=save_state(state, tmp_path / "a.safetensors")
        )
    own = model.backbone.state_dict()
    gone = {key for key in state if key.startswith(("conv1.", "bn1.", "layer1.", "layer2.1."))}
    assert set(state) - set(own) == gone
    assert all(torch.equal(own[key], state[key]) for key in own)
    assert f"loaded {len(own)} of {len(model.state_dict())} tensors" in caplog.text
    assert "not in the source: stem.luma.0.weight" in caplog.text
    assert "unused: bn1." in caplog.text


@pytest.mark.parametrize("late", [True, False])
def test_the_first_block_of_bottlenecks_starts_anew_without_stage_1(
    late: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    state = network("resnet26").state_dict()
    file = save_state(state, tmp_path / "a.safetensors")
    with caplog.at_level("INFO"):
        if late:
            own = network("resnet26", spec("late_concat"), pretrained=file).backbone.state_dict()
        else:
            own = network("resnet26", layers=[0, 1, 2, 2], pretrained=file).state_dict()
    anew = {"layer2.0.conv1.weight", "layer2.0.downsample.0.weight"}
    assert {key for key in own if own[key].shape != state[key].shape} == anew
    assert all(torch.equal(own[key], state[key]) for key in own if key not in anew)
    assert "layer2.0.conv1.weight: 128 × 256 × 1 × 1 in the source, 128 × 64 × 1 × 1" in caplog.text


def test_drop_path_grows_over_the_blocks_that_are_left() -> None:
    model = network("resnet34", spec("late_concat"), drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.3 * index / 10 for index in range(1, 11)])


def test_layers_of_a_network_with_a_stem_are_those_of_its_backbone() -> None:
    with torch.device("meta"):
        plain = network("resnet34", layers=[0, 2, 6, 3])
        model = network("resnet34", spec("late_concat"))
    theirs = group_parameters(plain, plain.group_matcher(coarse=False), reverse=True)
    ours = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    stages = {name: index for name, index in theirs.items() if name.startswith(("layer", "fc"))}
    assert {f"backbone.{name}": index for name, index in stages.items()} == {
        name: index for name, index in ours.items() if name.startswith("backbone.")
    }
    assert {index for name, index in ours.items() if name.startswith("stem.")} == {0}


@pytest.mark.parametrize("sizes", [{"layers": [0, 4, 6, 3]}, {"widths": [64, 64, 64, 64]}])
def test_sizes_of_channel_pruned_networks_are_fixed(sizes: dict[str, list[int]]) -> None:
    with user_error("model.name", "ecaresnet50d_pruned", "resnet50"):
        network("ecaresnet50d_pruned", **sizes)


def test_sizes_that_timm_cannot_build() -> None:
    with user_error("model.name", "resnet50_gn", "channels (16, 16, 16, 16)"):
        network("resnet50_gn", widths=[16, 16, 16, 16])


@pytest.mark.whole
def test_every_resnet_of_timm_reads_late_concat() -> None:
    with torch.device("meta"), torch.no_grad():
        for name in timm.list_models(module="resnet"):
            model = network(name, spec("late_concat")).eval()
            assert model(blocks(4, size=32)).shape == (2, 5), name
