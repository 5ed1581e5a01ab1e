from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights, resnet50

from research.data.pairs.extractors import extractor
from research.data.pairs.features import FeatureSet, normalised
from research.data.pairs.quality import vector
from research.utils.errors import DamagedImage, UserError

NET = "test_resnet.r160_in1k"
SPEC = f"timm:{NET}"
CPU = torch.device("cpu")


def photos(count: int, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    arrays = rng.integers(0, 256, (count, side, side + 10, 3)).astype(np.uint8)
    return [Image.fromarray(array) for array in arrays]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = timm.create_model(NET)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(network.state_dict(), path)
    return path


def test_a_timm_network_is_timms_own_pooled_output(weights: Path) -> None:
    extract = extractor(SPEC, str(weights), CPU)
    network = timm.create_model(NET)
    network.load_state_dict(load_file(weights))
    network.reset_classifier(0)
    config = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        expected = network.eval()(torch.stack([transform(photo) for photo in photos(3)]))
    found = extract(photos(3))
    assert found.dtype == torch.float32
    assert found.shape == (3, extract.size)
    torch.testing.assert_close(found, expected)
    assert extract([]).shape == (0, extract.size)


def test_clip_is_open_clips_unit_vector_of_the_same_weights(tmp_path: Path) -> None:
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = open_clip.get_model_config("ViT-S-32-alt")
        text = {**config["text_cfg"], "vocab_size": 16, "layers": 1}
        whole = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text)
    path = tmp_path / "clip.pt"
    torch.save({"state_dict": whole.state_dict()}, path)
    extract = extractor("clip:ViT-S-32-alt", str(path), CPU)
    prepare = open_clip.image_transform(
        224,
        is_train=False,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        interpolation="bicubic",
    )
    with torch.no_grad():
        expected = whole.eval().encode_image(torch.stack([prepare(p) for p in photos(2)]))
    found = extract(photos(2))
    torch.testing.assert_close(found, F.normalize(expected, dim=1))
    assert extract.size == config["embed_dim"]


