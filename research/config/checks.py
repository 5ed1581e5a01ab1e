"""Checks of a composed configuration, before torch is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config.compose import (
    config_dir,
    defaults_of,
    our_choices,
    resolved_with_declarations,
)
from research.config.declarations import mismatches, split
from research.config.group_rules import Job, faults, group_rules
from research.config.messages import explain, invalid_value, renamed_key, unknown_key
from research.config.migrations import current_key
from research.config.options import DECLARATIONS, option_node, options
from research.config.rules import Rule, is_model_address
from research.config.run_paths import instead_of
from research.config.schema import GROUPS, rule_for
from research.config.targets import (
    TARGET,
    check_arguments,
    check_targets,
    packaged_targets,
    target_nodes,
)
from research.utils.errors import UserError
from research.utils.installation import CONF

Settings = Mapping[str, Any]
TRACKERS = "logging."  # a list of options makes each of them optional


def check(
    cfg: DictConfig,
    choices: Mapping[str, str | None],
    overrides: Sequence[str] | None = None,
    defaults: Settings | None = None,
    own: Collection[str] = (),
) -> None:
    """Check that a configuration can be trained.

    Args:
        cfg: the composed configuration.
        choices: the chosen option of each group, as in ``HydraConfig.get().runtime.choices``.
        overrides: the user's own overrides, as in ``HydraConfig.get().overrides.task``. With them,
            an experiment's compression that the user did not choose is checked against the model;
            without them it is not.
        defaults: the resolved configuration with ``choices`` and no overrides; composed if None.
        own: names that ``_target_`` may have in addition to those of ``conf/`` and ``trust=``.

    Raises:
        UserError: with the key, the allowed values, the nearest of them and what to do.
    """
    ours = our_choices(choices)
    _check_choices(ours, cfg)
    try:
        settings, declared = split(resolved_with_declarations(cfg))
    except OmegaConfBaseException as error:
        raise explain(error, list(overrides or ())) from error
    if defaults is None:
        defaults = defaults_of(frozenset(ours.items()))
    names = {*own, *settings["trust"]}
    check_targets(settings, names)
    job = Job(settings, ours, overrides, declared, group_rules(settings))
    _check_same_targets(settings, defaults)
    _check_node("", settings, defaults, job)
    for fault in _faults(job):
        raise fault
    # Last, since it imports the user's code, and what that imports.
    check_arguments(settings, names, lambda path: _file_of(path, ours), only_own=True)


def _file_of(path: str, choices: Mapping[str, str | None]) -> str:
    """The file of the option that has the node at ``path``, as the user would open it."""
    group = path.partition(".")[0]
    option = choices.get(group)
    if option is None:  # a list of options
        return f"the file of its option of {group}"
    file, own = Path(group, f"{option}.yaml"), config_dir()
    if own is None or (CONF / file).is_file():
        return str(CONF.name / file)
    inside = own.is_relative_to(Path.cwd())
    return str((own.relative_to(Path.cwd()) if inside else own) / file)


def _check_choices(choices: Mapping[str, str | None], cfg: DictConfig) -> None:
    for group in GROUPS:
        if OmegaConf.is_missing(cfg, group) or cfg.get(group) is None:
            raise UserError(group, f"{group} is required. Options: {', '.join(options(group))}")
    for group, option in choices.items():
        if option is not None and option.startswith("_"):
            raise UserError(
                group,
                f"no {group} {option!r}: it is only a part of other options. "
                f"Options: {', '.join(options(group))}",
            )


def _check_same_targets(settings: Settings, defaults: Settings) -> None:
    """Refuse the ``_target_`` of another option, which has other keys."""
    usual = dict(target_nodes(defaults))
    for path, target in target_nodes(settings):
        if target != usual.get(path, target) and target in packaged_targets().get(path, ()):
            group = path.partition(".")[0]
            having = [
                option
                for option in options(group)
                if (path, target) in target_nodes({group: option_node(group, option)})
            ]
            raise UserError(
                f"{path}.{TARGET}",
                f"{path}.{TARGET}={target}: it belongs to another option, which has other keys",
                f"choose {group}={'|'.join(having)}",
            )


def _check_node(path: str, node: Settings, defaults: Settings, job: Job) -> None:
    for name in defaults:
        if name not in node and path != TRACKERS:
            raise UserError(
                f"{path}{name}",
                f"{path}{name} was removed but is needed",
                "set it to a value instead",
            )
    for name, value in node.items():
        key = f"{path}{name}"
        if current_key(key) != key:
            raise renamed_key(key, job.overrides or ())
        if name not in defaults:
            raise unknown_key(key, defaults_of(frozenset(job.choices.items())), job.choices)
        default = defaults[name]
        if isinstance(default, dict) and isinstance(value, dict) and (default or path == ""):
            if key != "tags":
                _check_node(f"{key}.", value, default, job)
        else:
            check_value(key, value, default, job.rules)


def check_value(key: str, value: Any, default: Any, rules: Mapping[str, Rule]) -> None:
    """Check the value of a key.

    Args:
        key: dotted.
        value: of any type.
        default: the key's default, whose type the value must have if the key has no rule.
        rules: of the groups' keys.

    Raises:
        UserError: with the key and the allowed values.
    """
    rule = rule_for(key, default, rules)
    nullable = default is None and not rule.is_valid(None)
    if not (rule.is_valid(value) or (value is None and nullable)):
        raise invalid_value(key, value, rule, nullable=nullable)


def _faults(job: Job) -> Iterator[UserError]:
    """Combinations of allowed values that cannot be trained."""
    yield from _declared_faults(job)
    yield from faults(job)
    yield from mismatches(job.declared, job.choices, job.settings)
    yield from _start_faults(job.settings)
    yield from run_faults(job.settings)
    if job.settings["ema_warmup"] and job.settings["ema"] is None:
        yield UserError(
            "ema_warmup", "ema_warmup=true without ema", "add a decay, such as ema=0.9998"
        )


def run_faults(settings: Settings) -> Iterator[UserError]:
    """Combinations of settings that cannot be trained, also of a run that is resumed."""
    if settings["precision"] == "fp16" and settings["device"] == "cpu":
        yield UserError(
            "precision",
            "precision=fp16 with device=cpu: fp16 needs an accelerator",
            "use precision=bf16 or precision=fp32",
        )


def _declared_faults(job: Job) -> Iterator[UserError]:
    """Overrides of declarations, which are not settings."""
    for text in job.overrides or ():
        key = text.partition("=")[0].lstrip("+~")
        group, _, word = key.partition(".")
        if group in GROUPS and word in DECLARATIONS:
            option = job.choices.get(group)
            yield UserError(
                key,
                f"{key} is declared in conf/{group}/{option}.yaml and not a setting",
                "remove it",
            )


def _start_faults(settings: Settings) -> Iterator[UserError]:
    resume, init_from = settings["resume"], settings["init_from"]
    start = None if init_from is None else Path(init_from)
    if resume is None and start is not None and not (start.exists() or is_model_address(start)):
        yield UserError(
            "init_from",
            f"init_from={init_from}: no such file or folder",
            instead_of(start),
        )
