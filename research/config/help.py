"""The help text of ``python train.py --help``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from research.config.compose import composed, config_dir
from research.config.group_rules import group_rules
from research.config.keys import setting_values
from research.config.messages import format_value
from research.config.options import DEFAULT_BATCH_SIZE, options
from research.config.run_config import RunConfig
from research.config.schema import GROUPS, OPTIONAL, RUN_DEFAULTS, RUN_RULES, RunSettings
from research.utils.installation import TRAIN

EXAMPLES = f"""\
{TRAIN}
{TRAIN} model=resnet34_compressed compression.window=4 epochs=20
{TRAIN} model=resnet34_compressed compression=luma_fusion dataset=imagefolder \\
    'dataset.train_dirs=[a,b]' dataset.val_dir=v precision=bf16
{TRAIN} -m compression.window=1,2,4,8 seed=0,1,2
{TRAIN} -m sweep=densenet_random experiment=cifar10_densenet121 dataset.root=DATA
{TRAIN} experiment=imagenet_resnet34_compressed resume=auto 'dataset.train_dirs=[a]'
"""


def help_text(overrides: list[str], run: RunConfig | None = None) -> str:
    """Groups with their options, run settings, and the keys of the chosen options.

    Args:
        overrides: of the command line.
        run: that the command line resumes; its settings are shown instead of the defaults.
    """
    result = composed(overrides) if run is None else run.composed
    config = result.unresolved
    lines = [
        "Train a model. Settings are written key=value; -m with key=a,b runs a and b, and every "
        "combination of several keys."
    ]
    if run is not None:
        rules = {**group_rules(config), **RUN_RULES}
        may = [key for key in setting_values(config) if key in rules and rules[key].may_change]
        text = f"resume={config['resume']} continues this run with the settings below. These may "
        lines += ["", *textwrap.wrap(f"{text}change: {', '.join(may)}, logging.", 98)]
    lines += ["", "Groups, chosen by GROUP=OPTION (*: chosen by this command line):"]
    for group in (*OPTIONAL, *GROUPS):
        chosen = result.choices.get(group)
        names = sorted({*options(group), *own_options(group)})
        marked = [f"{name}*" if name == chosen else name for name in names]
        lines.append(f"  {group:<12} {', '.join(marked)}")
    values = "default" if run is None else "value"
    lines += ["", f"Run settings: {values}, meaning, allowed values:"]
    key = f"dataset.{DEFAULT_BATCH_SIZE}"
    batch = OmegaConf.select(result.cfg, key, default=RUN_DEFAULTS["batch_size"])
    lines += _run_settings({**RUN_DEFAULTS, "batch_size": batch} if run is None else config)
    lines += ["", "Keys of the chosen options (explained in conf/GROUP/OPTION.yaml):"]
    for group in GROUPS:
        lines += _group_keys(group, config[group])
    lines += ["", "Examples:", textwrap.indent(EXAMPLES, "  ").rstrip()]
    lines += [
        "",
        "--cfg job prints the whole configuration and runs nothing.",
        "--config-dir FOLDER adds options of your own: FOLDER/model/mine.yaml is model=mine.",
    ]
    return "\n".join(lines)


def own_options(group: str) -> list[str]:
    """The options that ``--config-dir`` adds to a group."""
    folder = config_dir()
    return [] if folder is None else [path.stem for path in (folder / group).glob("*.yaml")]


def _run_settings(values: Mapping[str, Any]) -> Iterator[str]:
    for setting in fields(RunSettings):
        if setting.metadata:
            default: Any = RUN_DEFAULTS[setting.name]
            value = format_value(values[setting.name])
            allowed = setting.metadata["rule"].describe(nullable=default is None)
            yield f"  {setting.name:<18} {value:<6} {setting.metadata['help']} ({allowed})"


def _group_keys(group: str, node: dict[str, Any]) -> list[str]:
    pairs = [f"{group}.{key}={format_value(value)}" for key, value in setting_values(node).items()]
    return textwrap.wrap(
        "  ".join(pairs),
        width=98,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
