"""Rules: the allowed values of a configuration key or of a command's option."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

MAX_INT = 2**53
"""Largest whole number; up to here floats represent whole numbers exactly."""


OR_NULL = ", or null"


@dataclass(frozen=True)
class Rule:
    """The values that a key may have.

    Attributes:
        allowed: description of the values, which completes "expected …" in messages.
        is_valid: whether a value is allowed. ``check_value`` also allows None for a key whose
            default is None.
        choices: the allowed words, from which messages suggest the nearest.
        is_path: whether values name files, folders or addresses. Those in a file of somebody else
            are not used, see ``research.config.stored``.
        may_change: whether a resumed run may have another value, see ``changeable``.
    """

    allowed: str
    is_valid: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    is_path: bool = False
    may_change: bool = False

    def describe(self, *, nullable: bool) -> str:
        """``allowed``, with null if the key may also be None."""
        says_so = self.allowed.endswith(OR_NULL)
        return self.allowed if says_so or not nullable else f"{self.allowed}{OR_NULL}"


def changeable(rule: Rule) -> Rule:
    """The rule of a key whose value may change when a run is resumed.

    These are how long a run is, where and how fast it is computed, and what is saved, validated and
    recorded. All others determine its steps: which samples, in which order, with which arithmetic.
    """
    return replace(rule, may_change=True)


def number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> Rule:
    """A finite number within limits; a whole number if ``whole``."""
    limits: list[tuple[str, float | None, Callable[[float, float], bool]]] = [
        ("at least", at_least, lambda value, limit: value >= limit),
        ("above", above, lambda value, limit: value > limit),
        ("at most", at_most, lambda value, limit: value <= limit),
        ("below", below, lambda value, limit: value < limit),
    ]
    set_limits = [(word, limit, within) for word, limit, within in limits if limit is not None]

    def is_valid(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, int) and abs(value) > MAX_INT:
            return False
        return all(within(value, limit) for _, limit, within in set_limits)

    words = " and ".join(f"{word} {limit:.15g}" for word, limit, _ in set_limits)
    if at_least is not None and at_most is not None:
        words = f"from {at_least:.15g} to {at_most:.15g}"
    return Rule(f"{'a whole number' if whole else 'a number'} {words}".rstrip(), is_valid)


def whole(at_least: int, at_most: int | None = None) -> Rule:
    """A whole number within limits."""
    return number(at_least=at_least, at_most=at_most, whole=True)


def only(value: int) -> Rule:
    """A single number."""
    return Rule(f"{value}", lambda given: type(given) is int and given == value)


def one_of(*choices: str) -> Rule:
    """One of a few words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


def list_of(
    rule: Rule, length: int | None = None, *, min_length: int = 0, increasing: bool = False
) -> Rule:
    """A list of entries that follow ``rule``; strictly increasing if ``increasing``."""

    def is_valid(value: Any) -> bool:
        return (
            isinstance(value, list)
            and length in (None, len(value))
            and len(value) >= min_length
            and all(rule.is_valid(entry) for entry in value)
            and (not increasing or all(a < b for a, b in itertools.pairwise(value)))
        )

    count = "a list" if length is None else f"a list of {length}"
    order = "increasing, " if increasing else ""
    return Rule(f"{count}, {order}each {rule.allowed}", is_valid, is_path=rule.is_path)


def mapping_of(rule: Rule) -> Rule:
    """A mapping of names to values that follow ``rule``."""
    return Rule(
        f"a mapping {{name: value}}, each value {rule.allowed}",
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(key, str) for key in value)
            and all(rule.is_valid(entry) for entry in value.values())
        ),
        is_path=rule.is_path,
    )


def pair(rule: Rule) -> Rule:
    """A range ``[low, high]`` with low ≤ high, both following ``rule``."""
    both = list_of(rule, 2)
    return Rule(
        f"[low, high] with low ≤ high, each {rule.allowed}",
        lambda value: both.is_valid(value) and value[0] <= value[1],
    )


def or_null(rule: Rule) -> Rule:
    """Values that follow ``rule``, and None even if the default is not None."""
    return Rule(
        f"{rule.allowed}{OR_NULL}",
        lambda value: value is None or rule.is_valid(value),
        rule.choices,
        rule.is_path,
    )


def _compiles(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(text) <= 1000


def like(default: Any) -> Rule:
    """Any value of the type of ``default``; anything but a mapping if it is None."""
    if default is None:
        return ANYTHING
    if isinstance(default, bool):
        return TRUTH
    if isinstance(default, int):
        return number(whole=True)
    if isinstance(default, float):
        return number()
    if isinstance(default, list):
        return list_of(like(default[0]) if default else ANYTHING)
    return MAPPING if isinstance(default, dict) else TEXT


ANYTHING = Rule("a value, no mapping", lambda value: not isinstance(value, dict))
MAPPING = Rule("a mapping {key: value}", lambda value: isinstance(value, dict))
TARGETS = Rule(
    "a list of dotted names, such as [my_models.Net]",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)+", name) for name in value)
    ),
)
NAME = Rule(
    "text without blanks and slashes",
    lambda value: isinstance(value, str) and re.fullmatch(r"[^\s/\\]+", value) is not None,
)
NOTHING = Rule("null; it is filled in", lambda value: value is None)
REGEX = Rule("a regular expression", lambda value: isinstance(value, str) and _compiles(value))
PATH = Rule("a path", lambda value: isinstance(value, str) and bool(value.strip()), is_path=True)
ADDRESS = Rule("a path or URI", PATH.is_valid, is_path=True)
TEXT = Rule("text", lambda value: isinstance(value, str))
TRUTH = Rule("true or false", lambda value: isinstance(value, bool), ("true", "false"))
COMPILE_MODES: Final = (
    "default",
    "reduce-overhead",
    "max-autotune",
    "max-autotune-no-cudagraphs",
)
"""Of ``torch.compile``."""
COMPILE = Rule(
    f"true or false, or one of {', '.join(COMPILE_MODES)}",
    lambda value: isinstance(value, bool) or value in COMPILE_MODES,
    ("true", "false", *COMPILE_MODES),
)
COUNT = whole(1)
ALL: Final = "all"
AMOUNT = Rule(
    f"a whole number at least 0, or {ALL}",
    lambda value: value == ALL or whole(0).is_valid(value),
    (ALL,),
)
BELOW_ONE = number(at_least=0, below=1)
FRACTION = number(at_least=0, at_most=1)
DEVICE = Rule(
    "one of auto, cpu, cuda, cuda:N, mps",
    lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", str(value)) is not None,
    ("auto", "cpu", "cuda", "mps"),
)
MONITOR = Rule(
    "METRIC:max or METRIC:min, such as val/top1:max",
    lambda value: re.fullmatch(r"[^\s:]+:(min|max)", str(value)) is not None,
)
FOLDER_NAME = Rule(
    "a name of letters, digits, -, _ and ., such as windows_2",
    lambda value: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(value)) is not None,
)


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The word most similar to ``word``; None if none is similar."""
    matches = get_close_matches(word, words, n=1, cutoff=0.67)
    return matches[0] if matches else None


def is_model_address(run: Path) -> bool:
    """Whether a run is named by the address of its model in MLflow, ``models:/NAME/VERSION``."""
    return run.parts[:1] == ("models:",)
