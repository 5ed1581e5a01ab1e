from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from timm.models import group_parameters
from torch import Tensor

from research.models.mit import STEM, VARIANTS, MixTransformer
from tests.conftest import save_state, user_error
from tests.models.test_mit import scattered
from tests.models.test_rgbx import FUSIONS, SMALL, build, count, frames, small


def one_stream(channels: int = 3, variant: str = "b0") -> MixTransformer:
    return MixTransformer(channels, VARIANTS[variant].dims, VARIANTS[variant].depths)


@pytest.mark.parametrize("fusion", ["rgb_only", "x_only"])
def test_one_stream_has_one_encoder_and_no_fusion(fusion: str) -> None:
    with torch.device("meta"):
        model = build(fusion=fusion)
        stream = one_stream(3 if fusion == "rgb_only" else 2)
    assert count(model.encoder) == count(stream)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_which_streams_reach_the_output(fusion: str) -> None:
    encoder = small(fusion=fusion).eval().encoder
    images = frames()
    plain = encoder(images)
    for part, channels in (("rgb", slice(0, 3)), ("x", slice(3, 5))):
        changed = images.clone()
        changed[:, channels] += torch.randn(2, changed[:, channels].shape[1], 64, 64)
        alike = [torch.equal(a, b) for a, b in zip(plain, encoder(changed), strict=True)]
        assert alike == [fusion not in ("cross_attention", "sum", "concat", f"{part}_only")] * 4


def test_rectified_maps_enter_the_next_stage() -> None:
    """CMX: what one stream takes of the other at stage 1 reaches its own stage 2."""
    encoder = small().eval().encoder
    seen: dict[str, Tensor] = {}
    for name in ("rgb", "x"):
        embed = getattr(encoder, name).patch_embed2
        embed.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    images = frames()
    encoder(images)
    rectified = encoder.FRMs[0](
        encoder.rgb.stage(0, images[:, :3]), encoder.x.stage(0, images[:, 3:])
    )
    torch.testing.assert_close((seen["rgb"], seen["x"]), rectified)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_an_mit_are_loaded_into_both_streams(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    caplog.set_level(logging.INFO)
    state = scattered(one_stream()).state_dict()
    file = save_state({**state, "head.bias": torch.ones(3)}, tmp_path / f"mit_b0{suffix}")
    encoder = small(pretrained=str(file)).encoder
    for name, channels in (("rgb", 3), ("x", 2)):
        for key, value in encoder.get_submodule(name).state_dict().items():
            if name == "x" and key == STEM:
                value, wanted = value.sum(1), state[key].sum(1)
                torch.testing.assert_close(value, wanted)
            else:
                assert torch.equal(value, state[key]), (name, key)
        size = 3_319_392 - (3 - channels) * 32 * 49
        assert (
            f"model.pretrained={file}: stream {name}: loaded 176 of 176 tensors, {size:,} of "
            f"{size:,} parameters; unused: head.bias"
        ) in caplog.messages
    assert len(caplog.records) == 2


def test_weights_for_less_than_half_are_refused(tmp_path: Path) -> None:
    state = one_stream().state_dict()
    early = {key: value for key, value in state.items() if not re.match(r"\w+4\.", key)}
    file = str(save_state(early, tmp_path / "w.pth"))
    with user_error("model.pretrained", "too little", "not in the source: patch_embed4.proj"):
        small(pretrained=file, fusion="rgb_only")


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    file = save_state({STEM: torch.ones(64, 3, 7, 7)}, tmp_path / "mit_b1.pth")
    with user_error("model.pretrained", "none of the 1 tensors", "64 × 3 × 7 × 7"):
        small(pretrained=str(file))


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_libraries_have_no_mit(source: str) -> None:
    with user_error("model.pretrained", source):
        small(pretrained=source)


def test_layers_are_ordered_by_depth() -> None:
    with torch.device("meta"):
        model = build("b2")
    layer = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert layer["encoder.rgb.patch_embed1.proj.weight"] == 0
    for name in layer:
        if name.startswith("encoder.x."):
            assert layer[name] == layer[name.replace("encoder.x.", "encoder.rgb.")]
    deep = [
        layer[f"encoder.rgb.block{stage}.{block}.attn.q.weight"]
        for stage, depth in enumerate(VARIANTS["b2"].depths, 1)
        for block in range(depth)
    ]
    assert deep == list(range(1, 3 + 4 + 6 + 3 + 1))
    for stage, depth in enumerate(VARIANTS["b2"].depths, 1):
        first, end = (
            layer[f"encoder.rgb.block{stage}.{block}.norm1.bias"] for block in (0, depth - 1)
        )
        if stage > 1:
            assert layer[f"encoder.rgb.patch_embed{stage}.proj.bias"] == first
        for name in (
            f"FRMs.{stage - 1}.channel_weights.mlp.0.weight",
            f"FFMs.{stage - 1}.channel_emb.norm.weight",
            f"rgb.norm{stage}.weight",
        ):
            assert layer[f"encoder.{name}"] == end
    last = {layer[name] for name in layer if not name.startswith("encoder.")}
    assert last == {deep[-1] + 1}


def test_coarse_layers_are_the_four_stages_and_the_heads() -> None:
    with torch.device("meta"):
        model = build()
    layer = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    for stage in range(4):
        for name in (
            f"rgb.patch_embed{stage + 1}.proj.weight",
            f"x.block{stage + 1}.1.mlp.fc1.bias",
            f"FFMs.{stage}.channel_emb.norm.bias",
        ):
            assert layer[f"encoder.{name}"] == stage
    assert {layer[name] for name in layer if not name.startswith("encoder.")} == {4}


def test_a_whole_detector_starts_another_but_for_its_classes_and_channels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = scattered(small(num_classes=2)).state_dict()
    file = save_state(source, tmp_path / "run.pt")
    network = build(**{**SMALL, "num_classes": 3, "x_channels": 1, "pretrained": str(file)})
    anew = {
        f"encoder.x.{STEM}",
        *(f"roi_heads.box_predictor.{layer}.{part}" for layer in ("cls_score", "bbox_pred")
          for part in ("weight", "bias")),
    }  # fmt: skip
    for name, value in network.state_dict().items():
        assert (name in anew) == (value.shape != source[name].shape), name
        assert name in anew or torch.equal(value, source[name]), name
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    whole = len(source)
    assert f"loaded {whole - 5} of {whole} tensors" in record.getMessage()
    with user_error("model.pretrained", "does not fit", "fpn."):
        build(**{**SMALL, "fpn_channels": 8, "pretrained": str(file)})
