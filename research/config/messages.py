"""One-line messages for exceptions of Hydra and OmegaConf: key, allowed values, what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    ValidationError,
)
from yaml import MarkedYAMLError

from research.config.compose import Composed, composed
from research.config.group_rules import group_rules
from research.config.keys import MISSING, setting_values
from research.config.migrations import current_key
from research.config.options import option_node, options
from research.config.rules import Rule, nearest
from research.config.schema import GROUPS, OPTIONAL, RUN_RULES, RunSettings, rule_for
from research.utils.documents import parse_typed
from research.utils.errors import UserError, causes
from research.utils.installation import TRAIN

MAX_VALUE = 200
"""Maximum number of characters of a value in a message."""
LONGEST = 5
"""Most entries of a list that a message writes out."""
SWEEPER = "hydra.sweeper"
HELP = f"({TRAIN} --help lists all keys)"
PATH_WORDS = {"data", "dir", "dirs", "file", "files", "folder", "folders", "images", "path", "root"}
"""Of keys that name files or folders in other programs."""
LAUNCHERS = {
    "joblib": "-e '.[parallel]'",
    "submitit_slurm": "'hydra-submitit-launcher>=1.4.0rc3'",
    "submitit_local": "'hydra-submitit-launcher>=1.4.0rc3'",
    "ray_aws": "'hydra-ray-launcher>=1.4.0rc3'",
}
"""What ``pip`` installs for each of Hydra's launchers."""
REMOVED = {
    "hydra/sweeper/sampler=motpe": "Optuna 4 removed it; choose hydra/sweeper/sampler=tpe, which "
    "takes several objectives"
}
"""Options that packages still list but cannot run, and what to do instead."""


def explain(error: BaseException, overrides: list[str]) -> UserError:
    """The ``UserError`` for an exception from composing or checking a configuration.

    Args:
        error: from Hydra, OmegaConf, the YAML reader or a check.
        overrides: of the user, ``key=value`` each.
    """
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, UserError):
            # A copy: raising it from an error that it caused would make the chain a cycle.
            return UserError(cause.key, cause.message, cause.hint)
    for cause in chain:
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
            mark = cause.problem_mark
            return UserError(mark.name, f"{mark.name}, line {mark.line + 1}: {cause.problem}")
        if isinstance(cause, OverrideParseException):
            return _bad_syntax(cause)
        if isinstance(cause, MissingConfigException):
            return _no_option(cause)
        if isinstance(cause, ValidationError):
            return _wrong_type(cause, overrides)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            key = str(cause.full_key or cause.key)
            base = _base(overrides)
            if key.startswith(f"{SWEEPER}."):
                return _unknown_sweeper_key(_full_key(key, overrides), base.sweeper)
            return unknown_key(_full_key(key, overrides), base.unresolved, base.choices)
        if isinstance(cause, MissingMandatoryValue):
            key = str(cause.full_key)
            return UserError(key, f"{key} needs a value: add {key}=VALUE")
        if isinstance(cause, InterpolationResolutionError):
            key = str(cause.full_key)
            return UserError(key, f"{key}: {_first_line(cause)}", "check the name inside ${…}")
        if isinstance(cause, InstantiationException):
            return _no_target(cause)
    return _composition(chain[0], overrides)


def unknown_key(key: str, known: Mapping[str, Any], choices: Mapping[str, str | None]) -> UserError:
    """The error for a key that ``known``, a configuration as a plain dictionary, does not have."""
    if current_key(key) != key:
        return renamed_key(key, [key])
    return UserError(key, _unknown_key(key, known, choices))


def renamed_key(key: str, overrides: Sequence[str]) -> UserError:
    """The error for a key of an earlier version.

    Args:
        key: dotted.
        overrides: of the command line; if the key is not among them, an option's file sets it.
    """
    new = current_key(key)
    if any(_key(text) == key for text in overrides):
        return UserError(key, f"{key} is called {new} now: write {new}=VALUE")
    message = f"{key} is called {new} now, and an option's YAML file sets it"
    return UserError(key, message, f"remove it there and set {new}=VALUE")


def _unknown_key(key: str, known: Mapping[str, Any], choices: Mapping[str, str | None]) -> str:
    group, _, rest = key.partition(".")
    option = choices.get(group)
    keys = list(setting_values(known))
    if rest and group in GROUPS and option is not None:
        having = [other for other in options(group) if rest in _keys_in_file(group, other)]
        experiment = choices.get("experiment")
        if having and experiment is not None and key in _keys_in_file("experiment", experiment):
            return (
                f"experiment={experiment} sets {key}, which {group}={option} does not have: choose "
                f"{group}={'|'.join(having)} or another experiment, or write your own"
            )
        own = [name for name in keys if name.startswith(f"{group}.")]
        near = None if having else _closest(key, own)
        paths = _paths(group, known) if _is_path(group, rest, having) else []
        if paths and near not in paths:
            others = f"; {group}={'|'.join(having)} has {key}" if having else ""
            reads = f"its files are set by {', '.join(paths)}"
            return f"{key}: {group}={option} has no such key; {reads}{others}"
        if having:
            return f"{key}: {group}={option} has no such key; choose {group}={'|'.join(having)}"
        close = near or _closest(key, keys)
        listed = ", ".join(name.removeprefix(f"{group}.") for name in own)
        return (
            f"no key {key!r} in {group}={option}{_did_you_mean(close) or '.'} "
            f"Keys: {listed}; its keys are those of conf/{group}/{option}.yaml"
        )
    return f"no key {key!r}{_did_you_mean(_closest(key, [*keys, *GROUPS, *OPTIONAL]))} {HELP}"


