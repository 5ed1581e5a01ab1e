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

from research.data.pairs.extractors import build_extractor
from research.data.pairs.features import FeatureSet, feature_statistics
from research.data.pairs.quality import quality_vector
from research.utils.errors import DamagedImage
from tests.conftest import user_error

NET = "test_resnet.r160_in1k"
FEATURE = f"timm:{NET}"
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
    extractor = build_extractor(FEATURE, str(weights), CPU)
    network = timm.create_model(NET)
    network.load_state_dict(load_file(weights))
    network.reset_classifier(0)
    config = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        expected = network.eval()(torch.stack([transform(photo) for photo in photos(3)]))
    features = extractor(photos(3))
    assert features.dtype == torch.float32
    assert features.shape == (3, extractor.size)
    torch.testing.assert_close(features, expected)
    assert extractor([]).shape == (0, extractor.size)


def test_clip_is_open_clips_unit_vector_of_the_same_weights(tmp_path: Path) -> None:
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = open_clip.get_model_config("ViT-S-32-alt")
        text = {**config["text_cfg"], "vocab_size": 16, "layers": 1}
        clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text)
    path = tmp_path / "clip.pt"
    torch.save({"state_dict": clip.state_dict()}, path)
    extractor = build_extractor("clip:ViT-S-32-alt", str(path), CPU)
    transform = open_clip.image_transform(
        224,
        is_train=False,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        interpolation="bicubic",
    )
    with torch.no_grad():
        expected = clip.eval().encode_image(torch.stack([transform(p) for p in photos(2)]))
    torch.testing.assert_close(extractor(photos(2)), F.normalize(expected, dim=1))
    assert extractor.size == config["embed_dim"]


def test_resnet_features_are_the_pooled_stages_of_torchvision(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        network = resnet50().eval()
    path = tmp_path / "resnet50.safetensors"
    save_file(network.state_dict(), path)
    stages = {}
    for name in ("layer3", "layer4"):
        getattr(network, name).register_forward_hook(
            lambda _, __, output, name=name: stages.__setitem__(name, output.mean((2, 3)))
        )
    with torch.no_grad():
        network(ResNet50_Weights.IMAGENET1K_V1.transforms()(photos(1)[0])[None])
    for name, size in (("layer3", 1024), ("layer4", 2048)):
        extractor = build_extractor(f"resnet50.{name}", str(path), CPU)
        assert extractor.size == size
        torch.testing.assert_close(extractor(photos(1)), stages[name])


@pytest.mark.whole
def test_sizes_of_clip_and_vgg() -> None:
    for name, size in (("clip", 512), ("vgg16", 4096)):
        assert build_extractor(name, None, CPU)(photos(2)).shape == (2, size)


def test_random_weights_are_reproducible_and_leave_the_global_generator_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        one, other = (build_extractor(FEATURE, None, CPU) for _ in range(2))
    assert "a network with random weights" in caplog.text
    assert torch.equal(one(photos(2)), other(photos(2)))
    assert one.key == other.key
    assert torch.equal(state, torch.get_rng_state())


def test_keys_depend_on_weights_architecture_and_preprocessing(
    weights: Path, tmp_path: Path
) -> None:
    copy, changed = tmp_path / "copy.safetensors", tmp_path / "changed.safetensors"
    copy.write_bytes(weights.read_bytes())
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    key = build_extractor(FEATURE, str(weights)).key
    assert build_extractor(FEATURE, str(copy)).key == key
    others = [
        build_extractor(FEATURE, str(changed)).key,
        build_extractor(FEATURE, None).key,
        build_extractor("timm:test_resnet", None).key,
        build_extractor("timm:efficientnet_lite0", str(weights)).key,
        build_extractor("resnet50.layer3", str(weights)).key,
        build_extractor("resnet50.layer4", str(weights)).key,
        build_extractor("quality").key,
    ]
    assert key not in others
    # Without a tag, timm uses its first one, which has the same preprocessing here.
    assert len(set(others)) == len(others) - (others[1] == others[2])


def test_images_of_any_mode_are_converted_to_rgb(weights: Path) -> None:
    rgb = photos(1)[0]
    palette, grey = rgb.convert("P"), rgb.convert("L")
    for extractor in (build_extractor("quality"), build_extractor(FEATURE, str(weights), CPU)):
        for image in (palette, grey, rgb.convert("RGBA")):
            torch.testing.assert_close(extractor([image]), extractor([image.convert("RGB")]))
        assert torch.equal(extractor([np.asarray(rgb)]), extractor([rgb]))
    quality = build_extractor("quality")([rgb])[0]
    np.testing.assert_array_equal(quality, quality_vector(np.asarray(rgb)))


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("resnet50.layer2", ("'resnet50.layer2'", "did you mean resnet50.layer")),
        ("warmth", ("'warmth'", "allowed: clip", "timm:NAME")),
        ("timm:efficientnet_light0", ("no such network", "did you mean efficientnet_lite0")),
        ("timm:test_resnet.best", ("no such tag", "set timm:test_resnet")),
        ("clip:ViT-B-33", ("no such network", "ViT-B-32")),
    ],
)
def test_unknown_features(feature: str, words: tuple[str, ...]) -> None:
    with user_error("dataset.features", *words):
        build_extractor(feature)


