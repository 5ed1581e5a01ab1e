"""One-line messages for exceptions of Hydra and OmegaConf: key, allowed values, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
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
from research.config.migrations import current_key
from research.config.options import option_node, options, without_declarations
from research.config.rules import Rule, nearest
from research.config.schema import GROUPS, OPTIONAL, RUN_RULES, RunSettings, rule_for
from research.utils.errors import UserError

LONGEST = 200
"""Characters of a value in a message."""
HELP = "(python train.py --help lists all keys)"


def explain(error: BaseException, overrides: list[str]) -> UserError:
    """A mistake in the configuration as an error of one line.

    Args:
        error: what Hydra, OmegaConf, the YAML reader or a check raised.
        overrides: what the user wrote, ``key=value`` each.
    """
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, UserError):
            # A new one: raised from an error that it caused, the chain would be a circle.
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
            return _bad_value(cause, overrides)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            key = str(cause.full_key or cause.key)
            context = _context(overrides)
            return no_key(_written(key, overrides), plain(context), context.choices)
        if isinstance(cause, MissingMandatoryValue):
            key = str(cause.full_key)
            return UserError(key, f"{key} needs a value: add {key}=VALUE")
        if isinstance(cause, InterpolationResolutionError):
            key = str(cause.full_key)
            return UserError(key, f"{key}: {_first_line(cause)}", "check the name inside ${…}")
        if isinstance(cause, InstantiationException):
            return _no_target(cause)
    return _composition(chain[0], overrides)


def no_key(key: str, known: Mapping[str, Any], choices: Mapping[str, str | None]) -> UserError:
    """The error for a key that ``known``, a configuration as a plain dictionary, does not hold."""
    return UserError(key, _no_key(key, known, choices))


def _no_key(key: str, known: Mapping[str, Any], choices: Mapping[str, str | None]) -> str:
    if current_key(key) != key:
        return f"{key} is called {current_key(key)} now: write {current_key(key)}=VALUE"
    group, _, rest = key.partition(".")
    option = choices.get(group)
    keys = _keys(known)
    if rest and group in GROUPS and option is not None:
        holders = [other for other in options(group) if rest in _keys_in_file(group, other)]
        experiment = choices.get("experiment")
        if holders and experiment is not None and key in _keys_in_file("experiment", experiment):
            return (
                f"experiment={experiment} sets {key}, which {group}={option} does not have: choose "
                f"{group}={'|'.join(holders)} or another experiment, or write one of your own"
            )
        if holders:
            return f"{key}: {group}={option} has no such key; choose {group}={'|'.join(holders)}"
        own = [name for name in keys if name.startswith(f"{group}.")]
        close = _closest(key, own) or _closest(key, keys)
        listed = ", ".join(name.removeprefix(f"{group}.") for name in own)
        return (
            f"no key {key!r} in {group}={option}{_mean(close) or '.'} "
            f"Keys: {listed}; a new key is added in conf/{group}/{option}.yaml"
        )
    return f"no key {key!r}{_mean(_closest(key, [*keys, *GROUPS, *OPTIONAL]))} {HELP}"


def suggest(word: str) -> str | None:
    """The key of the default configuration nearest to ``word``."""
    return _closest(word, [*_keys(plain(_context([]))), *GROUPS, *OPTIONAL])


def bad_value(key: str, value: Any, rule: Rule, *, nullable: bool) -> UserError:
    """The error for a value that breaks the rule of its key."""
    close = nearest(str(value)[:LONGEST], rule.choices)
    null = ", or null" if nullable else ""
    said = shown(value)
    if len(said) > LONGEST:
        said = f"{said[:LONGEST]}…"
    return UserError(key, f"{key}={said}: expected {rule.allowed}{null}{_mean(close)}")


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(shown(entry) for entry in value)}]"
    return str(value)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _mean(close: str | None) -> str:
    return f"; did you mean {close!r}?" if close else ""


def _bad_syntax(error: OverrideParseException) -> UserError:
    text = error.override
    key, equals, value = text.lstrip("~").partition("=")
    if not equals:
        message = f"{text!r} is not key=value"
        return UserError(key, message, f"settings are written key=value, such as epochs=5 {HELP}")
    if re.search(r"\s", key):
        return UserError(key, f"{text!r} is not key=value: the key holds a blank")
    if any(value.count(left) != value.count(right) for left, right in ("[]", "{}", "()")):
        message = f"{text!r} is not key=value: a bracket is not closed"
        return UserError(key, message, f"quote lists, '{key}=[a,b]'")
    return UserError(
        key,
        f"{text!r} is not key=value: a value with special characters goes in two quotes, "
        f"'{key}=\"…\"'",
        f"lists are written '{key}=[a,b]'",
    )


def _no_option(error: MissingConfigException) -> UserError:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    known = [name for name in error.options or () if not name.startswith("_")]
    if not known:
        return UserError(group, _first_line(error))
    close = _mean(nearest(option, known)) or "."
    return UserError(group, f"no {group} {option!r}{close} Options: {', '.join(known)}")


def _bad_value(error: ValidationError, overrides: list[str]) -> UserError:
    key = str(error.full_key)
    value = next(
        (text.partition("=")[2] for text in reversed(overrides) if _key(text) == key),
        shown(error.value),
    )
    rule = RUN_RULES.get(key)
    if rule is None:
        return UserError(key, f"{key}={value}: {_first_line(error)}")
    return bad_value(
        key, value, rule, nullable=RunSettings.__dataclass_fields__[key].default is None
    )


def _no_target(error: InstantiationException) -> UserError:
    found = re.search(r"Error locating target '([^']+)'", str(error))
    if found:
        message = f"_target_={found[1]}: there is no such name to build"
        return UserError("_target_", message, "check its spelling")
    return UserError("_target_", _first_line(error))


def _composition(error: BaseException, overrides: list[str]) -> UserError:
    """What Hydra says of an override only in prose."""
    text = str(error)
    quoted = re.search(r"'([^']+)'", text)
    subject = quoted[1] if quoted else ""
    key = _key(subject)
    if text.startswith("Sweep parameters"):
        return UserError(key, f"{subject} gives several values: add -m to run each")
    if text.startswith("Ambiguous value"):
        values = subject.partition("=")[2]
        several = f"{subject} gives several values: add -m to run each"
        as_list = f", or write a list '{key}=[{values}]'" if _takes_list(key, values) else ""
        return UserError(key, f"{several}{as_list}")
    if text.startswith("Sweeping over Hydra"):
        message = f"{subject or 'hydra.…'}: Hydra's own settings take one value, not several"
        return UserError(key or "hydra", message)
    if text.startswith("Could not append to config. An item"):
        return UserError(key, f"{subject} is a key already: write {subject}=VALUE, without +")
    if text.startswith(("Could not append", "Multiple values for", "Could not delete")) or (
        "looks like a config group" in text or text.startswith("Could not override")
    ):
        written = next((o for o in overrides if o.startswith(("+", "~")) or "@" in o), subject)
        key = _key(written)
        message = f"{written!r}: settings are written key=value with no +, ~ or @"
        return UserError(key, f"{message}{_mean(suggest(key))} {HELP}")
    return UserError(key, _first_line(error) or type(error).__name__)


def _takes_list(key: str, values: str) -> bool:
    """Whether ``key=[values]`` would be accepted, so that it may be advised."""
    node: Any = plain(_context([]))
    rules = group_rules(node)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return rule_for(key, node, rules).holds(yaml.safe_load(f"[{values}]"))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _written(key: str, overrides: list[str]) -> str:
    """The whole key as the user wrote it, of which Hydra names the first unknown part."""
    keys = [_key(text) for text in overrides]
    return next((name for name in keys if name == key or name.startswith(f"{key}.")), key)


def _context(overrides: list[str]) -> Composed:
    """What is composed from the user's choice of groups alone, or the default."""
    groups = (*GROUPS, *OPTIONAL)
    chosen = [text for text in overrides if _key(text) in groups and "," not in text]
    try:
        return composed(chosen)
    except HydraException:
        return composed([])


def plain(context: Composed) -> dict[str, Any]:
    """The settings as written, interpolations left alone; without declarations."""
    container = OmegaConf.to_container(context.cfg, resolve=False)
    assert isinstance(container, dict)
    return {
        str(key): without_declarations(value) if isinstance(value, dict) else value
        for key, value in container.items()
    }


def dotted(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value, without those that speak to ``instantiate``."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{path}{name}.")
        elif not name.startswith("_"):
            yield f"{path}{name}", value


def _keys(node: Mapping[str, Any]) -> list[str]:
    return [key for key, _ in dotted(node)]


def _closest(key: str, keys: list[str]) -> str | None:
    """The key whose last part is spelled most like this one's, wherever it stands."""
    last = key.rpartition(".")[2]
    ending = nearest(last, [name.rpartition(".")[2] for name in keys])
    alike = [name for name in keys if name.rpartition(".")[2] == ending]
    return max(alike, key=lambda name: SequenceMatcher(None, key, name).ratio(), default=None)


def _keys_in_file(group: str, option: str) -> set[str]:
    """The keys in an option's own file and in the parts that it takes from its group."""
    return set(_keys(option_node(group, option)))
