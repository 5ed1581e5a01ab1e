"""Overrides of the configuration of a stored run."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from research.config import stored
from research.config.changes import changed, for_use
from tests.conftest import user_error
from tests.test_stored_runs import ASSETS


def config(name: str) -> dict[str, Any]:
    path = ASSETS / "runs" / name / "config.yaml"
    return stored.configuration(yaml.safe_load(path.read_text()), str(path))


def test_a_weights_file_of_a_feature_whose_name_has_dots() -> None:
    ranker = config("ranking_frozen")
    for before in (None, {}, {"clip": "a.pt"}):
        ranker["dataset"]["feature_weights"] = before
        result = changed(ranker, ["dataset.feature_weights.resnet50.layer4=w.pt"])
        weights = result["dataset"]["feature_weights"]
        assert weights == {**(before or {}), "resnet50.layer4": "w.pt"}
    assert changed(ranker, ["dataset.feature_weights={clip: b.pt}"])["dataset"][
        "feature_weights"
    ] == {"clip": "b.pt"}
    with user_error("dataset.feature_weights", "a mapping"):
        changed(ranker, ["dataset.feature_weights.clip=3"])


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("classification", {"train_dirs", "val_dir", "test_dir"}),
        ("tinydet", {"manifest"}),
        ("ranking_frozen", {"root"}),
        ("rgbx", {"root"}),
    ],
)
def test_the_user_must_set_the_paths_of_a_foreign_file(name: str, paths: set[str]) -> None:
    """The error advises overrides with the paths in the file; with these it is accepted."""
    then = config(name)
    with user_error("dataset", "outside runs/") as caught:
        for_use(then, [], "a.pt", own=False, data=True)
    words = shlex.split(str(caught.value).partition("such as ")[2])
    assert {word.partition("=")[0] for word in words} == {f"dataset.{key}" for key in paths}
    result = for_use(then, words, "a.pt", own=False, data=True)
    for key in paths:
        assert result["dataset"][key] == then["dataset"][key]
    hidden = for_use(then, [], "a.pt", own=False, data=False)
    assert not [key for key in stored.paths_in(hidden) if key != "dataset.cache_dir"]
    assert hidden["logging"] == {}
    assert for_use(then, [], "a.pt", own=True, data=True) == then


def test_only_existing_keys_and_valid_values() -> None:
    then = config("tinydet")
    assert changed(then, ["batch_size=3"])["batch_size"] == 3
    assert then["batch_size"] == 8
    # Written by Python for 0.00001, and text in YAML.
    assert changed(then, ["task.score=1e-05"])["task"]["score"] == 1e-5
    moved = changed(then, ["dataset.manifest=stores/Run #3"])
    assert moved["dataset"]["manifest"] == "stores/Run #3"
    wrong = {
        "model=bigdet": "model.KEY=value",
        "dataset.gone=1": "no key",
        "batch_size=0": "at least 1",
        "dataset.root=[": "not YAML",
    }
    for word, message in wrong.items():
        with user_error(word.partition("=")[0], message):
            changed(then, [word])