def _paths(group: str, known: Mapping[str, Any]) -> list[str]:
    """The keys of a group that name files or folders on which the result depends."""
    rules = group_rules(known)
    keys = (f"{group}.{name}" for name in known[group])
    found = ((key, rules.get(key)) for key in keys)
    return [key for key, rule in found if rule and rule.is_path and not rule.may_change]


def _is_path(group: str, name: str, having: Sequence[str]) -> bool:
    """Whether a key that these options have names a file or folder; of no option, by its words."""
    if not having:
        return not PATH_WORDS.isdisjoint(name.split("_"))
    rule = group_rules({group: option_node(group, having[0])}).get(f"{group}.{name}")
    return rule is not None and rule.is_path


def _unknown_sweeper_key(key: str, sweeper: Mapping[str, Any]) -> UserError:
    nodes = {SWEEPER: sweeper}
    nodes |= {f"{SWEEPER}.{name}": sweeper.get(name) or {} for name in ("sampler", "pruner")}
    node = max((name for name in nodes if key.startswith(f"{name}.")), key=len)
    names = [name for name in nodes[node] if not name.startswith("_")]
    close = _did_you_mean(nearest(key.removeprefix(f"{node}."), names)) or "."
    return UserError(key, f"no key {key!r}{close} Keys of {node}: {', '.join(names) or 'none'}")


def suggest(word: str) -> str | None:
    """The key or group of the default configuration most similar to ``word``."""
    return _closest(word, [*setting_values(composed([]).unresolved), *GROUPS, *OPTIONAL])


def invalid_value(key: str, value: Any, rule: Rule, *, nullable: bool) -> UserError:
    """The error for a value that breaks the rule of its key."""
    close = nearest(str(value)[:MAX_VALUE], rule.choices)
    text = format_value(value)
    if len(text) > MAX_VALUE:
        text = f"{text[:MAX_VALUE]}…"
    allowed = rule.describe(nullable=nullable)
    message = f"{key}={text}: expected {allowed}{_did_you_mean(close)}"
    return UserError(key, message, _as_list(key, value, rule))


def _as_list(key: str, value: Any, rule: Rule) -> str:
    """How to write a single value as a list that is allowed; '' if it is not in any."""
    if value is None or isinstance(value, list | dict):
        return ""
    lists = ([value] * length for length in range(1, LONGEST + 1))
    allowed = next((entries for entries in lists if rule.is_valid(entries)), None)
    return "" if allowed is None else f"write {shlex.quote(f'{key}={quoted(allowed)}')}"


def format_value(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(format_value(entry) for entry in value)}]"
    return str(value)


def quoted(value: Any) -> str:
    """The same, quoted if necessary so that Hydra parses the same value."""
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{quoted(entry)}' for key, entry in value.items())}}}"
    if not isinstance(value, str):
        return repr(value) if isinstance(value, float) else format_value(value)
    plain = re.fullmatch(r"[A-Za-z_/][\w./@%+-]*", value)
    if plain and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    # Hydra keeps backslashes, except before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + "\\'" * bool(match[2]), value)
    return f"'{escaped}'"


def format_change(key: str, then: Any, now: Any) -> str:
    """``KEY: THEN → NOW``; ``keys.MISSING`` stands for no value."""
    before, after = ("(none)" if v is MISSING else format_value(v) for v in (then, now))
    return f"{key}: {before} → {after}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _did_you_mean(close: str | None) -> str:
    return f"; did you mean {close!r}?" if close else ""


def _bad_syntax(error: OverrideParseException) -> UserError:
    text = error.override
    key, equals, value = text.lstrip("~").partition("=")
    if not equals:
        message = f"{text!r} is not key=value"
        return UserError(key, message, f"settings are written key=value, such as epochs=5 {HELP}")
    if re.search(r"\s", key):
        return UserError(key, f"{text!r} is not key=value: the key contains a space")
    message = f"{text!r} is not key=value: "
    if any(value.count(left) != value.count(right) for left, right in ("[]", "{}", "()")):
        message += "a bracket is not closed"
        if not value.startswith(("[", "{")):
            return UserError(key, message, f"write '{key}=\"…\"'")
        closed = f" and quote the list, write '{key}={value}]'"
        return UserError(key, message, f"close it{closed * _takes_list(key, value[1:])}")
    message += "a value with special characters needs a second pair of quotes"
    return UserError(key, message, f"write '{key}=\"…\"'")


