from __future__ import annotations

import math
import re

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from research.models.mit import STEM, VARIANTS, Attention, MixTransformer, convert_state_dict
from research.models.pretrained import load_matching

SMALL = {"dims": (8, 16, 20, 32), "depths": (1, 2, 1, 1)}
PARTS_OF_A_BLOCK = {
    "layer_norm_1": "norm1",
    "attention.self.query": "attn.q",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "layer_norm_2": "norm2",
    "mlp.dense1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.dense2": "mlp.fc2",
}


def small(channels: int = 3, drop_path_rate: float = 0.0) -> MixTransformer:
    return MixTransformer(
        channels, **SMALL, heads=(1, 2, 5, 8), drop_path_rate=drop_path_rate
    ).eval()


def scattered(network: nn.Module) -> nn.Module:
    """Every parameter away from its start, so that none of them could be forgotten unseen."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("b0", 3.32), ("b1", 13.15), ("b2", 24.20), ("b4", 60.84), ("b5", 81.44)],
)
def test_one_stream_has_the_published_number_of_parameters(variant: str, millions: float) -> None:
    with torch.device("meta"):
        network = MixTransformer(3, VARIANTS[variant].dims, VARIANTS[variant].depths)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 2) == millions


def test_names_and_shapes_are_those_of_the_authors_files() -> None:
    with torch.device("meta"):
        state = MixTransformer(3, VARIANTS["b0"].dims, VARIANTS["b0"].depths).state_dict()
    result = {
        key: tuple(value.shape)
        for key, value in state.items()
        if re.match(r"(patch_embed2|block2\.1|norm2)\.", key)
    }
    assert result == {
        "patch_embed2.proj.weight": (64, 32, 3, 3),
        "patch_embed2.proj.bias": (64,),
        "patch_embed2.norm.weight": (64,),
        "patch_embed2.norm.bias": (64,),
        "block2.1.norm1.weight": (64,),
        "block2.1.norm1.bias": (64,),
        "block2.1.attn.q.weight": (64, 64),
        "block2.1.attn.q.bias": (64,),
        "block2.1.attn.kv.weight": (128, 64),
        "block2.1.attn.kv.bias": (128,),
        "block2.1.attn.proj.weight": (64, 64),
        "block2.1.attn.proj.bias": (64,),
        "block2.1.attn.sr.weight": (64, 64, 4, 4),
        "block2.1.attn.sr.bias": (64,),
        "block2.1.attn.norm.weight": (64,),
        "block2.1.attn.norm.bias": (64,),
        "block2.1.norm2.weight": (64,),
        "block2.1.norm2.bias": (64,),
        "block2.1.mlp.fc1.weight": (256, 64),
        "block2.1.mlp.fc1.bias": (256,),
        "block2.1.mlp.dwconv.dwconv.weight": (256, 1, 3, 3),
        "block2.1.mlp.dwconv.dwconv.bias": (256,),
        "block2.1.mlp.fc2.weight": (64, 256),
        "block2.1.mlp.fc2.bias": (64,),
        "norm2.weight": (64,),
        "norm2.bias": (64,),
    }
    assert state[STEM].shape == (32, 3, 7, 7)
    assert "block4.0.attn.sr.weight" not in state  # the last stage reduces nothing


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_the_explicit_softmax(reduction: int) -> None:
    torch.manual_seed(0)
    layer = scattered(Attention(12, 3, reduction))
    tokens = torch.randn(2, 4 * 6, 12)
    result = layer(tokens, torch.Size([4, 6]))
    torch.testing.assert_close(result, slow_attention(layer.state_dict(), "", tokens, 4, 6, 3))


def slow_attention(
    state: dict[str, Tensor], prefix: str, tokens: Tensor, height: int, width: int, heads: int
) -> Tensor:
    """One frame, one head, one token at a time."""

    def linear(name: str, inputs: Tensor) -> Tensor:
        return inputs @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    answers = []
    for frame in tokens:
        seen = frame
        if f"{prefix}sr.weight" in state:
            kernel = state[f"{prefix}sr.weight"]
            image = frame.reshape(height, width, -1).permute(2, 0, 1)[None]
            image = F.conv2d(image, kernel, state[f"{prefix}sr.bias"], stride=kernel.shape[-1])
            norm = (state[f"{prefix}norm.weight"], state[f"{prefix}norm.bias"])
            seen = F.layer_norm(image[0].flatten(1).T, kernel.shape[:1], *norm, eps=1e-5)
        query, both = linear("q", frame), linear("kv", seen)
        dim = query.shape[1]
        size = dim // heads
        answer = torch.empty_like(query)
        for head in range(heads):
            here = slice(head * size, (head + 1) * size)
            keys, values = both[:, :dim][:, here], both[:, dim:][:, here]
            for index, token in enumerate(query[:, here]):
                weights = (keys @ token / math.sqrt(size)).exp()
                answer[index, here] = (weights / weights.sum()) @ values
        answers.append(linear("proj", answer))
    return torch.stack(answers)


def test_a_whole_encoder_is_the_papers_formulae() -> None:
    torch.manual_seed(1)
    network = scattered(small())
    images = torch.randn(2, 3, 64, 40)
    state = network.state_dict()
    expected, maps = [], images
    for number, heads in enumerate((1, 2, 5, 8), 1):
        name = f"patch_embed{number}"
        stride = 4 if number == 1 else 2
        kernel = state[f"{name}.proj.weight"]
        maps = F.conv2d(
            maps, kernel, state[f"{name}.proj.bias"], stride, padding=kernel.shape[-1] // 2
        )
        height, width = maps.shape[-2:]

        def norm(name: str, tokens: Tensor, eps: float = 1e-6) -> Tensor:
            weights = (state[f"{name}.weight"], state[f"{name}.bias"])
            return F.layer_norm(tokens, tokens.shape[-1:], *weights, eps=eps)

        tokens = norm(f"{name}.norm", maps.flatten(2).mT, 1e-5)
        for index in range(SMALL["depths"][number - 1]):
            block = f"block{number}.{index}"
            token = norm(f"{block}.norm1", tokens)
            tokens = tokens + slow_attention(state, f"{block}.attn.", token, height, width, heads)
            inner = norm(f"{block}.norm2", tokens)
            inner = inner @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"]
            inner = F.conv2d(
                inner.mT.reshape(2, -1, height, width),
                state[f"{block}.mlp.dwconv.dwconv.weight"],
                state[f"{block}.mlp.dwconv.dwconv.bias"],
                padding=1,
                groups=inner.shape[-1],
            )
            inner = F.gelu(inner.flatten(2).mT)
            inner = inner @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"]
            tokens = tokens + inner
        maps = norm(f"norm{number}", tokens).mT.reshape(2, -1, height, width)
        expected.append(maps)
    for result, reference in zip(network(images), expected, strict=True):
        torch.testing.assert_close(result, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (45, 70), (32, 32)])
def test_maps_have_strides_4_to_32_rounded_up(size: tuple[int, int]) -> None:
    maps = small(2)(torch.randn(1, 2, *size))
    assert [tuple(result.shape) for result in maps] == [
        (1, dim, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        for dim, stride in zip(SMALL["dims"], (4, 8, 16, 32), strict=True)
    ]


def test_a_stage_runs_alone() -> None:
    torch.manual_seed(0)
    network, images = small(), torch.randn(1, 3, 64, 64)
    maps = network(images)
    torch.testing.assert_close(network.stage(2, maps[1]), maps[2])


def test_initialisation_is_that_of_the_authors() -> None:
    torch.manual_seed(0)
    network = MixTransformer(3, VARIANTS["b0"].dims, (1, 1, 1, 1))
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1), name
        elif isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[0, 0].numel() * len(layer.weight) / layer.groups
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15), name
        elif isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all(), name
        if getattr(layer, "bias", None) is not None:
            assert (layer.bias == 0).all(), name


def test_stochastic_depth_grows_linearly_through_all_stages() -> None:
    network = small(drop_path_rate=0.2)
    rates = [part.drop_prob for part in network.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def transformers_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same weights as transformers' ``save_pretrained`` writes them."""
    result = {}
    for stage, depth in enumerate(SMALL["depths"]):
        whole = {f"patch_embeddings.{stage}.proj": f"patch_embed{stage + 1}.proj"}
        whole[f"patch_embeddings.{stage}.layer_norm"] = f"patch_embed{stage + 1}.norm"
        whole[f"layer_norm.{stage}"] = f"norm{stage + 1}"
        for block in range(depth):
            for theirs, authors in PARTS_OF_A_BLOCK.items():
                whole[f"block.{stage}.{block}.{theirs}"] = f"block{stage + 1}.{block}.{authors}"
        for theirs, authors in whole.items():
            for kind in ("weight", "bias"):
                if f"{authors}.{kind}" in state:
                    result[f"{prefix}{theirs}.{kind}"] = state[f"{authors}.{kind}"]
        for block in range(depth):
            for kind in ("weight", "bias"):
                both = state[f"block{stage + 1}.{block}.attn.kv.{kind}"]
                inside = f"{prefix}block.{stage}.{block}.attention.self"
                dim = len(both) // 2
                result[f"{inside}.key.{kind}"] = both[:dim]
                result[f"{inside}.value.{kind}"] = both[dim:]
    return result


