"""A run is called what it is, whatever was chosen."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st

from research.config import register
from research.config.compose import Composed, composed, with_options
from research.config.names import MAX_LENGTH, base_name, run_name, trial_name
from research.config.options import options, read
from research.config.rules import FOLDER_NAME
from research.utils.installation import CONF

NAMES = {
    "": "resnet34_compressed",
    "model=densenet169": "densenet169",
    "model=densenet169 dataset=cifar10": "cifar10_densenet169",
    "model=timm model.name=convnext_atto dataset=cifar10": "cifar10_convnext_atto",
    "model=resnet34 model.name=resnet50": "resnet50",
    "model.name=resnet18 compression=luma_fusion compression.window=2": (
        "resnet18_compressed_luma_fusion_window2"
    ),
    "dataset=imagefolder dataset.name=flowers dataset.train_dirs=[a]": (
        "flowers_resnet34_compressed"
    ),
    "experiment=cifar10_densenet121": "cifar10_densenet121",
    # What has no effect on the result, is where data are, or is what the recipe has anyway.
    "experiment=cifar10_densenet121 device=cpu dataset.root=x epochs=200 logging=csv": (
        "cifar10_densenet121"
    ),
    "experiment=cifar10_densenet121 seed=1 optimizer.lr=0.05": "cifar10_densenet121_seed1_lr0.05",
    "experiment=cifar10_densenet121 dataset.augmentation={mixup: 0.2}": (
        "cifar10_densenet121_mixup0.2"
    ),
    "experiment=cifar10_densenet121 model=densenet169": "cifar10_densenet169",
    "experiment=cifar10_densenet121 optimizer=adamw": "cifar10_densenet121_adamw",
    "experiment=cifar10_densenet121_adamw optimizer=sgd": "cifar10_densenet121",
    "experiment=imagenet_resnet34 model.name=resnet50": "imagenet_resnet50",
    "experiment=imagenet_resnet34 model.layers=[0,2,6,3]": "imagenet_resnet34_layers_0-2-6-3",
    "experiment=imagenet_resnet34_late_concat compression=luma_fusion": (
        "imagenet_resnet34_compressed_luma_fusion"
    ),
    "experiment=phototriage_e2e_resnet50 model.backbone=vgg16": (
        "phototriage_siamese_e2e_sgd_backbone_vgg16"
    ),
    "experiment=phototriage_vgg16 dataset.features=[clip,quality]": (
        "phototriage_siamese_frozen_constant_features_clip-quality"
    ),
    "experiment=rgbx_guide model=rgbx_mit_b0": "rgbx_mit_b0_sgd_step",
    "experiment=demo_rgbx model.fusion=sum": "demo_rgbx_fusion_sum",
    "experiment=demo_rgbx model.pretrained=a/b.pth dataset.augmentation.flip=false": (
        "demo_rgbx_pretrained_flip_false"
    ),
    "experiment=rgbx name=mine seed=3": "mine",
}

QUICK = (
    "model=timm model.name=convnext_atto dataset=cifar10",
    "experiment=cifar10_densenet121 seed=1 optimizer.lr=0.05",
    "experiment=cifar10_densenet121 model=densenet169",
    "experiment=phototriage_e2e_resnet50 model.backbone=vgg16",
    "experiment=rgbx name=mine seed=3",
)


def words_of(line: str) -> list[str]:
    return re.split(r" (?=[a-z_.]+=)", line) if line else []


def named(words: list[str]) -> str:
    found = composed(words)
    return run_name(found.config, found.choices, words)


@pytest.mark.parametrize(
    "line",
    [line if line in QUICK else pytest.param(line, marks=pytest.mark.whole) for line in NAMES],
)
def test_a_name_says_what_was_chosen(line: str) -> None:
    register()
    assert named(words_of(line)) == NAMES[line]


def test_recipes_are_called_by_their_file() -> None:
    """A name that a recipe sets stays whatever else is chosen."""
    for recipe in options("experiment"):
        assert "name" not in read(CONF / "experiment" / f"{recipe}.yaml"), recipe


def with_another_model(recipe: str) -> Composed | None:
    """A recipe with another model of its task; None if no other has the keys that it sets."""
    own = with_options((f"experiment={recipe}",)).choices
    others = [name for name in options("model") if name not in (own["model"], "timm")]
    start = options("experiment").index(recipe) % len(others)  # each recipe with another one
    for model in others[start:] + others[:start]:
        if with_options((f"model={model}",)).choices["task"] == own["task"]:
            with suppress(HydraException):
                return composed([f"experiment={recipe}", f"model={model}"])
    return None


@pytest.mark.whole
def test_no_name_has_a_model_that_is_not_used() -> None:
    register()
    checked = 0
    for recipe in options("experiment"):
        own = with_options((f"experiment={recipe}",))
        assert base_name(own.config, own.choices) == recipe
        found = with_another_model(recipe)
        if found is not None:
            name, used = base_name(found.config, found.choices), str(found.choices["model"])
            assert used in name
            others = [model for model in options("model") if f"_{model}_" in f"_{name}_"]
            assert all(model in used for model in others), name
            checked += 1
    assert checked > 15


SCALARS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=40), st.just("clip")
)
POINTS = st.dictionaries(
    st.sampled_from(
        ["optimizer.lr", "model.dropout", "dataset.dropout", "compression", "model", "seed", "p1"]
    ),
    st.one_of(SCALARS, st.lists(SCALARS, max_size=4)),
)
BASES = st.from_regex(r"[a-z][a-z0-9_]{0,58}[a-z0-9]", fullmatch=True)


@settings(max_examples=25, deadline=None)
@given(BASES, POINTS, st.integers(0, 99_999))
def test_the_name_of_a_trial_is_short_safe_and_its_own(
    base: str, point: dict[str, Any], number: int
) -> None:
    name = trial_name(base, number, point)
    assert len(name) <= MAX_LENGTH
    assert FOLDER_NAME.is_valid(name)
    assert name.startswith(f"{base}_{number:04d}")
    assert not trial_name(base, number + 1, point).startswith(name)
    # Its folder may be typed: Hydra reads the word as it is.
    assert OverridesParser.create().parse_override(f"resume=runs/{name}").value() == f"runs/{name}"


def test_a_trial_says_its_swept_values() -> None:
    point = {"optimizer.lr": 0.0123456, "model.dropout": 0, "seed": 12, "model": "densenet169"}
    assert trial_name("cifar10_densenet169", 3, point) == (
        "cifar10_densenet169_0003_lr0.01235_dropout0_seed12"
    )
    assert trial_name("resnet34_compressed", 0, {"compression": "block_stem"}) == (
        "resnet34_compressed_0000_block_stem"
    )
    lengths = {f"model.length_of_{letter}": 1e-5 for letter in "abcde"}
    assert trial_name("x" * 40, 1, lengths) == (f"{'x' * 40}_0001_length_of_a1e-05_and_4_more")