def _no_option(error: MissingConfigException) -> UserError:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if group == "hydra/launcher" and option in LAUNCHERS:
        message = f"{group}={option}: its package is not installed"
        return UserError(group, message, f"pip install {LAUNCHERS[option]}")
    names = [name for name in error.options or () if not name.startswith("_")]
    known = [name for name in names if f"{group}={name}" not in REMOVED]
    if not known:
        return UserError(group, _first_line(error))
    close = _did_you_mean(nearest(option, known)) or "."
    options_ = ", ".join(known)
    more = f"; any network of timm: model=timm model.name={option}" if group == "model" else ""
    return UserError(group, f"no {group} {option!r}{close} Options: {options_}{more}")


def _wrong_type(error: ValidationError, overrides: list[str]) -> UserError:
    key = str(error.full_key)
    value = next(
        (text.partition("=")[2] for text in reversed(overrides) if _key(text) == key),
        format_value(error.value),
    )
    rule = RUN_RULES.get(key)
    if rule is None:
        return UserError(key, f"{key}={value}: {_first_line(error)}")
    return invalid_value(
        key, value, rule, nullable=RunSettings.__dataclass_fields__[key].default is None
    )


def _no_target(error: InstantiationException) -> UserError:
    match = re.search(r"Error locating target '([^']+)'", str(error))
    if match:
        message = f"_target_={match[1]}: there is no such class or function"
        return UserError("_target_", message, "check its spelling")
    return UserError("_target_", _first_line(error))


def _composition(error: BaseException, overrides: list[str]) -> UserError:
    """The error for exceptions of Hydra whose text alone tells the kind."""
    text = str(error)
    quoted = re.search(r"'([^']+)'", text)
    subject = quoted[1] if quoted else ""
    key = _key(subject)
    if text.startswith(("Sweep parameters", "Ambiguous value")):
        values = subject.partition("=")[2]
        as_list = f"write a list '{key}=[{values}]'"
        hint = as_list if _takes_list(key, values) else "add -m to run each"
        return UserError(key, f"{subject} sets several values", hint)
    if text.startswith("Sweeping over Hydra"):
        message = f"{subject or 'hydra.…'}: Hydra's own settings take one value, not several"
        return UserError(key or "hydra", message)
    if text.startswith("Could not append to config. An item"):
        return UserError(key, f"{subject} exists already: write {subject}=VALUE, without +")
    if text.startswith("Could not override") and subject.startswith("hydra/sweeper/"):
        chosen = next((o for o in overrides if _key(o) == "hydra/sweeper"), "the sweeper")
        return UserError(
            subject,
            f"{subject}: {chosen} has no {subject.rpartition('/')[2]}",
            "leave it out, or choose hydra/sweeper=study",
        )
    if text.startswith(("Could not append", "Multiple values for", "Could not delete")) or (
        "looks like a config group" in text or text.startswith("Could not override")
    ):
        written = next((o for o in overrides if o.startswith(("+", "~")) or "@" in o), subject)
        key = _key(written)
        message = f"{written!r}: settings are written key=value with no +, ~ or @"
        return UserError(key, f"{message}{_did_you_mean(suggest(key))} {HELP}")
    return UserError(key, _first_line(error) or type(error).__name__)


def _takes_list(key: str, values: str) -> bool:
    """Whether ``key=[values]`` is allowed, so that a message may advise it."""
    try:
        value = parse_typed(f"[{values}]")
    except ValueError:
        return False
    config = composed([]).unresolved
    return rule_for(key, setting_values(config).get(key), group_rules(config)).is_valid(value)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _full_key(key: str, overrides: list[str]) -> str:
    """The key that the user wrote; Hydra reports it up to its first unknown part."""
    keys = [_key(text) for text in overrides]
    return next((name for name in keys if name == key or name.startswith(f"{key}.")), key)


def _base(overrides: list[str]) -> Composed:
    """The configuration with the user's options of groups alone, or the default one."""
    groups = (*GROUPS, *OPTIONAL)
    chosen = [
        text
        for text in overrides
        if (_key(text) in groups or _key(text).startswith("hydra/sweeper")) and "," not in text
    ]
    try:
        return composed(chosen)
    except HydraException:
        return composed([])


def _closest(key: str, keys: list[str]) -> str | None:
    """The key whose last part is most similar to that of ``key``, in any group."""
    last = key.rpartition(".")[2]
    ending = nearest(last, [name.rpartition(".")[2] for name in keys])
    alike = [name for name in keys if name.rpartition(".")[2] == ending]
    return max(alike, key=lambda name: SequenceMatcher(None, key, name).ratio(), default=None)


def _keys_in_file(group: str, option: str) -> set[str]:
    """The keys of an option's file and of the files that it includes from its group."""
    return set(setting_values(option_node(group, option)))