@pytest.mark.parametrize(("feature", "file"), [("quality", "x.pt"), ("clip", "nowhere.pt")])
def test_unusable_files_of_weights(feature: str, file: str) -> None:
    with user_error("dataset.feature_weights", feature):
        build_extractor(feature, file)


def test_weights_of_another_network(weights: Path, tmp_path: Path) -> None:
    extractor = build_extractor("timm:test_vit", str(weights), CPU)
    with user_error("dataset.feature_weights", "test_vit", weights, "missing"):
        extractor(photos(1))
    state = dict(timm.create_model(NET).state_dict())
    first = next(name for name, value in state.items() if value.ndim == 4)
    state[first] = state[first][:1].clone()
    path = tmp_path / "narrow.safetensors"
    save_file(state, path)
    with user_error("dataset.feature_weights", "does not fit 1 of", first, "shape 1×"):
        build_extractor(FEATURE, str(path), CPU)(photos(1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(2, 12), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_standardised_features_have_mean_0_and_std_1_over_training(
    seed: int, count: int, shift: float, scale: float
) -> None:
    features = torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (count + 3, 4)))
    features[:, 2] = 0.1 + shift
    features[0] = torch.nan  # a damaged photo
    mean, std = feature_statistics(features.float(), range(count))
    train = features[1:count].float().double().numpy()
    np.testing.assert_allclose(mean, train.mean(0), rtol=1e-5, atol=1e-6)
    assert std[2] == 1
    # Values that differ by few roundings of float32 are a constant.
    differs = train.std(0) > 1e-6 * np.abs(train.mean(0))
    train = (train - train.mean(0)) / std.numpy()
    np.testing.assert_allclose(train[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(train[:, differs].mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(train[:, differs].std(0), 1, atol=1e-3)


def test_statistics_need_a_readable_training_photo() -> None:
    with user_error("dataset.root", "no training photo"):
        feature_statistics(torch.full((3, 2), torch.nan), [0, 1])


def test_a_set_concatenates_features(weights: Path, tmp_path: Path) -> None:
    files = []
    for number, photo in enumerate(photos(3)):
        files.append(tmp_path / f"{number}.png")
        photo.save(files[-1])
    files.insert(1, tmp_path / "torn.png")
    files[1].write_bytes(files[0].read_bytes()[:200])
    # Weights may be named without timm:.
    features = FeatureSet(["quality", FEATURE], {NET: str(weights)}, tmp_path / "cache", device=CPU)
    table = features.prepare(files)
    parts = [build_extractor("quality"), build_extractor(FEATURE, str(weights), CPU)]
    assert features.sizes == {"quality": 9, FEATURE: parts[1].size}
    assert features.keys == {each.name: each.key for each in parts}
    expected = torch.cat([each(photos(3)) for each in parts], 1)
    torch.testing.assert_close(table[[0, 2, 3]], expected)
    assert table[1].isnan().all()
    torch.testing.assert_close(features.read(files[2:]), expected[1:])
    assert list(features.damaged) == [files[1]]
    with pytest.raises(DamagedImage):
        features.read(files[:2])


@pytest.mark.parametrize(
    ("names", "files", "key", "word"),
    [
        ([], None, "dataset.features", "at least one"),
        (["quality", "quality"], None, "dataset.features", "each once"),
        (["quality"], {"clip": "x.pt"}, "dataset.feature_weights", "clip"),
    ],
)
def test_invalid_sets(
    tmp_path: Path, names: list[str], files: dict[str, str | None] | None, key: str, word: str
) -> None:
    with user_error(key, word):
        FeatureSet(names, files, tmp_path)
