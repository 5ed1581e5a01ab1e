"""What messages advise can be typed, and is what the rule of the key allows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from research.config.group_rules import group_rules
from research.config.keys import setting_values
from research.config.messages import invalid_value, unknown_key
from research.config.options import option_node, options
from research.config.rules import Rule
from research.config.schema import GROUPS, rule_for

EXAMPLES = ("a path, it's/b", 0.5, 3, "clip", "a.b")


def list_settings() -> Iterator[tuple[str, Any, Rule]]:
    """Each key that takes a list alone, with a value that may be an entry, and its rule."""
    for group in GROUPS:
        for option in options(group):
            node = option_node(group, option)
            rules = group_rules({group: node})
            for name, value in setting_values(node).items():
                key = f"{group}.{name}"
                rule = rule_for(key, value, rules)
                wrong = [each for each in EXAMPLES if not rule.is_valid(each)]
                fitting = [e for e in wrong if any(rule.is_valid([e] * n) for n in range(1, 6))]
                if fitting:
                    yield key, fitting[0], rule


LIST_SETTINGS = {key: (example, rule) for key, example, rule in list_settings()}


def test_the_list_that_is_advised_for_a_single_value_is_the_one_that_is_read() -> None:
    assert {"dataset.train_dirs", "dataset.mean", "model.layers", "optimizer.betas"} <= {
        *LIST_SETTINGS
    }
    for key, (example, rule) in LIST_SETTINGS.items():
        error = invalid_value(key, example, rule, nullable=False)
        (typed,) = shlex.split(error.hint.removeprefix("write "))
        override = OverridesParser.create().parse_override(typed)
        assert override.key_or_group == key
        assert set(override.value()) == {example}
        assert rule.is_valid(override.value())


@pytest.mark.parametrize("option", ["imagefolder", "warehouse", "rgbx", "phototriage", "cifar10"])
@pytest.mark.parametrize("name", ["root", "train_dirs", "manifest", "path", "data_dir", "folder"])
def test_a_path_of_another_data_set_is_answered_with_the_paths_of_this_one(
    option: str, name: str
) -> None:
    known = {"dataset": option_node("dataset", option)}
    if name in known["dataset"]:
        return
    error = unknown_key(f"dataset.{name}", known, {"dataset": option})
    named = re.findall(r"dataset\.(\w+)", error.message.partition("set by")[2].partition(";")[0])
    assert named
    assert {*named} <= {*known["dataset"]}
    assert "cache_dir" not in named
    rules = group_rules(known)
    assert all(rules[f"dataset.{each}"].is_path for each in named)
    # What is no path is answered with the data sets that have it.
    elsewhere = unknown_key("dataset.fit", known, {"dataset": option}).message
    assert option == "phototriage" or "choose dataset=demo_photo" in elsewhere