def test_a_resnet_gives_either_stage_of_torchvisions_file(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        network = resnet50().eval()
    path = tmp_path / "resnet50.safetensors"
    save_file(network.state_dict(), path)
    kept = {}
    for name in ("layer3", "layer4"):
        getattr(network, name).register_forward_hook(
            lambda _, __, output, name=name: kept.__setitem__(name, output.mean((2, 3)))
        )
    with torch.no_grad():
        network(ResNet50_Weights.IMAGENET1K_V1.transforms()(photos(1)[0])[None])
    for name, size in (("layer3", 1024), ("layer4", 2048)):
        extract = extractor(f"resnet50.{name}", str(path), CPU)
        assert extract.size == size
        torch.testing.assert_close(extract(photos(1)), kept[name])


@pytest.mark.whole
def test_clip_and_vgg_of_their_full_size_are_as_wide_as_they_say() -> None:
    for name, size in (("clip", 512), ("vgg16", 4096)):
        assert extractor(name, None, CPU)(photos(2)).shape == (2, size)


def test_random_weights_are_always_the_same_told_and_leave_chance_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        one, other = extractor(SPEC, None, CPU), extractor(SPEC, None, CPU)
    assert "without weights a random network computes it" in caplog.text
    assert torch.equal(one(photos(2)), other(photos(2)))
    assert one.key == other.key
    assert torch.equal(state, torch.get_rng_state())


def test_a_key_goes_by_weights_architecture_and_preprocessing(
    weights: Path, tmp_path: Path
) -> None:
    copy, changed = tmp_path / "copy.safetensors", tmp_path / "changed.safetensors"
    copy.write_bytes(weights.read_bytes())
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    key = extractor(SPEC, str(weights)).key
    assert extractor(SPEC, str(copy)).key == key
    others = [
        extractor(SPEC, str(changed)).key,
        extractor(SPEC, None).key,
        extractor("timm:test_resnet", None).key,
        extractor("timm:efficientnet_lite0", str(weights)).key,
        extractor("resnet50.layer3", str(weights)).key,
        extractor("resnet50.layer4", str(weights)).key,
        extractor("quality").key,
    ]
    assert key not in others
    # Without a tag timm means its first one, which here has the same preprocessing.
    assert len(set(others)) == len(others) - (others[1] == others[2])


def test_any_picture_is_taken_as_rgb(weights: Path) -> None:
    rgb = photos(1)[0]
    palette, grey = rgb.convert("P"), rgb.convert("L")
    for extract in (extractor("quality"), extractor(SPEC, str(weights), CPU)):
        for odd in (palette, grey, rgb.convert("RGBA")):
            torch.testing.assert_close(extract([odd]), extract([odd.convert("RGB")]))
        assert torch.equal(extract([np.asarray(rgb)]), extract([rgb]))
    np.testing.assert_array_equal(extractor("quality")([rgb])[0], vector(np.asarray(rgb)))


@pytest.mark.parametrize(
    ("spec", "file", "told"),
    [
        ("resnet50.layer2", None, "no feature 'resnet50.layer2'; did you mean resnet50.layer"),
        ("warmth", None, "no feature 'warmth'; there are clip, .* and timm:NAME"),
        ("timm:efficientnet_light0", None, "no such network; did you mean efficientnet_lite0"),
        ("timm:test_resnet.best", None, "no such tag of test_resnet"),
        ("clip:ViT-B-33", None, "no such network with CLIP's .*ViT-B-32"),
        ("quality", "x.pt", "dataset.feature_weights: quality has none"),
        ("clip", "nowhere.pt", "dataset.feature_weights: clip: no file nowhere.pt"),
    ],
)
def test_what_there_is_not_is_told_in_one_line(spec: str, file: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        extractor(spec, file)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fill_the_network_are_refused(weights: Path, tmp_path: Path) -> None:
    extract = extractor("timm:test_vit", str(weights), CPU)
    with pytest.raises(UserError, match=r"test_vit: .* lacks \d+ of \d+ tensors .*not there"):
        extract(photos(1))
    state = dict(timm.create_model(NET).state_dict())
    first = next(name for name, value in state.items() if value.ndim == 4)
    state[first] = state[first][:1].clone()
    path = tmp_path / "narrow.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=rf"lacks 1 of .*the first: {first}, it has 1×"):
        extractor(SPEC, str(path), CPU)(photos(1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(2, 12), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_normalised_features_have_one_scale_over_training(
    seed: int, count: int, shift: float, scale: float
) -> None:
    features = torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (count + 3, 4)))
    features[:, 2] = 0.1 + shift
    features[0] = torch.nan  # a damaged photo
    found = normalised(features.float(), range(count))
    train = found.features[1:count].double().numpy()
    exact = features[1:count].float().double().numpy()
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-5, atol=1e-6)
    assert found.std[2] == 1
    np.testing.assert_allclose(train[:, 2], 0, atol=1e-6)
    if count > 2:
        np.testing.assert_allclose(train[:, [0, 1, 3]].mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(train[:, [0, 1, 3]].std(0), 1, atol=1e-3)
    assert found.features[0].isnan().all()


def test_nothing_to_normalise_by_is_an_error() -> None:
    with pytest.raises(UserError, match="not one training photo"):
        normalised(torch.full((3, 2), torch.nan), [0, 1])


def test_a_set_puts_features_side_by_side(weights: Path, tmp_path: Path) -> None:
    files = []
    for number, photo in enumerate(photos(3)):
        files.append(tmp_path / f"{number}.png")
        photo.save(files[-1])
    files.insert(1, tmp_path / "torn.png")
    files[1].write_bytes(files[0].read_bytes()[:200])
    # The name without timm: is enough, and easier to write on a command line.
    features = FeatureSet(["quality", SPEC], {NET: str(weights)}, tmp_path / "cache", device=CPU)
    features.prepare(files)
    parts = [extractor("quality"), extractor(SPEC, str(weights), CPU)]
    assert features.sizes == {"quality": 9, SPEC: parts[1].size}
    assert features.keys == {each.name: each.key for each in parts}
    expected = torch.cat([each(photos(3)) for each in parts], 1)
    torch.testing.assert_close(features.rows([0, 2, 3]), expected)
    torch.testing.assert_close(features.rows(torch.tensor([[3, 0]])), expected[None, [2, 0]])
    torch.testing.assert_close(features.read(files[2:]), expected[1:])
    assert list(features.damaged) == [files[1]]
    with pytest.raises(UserError, match=r"torn.png: \w+, so it has no features"):
        features.rows([0, 1])
    with pytest.raises(DamagedImage):
        features.read(files[:2])


@pytest.mark.parametrize(
    ("specs", "given", "told"),
    [
        ([], None, "name at least one"),
        (["quality", "quality"], None, "each once"),
        (["quality"], {"clip": "x.pt"}, "feature_weights: clip is not asked for"),
    ],
)
def test_a_set_that_makes_no_sense_is_refused(
    tmp_path: Path, specs: list[str], given: dict[str, str | None] | None, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        FeatureSet(specs, given, tmp_path)
