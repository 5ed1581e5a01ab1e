"""Siamese networks: swapping the photos changes only the sign of the logit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from research.models import backbones
from research.models.siamese import PairMLP, Siamese, siamese_e2e, siamese_frozen
from tests.conftest import user_error

HEADS = ["bradley_terry", "mlp"]
SIZE = 64
KINDS = {"clip": 80, "quality": 6}


def seeded(model: Siamese, inputs: Tensor) -> Tensor:
    torch.manual_seed(3)
    return model(inputs).detach()


def images(head: str = "bradley_terry", name: str = "test_resnet", freeze: str = "none") -> Siamese:
    torch.manual_seed(0)
    return siamese_e2e(name, None, freeze, head, [16], 0.5, SIZE)


def step(model: nn.Module, inputs: Tensor) -> None:
    """A long step of training; one batch has one answer."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    F.binary_cross_entropy_with_logits(model(inputs), torch.ones(len(inputs))).backward()
    optimizer.step()


# -- antisymmetry --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    head=st.sampled_from(HEADS),
    sizes=st.lists(st.sampled_from([1, 4, 65, 130]), min_size=1, max_size=3),
    dims=st.lists(st.integers(1, 40), max_size=2),
    count=st.integers(1, 9),
    scale=st.sampled_from([1.0, 4.0]),
    training=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_swapped_photos_change_the_sign_and_nothing_else(
    head: str,
    sizes: list[int],
    dims: list[int],
    count: int,
    scale: float,
    training: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    named = {str(n): size for n, size in enumerate(sizes)}
    model = siamese_frozen(named, head, dims, 0.5).train(training)
    with torch.no_grad():
        for parameter in model.parameters():  # as large as training might make them
            parameter.mul_(scale)
    inputs = torch.randn(count, 2, sum(sizes))
    logits, swapped = seeded(model, inputs), seeded(model, inputs.flip(1))
    assert logits.shape == (count,)
    assert (logits + swapped).abs().max() <= 1e-6
    assert (logits.sigmoid() + swapped.sigmoid() - 1).abs().max() <= 1e-6
    assert torch.equal(seeded(model, inputs[:, :1].expand(-1, 2, -1)), torch.zeros(count))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_swapped_images_change_the_sign_and_nothing_else(
    name: str, head: str, trained: bool, training: bool
) -> None:
    model = images(head, name)
    inputs = torch.randn(3, 2, 3, SIZE, SIZE)
    if trained:
        before = seeded(model.eval(), inputs)
        step(model.train(), inputs)
        assert (seeded(model.eval(), inputs) - before).abs().max() > 1e-3
    model.train(training)
    logits, swapped = seeded(model, inputs), seeded(model, inputs.flip(1))
    assert (logits + swapped).abs().max() <= 1e-6
    assert logits.abs().min() > 1e-5


def test_the_drop_path_of_a_backbone_is_off() -> None:
    # The default of timm's Swin is drop_path_rate=0.1.
    usual = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    assert any(getattr(module, "drop_prob", 0) > 0 for module in usual.modules())
    network, width = backbones.create("swin_tiny_patch4_window7_224", 64)
    assert width == 768
    assert not any(getattr(module, "drop_prob", 0) > 0 for module in network.modules())


@pytest.mark.parametrize("head", HEADS)
def test_dropout_is_drawn_for_each_pair(head: str) -> None:
    torch.manual_seed(0)
    model = siamese_frozen({"one": 4}, head, [512], 0.5)
    pair = torch.randn(1, 2, 4)
    many = pair.expand(4000, -1, -1)
    logits = seeded(model.train(), many)
    assert logits.unique().numel() > 3000
    assert not torch.equal(logits, model(many))
    if head == "bradley_terry":  # linear in the masked features
        assert logits.mean().item() == pytest.approx(model.eval()(pair).item(), abs=0.02)


# -- scores --------------------------------------------------------------------------------------


def test_bradley_terry_is_a_difference_of_scores() -> None:
    torch.manual_seed(0)
    model = siamese_frozen(KINDS, "bradley_terry", [32], 0.5).eval()
    pairs = torch.randn(7, 2, 86)
    first, second = model.score(pairs[:, 0]), model.score(pairs[:, 1])
    torch.testing.assert_close(model(pairs), first - second)
    by_hand = model.tower.start(pairs[:, 0]) @ model.tower.layers[0].weight.T
    by_hand = (by_hand + model.tower.layers[0].bias).clamp(min=0) @ model.head.value.weight[0]
    torch.testing.assert_close(first, by_hand)


def test_the_mlp_scores_against_the_mean_embedding() -> None:
    torch.manual_seed(0)
    model = siamese_frozen({"one": 5}, "mlp", [], 0.0).train()
    batches = [torch.randn(n, 2, 5) for n in (4, 4, 4)]
    for batch in batches:
        model(batch)
    mean = torch.cat(batches).mean((0, 1))
    photos = torch.randn(6, 5)
    model.eval()
    expected = model(torch.stack([photos, mean.expand(6, -1)], 1))
    torch.testing.assert_close(model.score(photos), expected)
    model(batches[0])  # evaluation leaves it alone
    torch.testing.assert_close(model.head.mean, mean)
    assert "head.mean" in model.state_dict()


def test_the_mean_embedding_follows_later_batches() -> None:
    head = PairMLP(3, 0.0).train()
    for _ in range(300):
        head(torch.zeros(2, 3), torch.zeros(2, 3))
    for _ in range(100):
        head(torch.ones(2, 3), torch.ones(2, 3))
    assert head.mean[0].item() == pytest.approx(1 - 0.99**100, abs=1e-5)


def test_scores_of_images_are_those_of_pairs() -> None:
    model = images().eval()
    pairs = torch.randn(3, 2, 3, SIZE, SIZE)
    first, second = model.score(pairs[:, 0]), model.score(pairs[:, 1])
    torch.testing.assert_close(model(pairs), first - second, atol=1e-6, rtol=1e-4)
    assert first.shape == (3,)


def test_scores_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = siamese_frozen({"one": 64}, "bradley_terry", [32], 0.0).eval()
    photos = torch.randn(500, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.score(photos)
        logits = model(torch.stack([photos, photos.flip(0)], 1))
    assert scores.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(scores, model.score(photos))


# -- features ------------------------------------------------------------------------------------


def test_wide_features_are_projected() -> None:
    torch.manual_seed(0)
    start = siamese_frozen({"clip": 80, "quality": 6, "net": 64}, "mlp", [8], 0.0).tower.start
    inputs = torch.randn(3, 150)
    outputs = start(inputs)
    assert outputs.shape == (3, 64 + 6 + 64)
    torch.testing.assert_close(outputs[:, 64:], inputs[:, 80:])
    torch.testing.assert_close(outputs[:, :64], start.parts[0](inputs[:, :80]))
    alone = siamese_frozen({"clip": 80}, "mlp", [8], 0.0).tower.start
    assert torch.equal(alone(inputs[:, :80]), inputs[:, :80])


# -- freezing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "learns"),
    [
        ("test_resnet", ("layer4",)),
        ("test_vit", ("blocks.5", "norm")),
        ("test_efficientnet", ("blocks.4", "conv_head", "bn2")),
        ("test_convnext", ("stages.3", "norm_pre", "head")),
    ],
)
def test_partial_freezes_all_but_the_last_stage(name: str, learns: tuple[str, ...]) -> None:
    model = images(name=name, freeze="partial")
    for key, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad == key.startswith(learns), key
    assert all(p.requires_grad for part in (model.tower, model.head) for p in part.parameters())


def test_partial_of_vgg_does_not_freeze_the_last_convolutions() -> None:
    # The last stage that timm names is a pooling layer.
    with torch.device("meta"):
        network = timm.create_model("vgg16", num_classes=0)
    frozen = backbones.frozen_modules(network, "partial")
    convolutions = [m for m in network.features if isinstance(m, nn.Conv2d)]
    assert [m for m in frozen if isinstance(m, nn.Conv2d)] == convolutions[:10]
    assert network.pre_logits.fc1 not in frozen


@pytest.mark.parametrize(("freeze", "moved"), [("none", "all"), ("partial", "last"), ("full", "")])
def test_frozen_modules_do_not_change_in_training(freeze: str, moved: str) -> None:
    model = images(freeze=freeze).train()
    before = deepcopy(model.backbone.state_dict())
    step(model, torch.randn(4, 2, 3, SIZE, SIZE))
    after = model.backbone.state_dict()
    changed = {key.partition(".")[0] for key in after if not torch.equal(before[key], after[key])}
    every = {key.partition(".")[0] for key in after}
    assert changed == {"all": every, "last": {"layer4"}, "": set()}[moved]
    copied = deepcopy(model).train()  # as the moving average does
    norms = [m.training for m in copied.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norms) == (freeze == "none")
    assert any(norms) == (freeze != "full")


# -- layers, weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_backbones_layers_are_timms(name: str, coarse: bool) -> None:
    model = images(name=name)
    own = model.backbone
    theirs = group_parameters(own, own.group_matcher(coarse=coarse), reverse=True)
    ours = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert {key: ours[f"backbone.{key}"] for key in theirs} == theirs
    top = max(ours.values())
    assert {ours[key] for key in ours if not key.startswith("backbone.")} == {top}
    assert len({*theirs.values()}) > 2


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = timm.create_model("test_resnet", num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    model = siamese_e2e("test_resnet", f"{tmp_path}/net.pt", "none", "mlp", [], 0.0, SIZE)
    photo = torch.randn(2, 3, SIZE, SIZE)
    expected = theirs.eval().forward_head(theirs.forward_features(photo), pre_logits=True)
    torch.testing.assert_close(model.eval().backbone(photo), expected)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "key", "words"),
    [
        (lambda: images(head="mean"), "model.head", ("mean", "bradley_terry, mlp")),
        (lambda: images(freeze="half"), "model.freeze", ("half", "none, partial, full")),
        (lambda: images(name="resnet5"), "model.backbone", ("resnet5", "did you mean")),
        (
            lambda: siamese_e2e("test_vit", None, "none", "mlp", [], 0.0, 72),
            "model.backbone",
            ("test_vit", "dataset.image_size=72"),
        ),
        (
            lambda: backbones.frozen_modules(nn.Linear(2, 2), "partial"),
            "model.freeze",
            ("partial",),
        ),
    ],
)
def test_invalid_settings_are_refused(
    make: Callable[[], object], key: str, words: tuple[str, ...]
) -> None:
    with user_error(key, *words):
        make()