@pytest.mark.parametrize("prefix", ["segformer.encoder.", "encoder.", ""])
def test_names_of_transformers_are_converted(prefix: str) -> None:
    torch.manual_seed(0)
    state = scattered(small()).state_dict()
    result = convert_state_dict(transformers_state(state, prefix), None)
    assert result.keys() == state.keys()
    for key, value in result.items():
        assert torch.equal(value, state[key]), key


def test_names_of_the_authors_lose_a_prefix() -> None:
    state = small().state_dict()
    assert convert_state_dict(state, None).keys() == state.keys()
    behind = {f"backbone.{key}": value for key, value in state.items()}
    assert convert_state_dict(behind, None).keys() == state.keys()


def test_a_head_is_reported_as_unused() -> None:
    state = {**small().state_dict(), "head.weight": torch.ones(10, 32)}
    loaded = load_matching(small(), convert_state_dict(state, None))
    assert loaded.unused == ["head.weight"]
    assert not loaded.missing


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_adapted_stem_gives_the_same_output_for_grey_images(channels: int) -> None:
    torch.manual_seed(0)
    source = scattered(small())
    network = small(channels)
    loaded = load_matching(network, convert_state_dict(source.state_dict(), channels))
    assert not loaded.missing
    grey = torch.randn(2, 1, 64, 64)
    before = source(grey.expand(-1, 3, -1, -1))
    for result, reference in zip(network(grey.expand(-1, channels, -1, -1)), before, strict=True):
        torch.testing.assert_close(result, reference, atol=1e-4, rtol=1e-4)


def test_the_stem_of_rgb_is_not_changed() -> None:
    state = scattered(small()).state_dict()
    assert convert_state_dict(state, None)[STEM] is state[STEM]


def test_three_channels_other_than_rgb_get_equal_kernels() -> None:
    state = scattered(small()).state_dict()
    result = convert_state_dict(state, 3)[STEM]
    for channel in range(3):
        torch.testing.assert_close(result[:, channel], state[STEM].mean(1))
