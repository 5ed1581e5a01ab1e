"""Settings of a stored run, changed for its later use."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from research.config import stored
from research.config.changes import changed, for_use
from research.utils.errors import UserError
from tests.test_stored_runs import ASSETS


def config(name: str) -> dict[str, Any]:
    path = ASSETS / "runs" / name / "config.yaml"
    return stored.configuration(yaml.safe_load(path.read_text()), str(path))


def test_a_weights_file_of_a_feature_whose_name_has_dots() -> None:
    ranker = config("ranking_frozen")
    for before in (None, {}, {"clip": "a.pt"}):
        ranker["dataset"]["feature_weights"] = before
        found = changed(ranker, ["dataset.feature_weights.resnet50.layer4=w.pt"])
        weights = found["dataset"]["feature_weights"]
        assert weights == {**(before or {}), "resnet50.layer4": "w.pt"}
    assert changed(ranker, ["dataset.feature_weights={clip: b.pt}"])["dataset"][
        "feature_weights"
    ] == {"clip": "b.pt"}
    with pytest.raises(UserError, match="a mapping"):
        changed(ranker, ["dataset.feature_weights.clip=3"])


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("classification", {"train_dirs", "val_dir", "test_dir"}),
        ("tinydet", {"manifest"}),
        ("ranking_frozen", {"root"}),
        ("rgbx", {"root"}),
    ],
)
def test_the_places_of_a_strangers_file_are_to_be_said(name: str, places: set[str]) -> None:
    """The advice, typed, gives them back."""
    then = config(name)
    with pytest.raises(UserError) as caught:
        for_use(then, [], "a.pt", own=False, data=True)
    words = shlex.split(str(caught.value).partition("such as ")[2])
    assert {word.partition("=")[0] for word in words} == {f"dataset.{key}" for key in places}
    found = for_use(then, words, "a.pt", own=False, data=True)
    for key in places:
        assert found["dataset"][key] == then["dataset"][key]
    hidden = for_use(then, [], "a.pt", own=False, data=False)
    assert not [key for key in stored.places(hidden) if key != "dataset.cache_dir"]
    assert hidden["logging"] == {}
    assert for_use(then, [], "a.pt", own=True, data=True) == then


def test_only_what_it_has_and_what_may_be() -> None:
    then = config("tinydet")
    assert changed(then, ["dataset.batch_size=3"])["dataset"]["batch_size"] == 3
    assert then["dataset"]["batch_size"] == 8
    wrong = {
        "model=bigdet": "the model of a run stays",
        "dataset.gone=1": "no key",
        "dataset.batch_size=0": "expected a whole number at least 1",
        "dataset.root=[": "not YAML",
    }
    for word, told in wrong.items():
        with pytest.raises(UserError, match=told):
            changed(then, [word])
