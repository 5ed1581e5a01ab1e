"""Errors in configurations and metadata from files have the key of the wrong setting or entry."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from research.config import stored, stored_state
from tests.conftest import user_error
from tests.test_stored_runs import ASSETS

CONFIG: dict[str, Any] = yaml.safe_load((ASSETS / "runs/classification/config.yaml").read_text())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("extra", 1),
        ("model", None),
        ("name", "${seed}"),
        ("name", "x" * 20_000),
        ("version", 99),
        ("dataset.image_size", "big"),
        ("dataset.extra", 1),
        ("dataset.train_dirs", "x"),
        ("dataset.augmentation.mixup", -1),
        ("model._target_", "os.system"),
        ("model._args_", []),
    ],
)
def test_keys_of_configurations(key: str, value: Any) -> None:
    config = json.loads(json.dumps(CONFIG))
    *parts, last = key.split(".")
    node = config
    for part in parts:
        node = node[part]
    node[last] = value
    with user_error(key, "a.pt: refused, its configuration has", key):
        stored.configuration(config, "a.pt")


def test_keys_of_missing_settings_and_of_other_documents() -> None:
    with user_error("task", "no task"):
        stored.configuration({k: v for k, v in CONFIG.items() if k != "task"}, "a.pt")
    for document in (None, [1], "x", {1: 2}):
        with user_error("config", "a.pt"):
            stored.configuration(document, "a.pt")


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("metadata", None),
        ("metadata.classes", {"classes": [3]}),
        ("metadata.extra", {"extra": 1}),
        ("metadata.dtype", {"dtype": "float32"}),
        ("metadata.transform", {"transform": 3}),
        ("metadata.transform.image_size", {"transform": {"image_size": "x"}}),
        ("metadata.transform.extra", {"transform": {"extra": 1}}),
    ],
)
def test_keys_of_metadata(key: str, document: Any) -> None:
    with user_error(key, "a.pt: refused, its metadata have"):
        stored.metadata(document, "a.pt")


def test_keys_of_the_state() -> None:
    with user_error("state.epoch", "epoch=-1"):
        stored_state.state({"epoch": -1}, "a.pt")
    with user_error("state.history", "a row of an epoch"):
        stored_state.state({"history": [{"epoch": 1}]}, "a.pt")
    with user_error("state.epoch", "a.pt: refused, its metadata have no epoch"):
        stored_state.state({"step": 1}, "a.pt")
