"""Rules: the allowed values of a configuration key or of a command's option."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

MOST = 2**53
"""No whole number is larger; up to here floats hold them exactly."""


@dataclass(frozen=True)
class Rule:
    """What one key may be.

    Attributes:
        allowed: completes "expected …" in messages.
        holds: true for a value that may stand there; null may where it is the default.
        choices: the words it chooses from, for the nearest match.
        place: names files, folders or addresses, which count only where the user gives them
            himself; see ``research.config.stored``.
    """

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    place: bool = False


def number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> Rule:
    """A finite number, or a whole one, within limits."""
    limits: list[tuple[str, float | None, Callable[[float, float], bool]]] = [
        ("at least", at_least, lambda value, limit: value >= limit),
        ("above", above, lambda value, limit: value > limit),
        ("at most", at_most, lambda value, limit: value <= limit),
        ("below", below, lambda value, limit: value < limit),
    ]
    set_limits = [(word, limit, within) for word, limit, within in limits if limit is not None]

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, int) and abs(value) > MOST:
            return False
        return all(within(value, limit) for _, limit, within in set_limits)

    words = " and ".join(f"{word} {limit:.15g}" for word, limit, _ in set_limits)
    if at_least is not None and at_most is not None:
        words = f"from {at_least:.15g} to {at_most:.15g}"
    return Rule(f"{'a whole number' if whole else 'a number'} {words}".rstrip(), holds)


def whole(at_least: int, at_most: int | None = None) -> Rule:
    """A whole number within limits."""
    return number(at_least=at_least, at_most=at_most, whole=True)


def only(value: int) -> Rule:
    """One number and no other."""
    return Rule(f"{value}", lambda given: type(given) is int and given == value)


def one_of(*choices: str) -> Rule:
    """One of a few words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


def list_of(
    rule: Rule, length: int | None = None, *, least: int = 0, increasing: bool = False
) -> Rule:
    """A list of at least ``least`` entries that follow ``rule``, perhaps strictly increasing."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, list)
            and length in (None, len(value))
            and len(value) >= least
            and all(rule.holds(entry) for entry in value)
            and (not increasing or all(a < b for a, b in itertools.pairwise(value)))
        )

    count = "a list" if length is None else f"a list of {length}"
    order = "increasing, " if increasing else ""
    return Rule(f"{count}, {order}each {rule.allowed}", holds, place=rule.place)


def mapping_of(rule: Rule) -> Rule:
    """A mapping of words to what follows ``rule``."""
    return Rule(
        f"a mapping {{name: value}}, each value {rule.allowed}",
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(key, str) for key in value)
            and all(rule.holds(entry) for entry in value.values())
        ),
        place=rule.place,
    )


def pair(rule: Rule) -> Rule:
    """A range ``[low, high]``, both following ``rule``, low no greater than high."""
    both = list_of(rule, 2)
    return Rule(
        f"[low, high] with low ≤ high, each {rule.allowed}",
        lambda value: both.holds(value) and value[0] <= value[1],
    )


def or_null(rule: Rule) -> Rule:
    """Allows null even where the default is not null."""
    return Rule(
        f"{rule.allowed}, or null",
        lambda value: value is None or rule.holds(value),
        rule.choices,
        rule.place,
    )


def _compiles(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(text) <= 1000


def like(default: Any) -> Rule:
    """Any value of the default's type; anything but a mapping for a null default."""
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
PATH = Rule("a path", lambda value: isinstance(value, str) and bool(value.strip()), place=True)
ADDRESS = Rule("a path or URI", PATH.holds, place=True)
TEXT = Rule("text", lambda value: isinstance(value, str))
TRUTH = Rule("true or false", lambda value: isinstance(value, bool), ("true", "false"))
COUNT = whole(1)
SHARE = number(at_least=0, below=1)
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


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The closest of ``words``, if one is close."""
    found = get_close_matches(word, words, n=1, cutoff=0.67)
    return found[0] if found else None
