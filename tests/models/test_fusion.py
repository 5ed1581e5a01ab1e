from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from research.models import fusion
from research.models.fusion import (
    CrossAttention,
    FeatureFusionModule,
    FeatureRectifyModule,
    norm_layer,
    stage_fusion,
)
from tests.conftest import as_if_trained, user_error

DIM, HEADS, HEIGHT, WIDTH = 4, 2, 3, 2
Array = np.ndarray


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, DIM, HEIGHT, WIDTH), torch.randn(2, DIM, HEIGHT, WIDTH)


def scattered(module: nn.Module) -> nn.Module:
    """Every parameter away from its start, and statistics with which norms do something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    as_if_trained(module)
    return module.double().eval()


class Slow:
    """CMX's formulae, number by number, on the weights of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {key: value.numpy() for key, value in module.state_dict().items()}

    def affine(self, name: str, vector: Array) -> Array:
        """A linear layer, or a 1×1 convolution at one position."""
        weight = self.state[f"{name}.weight"].reshape(-1, len(vector))
        bias = self.state.get(f"{name}.bias", np.zeros(len(weight)))
        return np.array([row @ vector + b for row, b in zip(weight, bias, strict=True)])

    def layer_norm(self, name: str, vector: Array) -> Array:
        spread = np.sqrt(((vector - vector.mean()) ** 2).mean() + 1e-5)
        scaled = (vector - vector.mean()) / spread
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def batch_norm(self, name: str, vector: Array) -> Array:
        mean, variance = (self.state[f"{name}.running_{kind}"] for kind in ("mean", "var"))
        scaled = (vector - mean) / np.sqrt(variance + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def rectify(self, rgb: Array, x: Array) -> tuple[Array, Array]:
        """One frame, [C, H, W] each: equations 1-4."""
        both = np.concatenate([rgb, x])
        pooled = [values.mean() for values in both] + [values.max() for values in both]
        hidden = np.maximum(self.affine("channel_weights.mlp.0", np.array(pooled)), 0)
        of_channels = sigmoid(self.affine("channel_weights.mlp.2", hidden))
        out_rgb, out_x = rgb.copy(), x.copy()
        for row in range(HEIGHT):
            for column in range(WIDTH):
                position = both[:, row, column]
                hidden = np.maximum(self.affine("spatial_weights.mlp.0", position), 0)
                of_rgb, of_x = sigmoid(self.affine("spatial_weights.mlp.2", hidden))
                for c in range(DIM):
                    a, b = rgb[c, row, column], x[c, row, column]
                    out_rgb[c, row, column] += 0.5 * of_channels[DIM + c] * b + 0.5 * of_x * b
                    out_x[c, row, column] += 0.5 * of_channels[c] * a + 0.5 * of_rgb * a
        return out_rgb, out_x

    def context(self, name: str, tokens: Array) -> Array:
        """[heads, d, d] of a stream's tokens [N, C]: softmax(kᵀv / √d) over the key's channels."""
        size = DIM // HEADS
        table = np.zeros((HEADS, size, size))
        for token in tokens:
            projected = self.affine(name, token)
            key, value = projected[:DIM].reshape(HEADS, size), projected[DIM:].reshape(HEADS, size)
            for head in range(HEADS):
                for i in range(size):
                    for j in range(size):
                        table[head, i, j] += key[head, i] * value[head, j] / np.sqrt(size)
        powers = np.exp(table)
        return powers / powers.sum(1, keepdims=True)

    def attend(self, token: Array, table: Array) -> Array:
        query = token.reshape(HEADS, -1)
        return np.concatenate([query[head] @ table[head] for head in range(HEADS)])

    def fuse(self, rgb: Array, x: Array) -> Array:
        """One frame, [C, H, W] each: equations 5-8."""
        streams = [values.reshape(DIM, -1).T for values in (rgb, x)]
        projected = [
            np.array([np.maximum(self.affine(f"cross.channel_proj{i + 1}", t), 0) for t in tokens])
            for i, tokens in enumerate(streams)
        ]
        skips = [values[:, :DIM] for values in projected]
        queries = [values[:, DIM:] for values in projected]
        tables = [self.context(f"cross.cross_attn.kv{i + 1}", queries[i]) for i in range(2)]
        out = []
        for i, tokens in enumerate(streams):
            rows = []
            for position, token in enumerate(tokens):
                result = self.attend(queries[i][position], tables[1 - i])
                joined = np.concatenate([skips[i][position], result])
                added = token + self.affine(f"cross.end_proj{i + 1}", joined)
                rows.append(self.layer_norm(f"cross.norm{i + 1}", added))
            out.append(np.array(rows))
        return self.embed(np.concatenate(out, 1).reshape(HEIGHT, WIDTH, 2 * DIM))

    def embed(self, both: Array) -> Array:
        first = np.array(
            [
                [self.affine("channel_emb.channel_embed.0", position) for position in row]
                for row in both
            ]
        )
        padded = np.pad(first, ((1, 1), (1, 1), (0, 0)))
        kernel = self.state["channel_emb.channel_embed.1.weight"][:, 0]
        bias = self.state["channel_emb.channel_embed.1.bias"]
        out = np.zeros((DIM, HEIGHT, WIDTH))
        for row in range(HEIGHT):
            for column in range(WIDTH):
                near = padded[row : row + 3, column : column + 3]
                seen = np.array([(near[..., c] * kernel[c]).sum() + bias[c] for c in range(DIM)])
                seen = self.affine("channel_emb.channel_embed.3", np.maximum(seen, 0))
                seen = self.batch_norm("channel_emb.channel_embed.4", seen)
                residual = self.affine("channel_emb.residual", both[row, column])
                out[:, row, column] = self.batch_norm("channel_emb.norm", residual + seen)
        return out


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def test_rectification_is_the_papers() -> None:
    rgb, x = (values.double() for values in pair())
    module = scattered(FeatureRectifyModule(DIM))
    slow = Slow(module)
    with torch.no_grad():
        result = module(rgb, x)
    for frame in range(2):
        expected = slow.rectify(rgb[frame].numpy(), x[frame].numpy())
        for ours, theirs in zip(result, expected, strict=True):
            np.testing.assert_allclose(ours[frame].numpy(), theirs, rtol=1e-6, atol=1e-9)


def test_fusion_is_the_papers() -> None:
    rgb, x = (values.double() for values in pair(1))
    module = scattered(FeatureFusionModule(DIM, HEADS, nn.BatchNorm2d))
    slow = Slow(module)
    with torch.no_grad():
        result = module(rgb, x)
    for frame in range(2):
        expected = slow.fuse(rgb[frame].numpy(), x[frame].numpy())
        np.testing.assert_allclose(result[frame].numpy(), expected, rtol=1e-6, atol=1e-9)


def test_names_are_those_of_the_authors_code() -> None:
    modules = nn.ModuleDict(
        {"FRM": FeatureRectifyModule(4), "FFM": FeatureFusionModule(4, 1, nn.BatchNorm2d)}
    )
    layers = {name.rpartition(".")[0] for name, _ in modules.named_parameters()}
    assert layers == {
        *(f"FRM.{kind}_weights.mlp.{i}" for kind in ("channel", "spatial") for i in (0, 2)),
        *(f"FFM.cross.{part}{i}" for part in ("channel_proj", "end_proj", "norm") for i in (1, 2)),
        *(f"FFM.cross.cross_attn.kv{i}" for i in (1, 2)),
        *(f"FFM.channel_emb.channel_embed.{i}" for i in (0, 1, 3, 4)),
        "FFM.channel_emb.residual",
        "FFM.channel_emb.norm",
    }
    bare = {name for name in layers if f"{name}.bias" not in modules.state_dict()}
    assert bare == {*(f"FFM.cross.cross_attn.kv{i}" for i in (1, 2)), "FFM.channel_emb.residual"}


def test_many_tokens_do_not_overflow_in_half_precision() -> None:
    """kᵀv is 4096 · 10 · 10 here, and float16 ends at 65504."""
    layer = CrossAttention(8, 1)
    with torch.no_grad():
        for kv in (layer.kv1, layer.kv2):
            kv.weight.copy_(torch.eye(8).repeat(2, 1))
    tokens = torch.full((1, 4096, 8), 10.0)
    with torch.autocast("cpu", torch.float16):
        result = layer(tokens.half(), tokens.half())
    for stream in result:
        # Equal keys share each value's column alike: a query of 10s finds 8 · 10 / 8.
        torch.testing.assert_close(stream.float(), tokens, rtol=1e-2, atol=0)


def test_sum_and_concat_do_not_change_the_streams() -> None:
    rgb, x = pair()
    for name in ("sum", "concat"):
        rectify, _ = stage_fusion(name, DIM, HEADS, nn.BatchNorm2d)
        assert rectify(rgb, x) == (rgb, x)
        assert not list(rectify.parameters())


def test_sum_adds_and_has_no_parameters() -> None:
    rgb, x = pair()
    _, fuse = stage_fusion("sum", DIM, HEADS, nn.BatchNorm2d)
    assert torch.equal(fuse(rgb, x), rgb + x)
    assert not list(fuse.parameters())


def test_concat_weighs_all_channels_of_both() -> None:
    rgb, x = pair()
    _, fuse = stage_fusion("concat", DIM, HEADS, nn.BatchNorm2d)
    weight, bias = (value.detach() for value in fuse.state_dict().values())
    expected = torch.einsum("oc,bchw->bohw", weight[:, :DIM, 0, 0], rgb)
    expected += torch.einsum("oc,bchw->bohw", weight[:, DIM:, 0, 0], x)
    torch.testing.assert_close(fuse(rgb, x), expected + bias[:, None, None])


@pytest.mark.parametrize("name", fusion.NORMS)
@pytest.mark.parametrize("dim", [32, 64, 128, 160, 256, 320, 512])
def test_every_norm_takes_every_width(name: str, dim: int) -> None:
    features = torch.randn(2, dim, 2, 2)
    assert norm_layer(name)(dim)(features).shape == features.shape


def test_group_norm_uses_each_frame_separately() -> None:
    features = 5 + 3 * torch.randn(2, 32, 4, 4)
    norm = norm_layer("group")(32)
    torch.testing.assert_close(norm(features)[:1], norm(features[:1]))
    groups = norm(features).unflatten(1, (2, 16)).flatten(2)
    torch.testing.assert_close(groups.mean(2), torch.zeros(2, 2), atol=1e-5, rtol=0)


def test_a_frozen_norm_loads_statistics_and_does_not_update_them() -> None:
    trained = nn.BatchNorm2d(4)
    as_if_trained(trained)
    frozen = norm_layer("frozen")(4)
    frozen.load_state_dict(trained.state_dict())
    features = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen.train()(features), trained.eval()(features))
    assert not list(frozen.parameters())


def test_an_unknown_norm_is_refused() -> None:
    with user_error("model.norm", "layer", "batch, frozen, group"):
        norm_layer("layer")
