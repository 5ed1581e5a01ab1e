"""The name of a run says what it is: its recipe or its options, and what differs from them.

Names are of letters, digits, ``_``, ``-`` and ``.``: the folder of a run has its name, and folders
are typed as ``resume=FOLDER``, where Hydra reads ``=`` and ``,`` as syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from research.config.compose import defaults_of, our_choices, with_options
from research.config.group_rules import group_rules
from research.config.keys import WITHOUT_EFFECT, differences, is_below, leaves
from research.config.messages import format_value
from research.config.schema import GROUPS, rule_for

EXPERIMENT: Final = "experiment"
OPTIONS: Final = (*GROUPS, EXPERIMENT)
"""Keys whose values are options, which say by themselves what they are."""
NAMED: Final = ("dataset", "model", "compression", "task", "optimizer", "scheduler")
"""The groups whose options are part of what a run is."""
OWN_NAMES: Final = ("model.name", "dataset.name")
"""Settings that replace the name of an option, so that a name has them already."""
MAX_HEAD: Final = 60
MAX_LENGTH: Final = 80
"""Characters of a name that was not typed. What does not fit is counted: ``…_and_3_more``."""
MAX_VALUE: Final = 24
EDGES: Final = "-_."
"""Characters with which no value ends."""

Config = Mapping[str, Any]
Choices = Mapping[str, str | None]


def run_name(config: Config, choices: Choices, overrides: Sequence[str]) -> str:
    """The name of a run: ``base_name``, then the settings of the command line that differ.

    ``cifar10_densenet121``; with ``optimizer.lr=0.05``, ``cifar10_densenet121_lr0.05``. Settings
    without effect on the result, and where the data are, are not part of a name.

    Args:
        config: resolved.
        choices: the chosen option of each group.
        overrides: of the command line, ``key=value`` each.
    """
    if config["name"] is not None:
        return base_name(config, choices)
    return _joined(base_name(config, choices), _labels(_changed(config, overrides)))


def trial_name(base: str, number: int, point: Mapping[str, Any]) -> str:
    """The name of a trial: ``cifar10_densenet121_0003_lr0.05``. No two trials of a study share one.

    Args:
        base: from ``base_name``.
        number: of the trial in its study.
        point: the swept values by key.
    """
    shown = {
        key: value
        for key, value in point.items()
        if key not in OPTIONS or f"_{_safe(value)}_" not in f"_{base}_"
    }
    return _joined(f"{base}_{number:04d}", _labels(shown))


def base_name(config: Config, choices: Choices) -> str:
    """``name=``, or the recipe if the run is what the recipe's name says, else its options.

    The options are the model, before it the data set if it is not the model's own choice, and after
    it every other option that is not: ``cifar10_densenet169_adamw``.
    """
    if config["name"] is not None:
        return str(config["name"])
    ours = our_choices(choices)
    recipe = ours.get(EXPERIMENT)
    if recipe is not None and _is_recipe(recipe, config, ours):
        return _safe(recipe)[:MAX_HEAD]
    return _of_options(config, ours)


def _is_recipe(recipe: str, config: Config, choices: Choices) -> bool:
    """Whether the run has all options of its recipe, and every word that the recipe's name has."""
    usual = with_options((f"{EXPERIMENT}={recipe}",))
    if any(usual.choices.get(group) != choices.get(group) for group in NAMED):
        return False
    then, now = ({group: each[group] for group in NAMED} for each in (usual.config, config))
    rules = group_rules(config)
    words = _words(recipe)
    return not any(
        words & _words(before)
        for key, (before, _) in differences(then, now, ()).items()
        if not rule_for(key, None, rules).is_path
    )


def _of_options(config: Config, choices: Choices) -> str:
    own = with_options((f"model={choices['model']}",)).choices
    defaults = defaults_of(frozenset(choices.items()))
    data, model = (_label_of(group, config, choices, defaults) for group in NAMED[:2])
    parts = [model]
    if data != own.get("dataset") and not f"{model}_".startswith(f"{data}_"):
        parts = [data, model]
    others = (choices.get(group) for group in NAMED[2:] if choices.get(group) != own.get(group))
    return "_".join(_safe(part) for part in (*parts, *others) if part is not None)[:MAX_HEAD]


def _label_of(group: str, config: Config, choices: Choices, defaults: Config) -> str:
    """The option of a group; of a network or data set with another ``name``, that name."""
    option, usual, now = choices[group], defaults[group].get("name"), config[group].get("name")
    if option is None or (now is not None and now != usual):
        inside = isinstance(usual, str) and option is not None and usual in option
        return option.replace(usual, str(now)) if inside and option and usual else str(now)
    return option


def _changed(config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """The typed settings that differ from those of the chosen options, in the order of typing."""
    keys = [word.partition("=")[0] for word in overrides]
    groups = [word for key, word in zip(keys, overrides, strict=True) if key in OPTIONS]
    usual, now = (dict(leaves(each)) for each in (with_options(groups).config, config))
    rules = group_rules(config)
    found: dict[str, Any] = {}
    for typed in dict.fromkeys(keys):
        for key, value in now.items():
            is_typed = key == typed or key.startswith(f"{typed}.")
            if not is_typed or is_below(key, WITHOUT_EFFECT) or key in OWN_NAMES:
                continue
            is_path = rule_for(key, None, rules).is_path
            if value != usual.get(key) and not (is_path and key.startswith("dataset.")):
                found[key] = True if is_path else value
    return found


def _labels(settings: Mapping[str, Any]) -> list[str]:
    """``lr0.05``, ``fusion_sum``, of an option its own name; the whole key where it takes that."""
    last = [key.rpartition(".")[2] for key in settings]
    return [
        _label(key if last.count(short) > 1 else short, value)
        for short, (key, value) in zip(last, settings.items(), strict=True)
    ]


def _label(key: str, value: Any) -> str:
    if value is True:
        return key
    text = _value(value)
    if key in OPTIONS:
        return text
    is_number = re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) is not None
    glue = "" if is_number and not key[-1].isdecimal() else "_"
    return f"{key}{glue}{text}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        text = "-".join(map(_value, value))
    else:
        text = f"{value:.4g}" if isinstance(value, float) else format_value(value)
    return _safe(text.replace("e+", "e"))[:MAX_VALUE].rstrip(EDGES)


def _safe(text: Any) -> str:
    """A text as part of a name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", str(text)).rstrip(EDGES).lstrip("_.")


def _words(value: Any) -> set[str]:
    """The words of texts, in lower case; empty for numbers."""
    texts = value if isinstance(value, list) else [value]
    return {
        word
        for text in texts
        if isinstance(text, str)
        for word in re.split(r"[^a-z0-9]+", text.lower())
        if word
    }


def _joined(base: str, labels: Sequence[str]) -> str:
    """``base`` and as many labels as fit, then how many more there are."""
    for count in range(len(labels), -1, -1):
        more = len(labels) - count
        name = "_".join([base, *labels[:count], *[f"and_{more}_more"] * (more > 0)])
        if len(name) <= MAX_LENGTH:
            return name
    return base
