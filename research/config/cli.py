"""The language of every command: positional paths first, then ``key=value``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from research.config.rules import TARGETS, TEXT, Rule
from research.config.schema import GROUPS, RUN_RULES
from research.utils.errors import UserError

TRUST: dict[str, tuple[str, Rule]] = {"trust": ("[]", TARGETS)}
"""The option of every command that builds what a run's configuration names."""


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional words and ``key=value`` words.

    Raises:
        UserError: for a positional word after a key, or a flag.
    """
    positional: list[str] = []
    settings: list[str] = []
    for word in words:
        if word.startswith("-"):
            raise UserError(
                word, f"unknown flag {word}", "settings are written key=value, see --help"
            )
        if "=" in word and not word.startswith(("/", ".")):
            settings.append(word)
        elif settings:
            raise UserError(word, f"{word}: paths come before key=value settings")
        else:
            positional.append(word)
    return positional, settings


def key_values(words: Sequence[str]) -> list[str]:
    """The words of a command that takes settings alone.

    Raises:
        UserError: for anything that is not ``key=value``.
    """
    positional, settings = split(words)
    if positional:
        raise UserError(
            positional[0],
            f"{positional[0]}: settings are written key=value, such as model=resnet34",
        )
    return settings


def options(settings: Sequence[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """A command's own options out of its settings.

    Args:
        settings: ``key=value`` words.
        known: the options and their defaults.

    Returns:
        every option's value, and the words left over (settings of the configuration).

    Raises:
        UserError: for a key that is neither, but spelled much like an option.
    """
    values = dict(known)
    rest = []
    for word in settings:
        key, _, value = word.partition("=")
        if key in known:
            values[key] = value
            continue
        near = difflib.get_close_matches(key, known, 1)
        if near and key not in (*RUN_RULES, *GROUPS):
            raise UserError(key, f"no key {key!r}", f"did you mean {near[0]!r}? see --help")
        rest.append(word)
    return values, rest


def run_dir_of(run: Path) -> Path:
    """The run folder of a run folder or of one of its checkpoint files."""
    folder = run if run.is_dir() else run.parent
    return folder.parent if folder.name == "checkpoints" else folder


def beside(run: Path, name: str) -> Path:
    """Where results go that lie beside a run.

    Raises:
        UserError: when a link leads from there to somewhere else.
    """
    folder = run_dir_of(run)
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError("out", f"{folder / name}: a link that leads elsewhere", "give out=")
    return folder / name


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Tells in one line when results cannot be written.

    Raises:
        UserError: for a full disk, a folder that is a file, or one that may not be written to.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            "out", f"{out}: {error.strerror or error}", "give another out=FOLDER"
        ) from None


def mixed(
    settings: Sequence[str], known: Mapping[str, tuple[str, Rule]], who: str
) -> tuple[dict[str, Any], list[str]]:
    """The options of a command that takes settings of the configuration as well.

    Args: see ``typed``.

    Returns:
        what ``typed`` gives, and the words left over.

    Raises:
        UserError: for a value that may not stand there, or a key spelled much like an option.
    """
    chosen, rest = options(settings, {key: default for key, (default, _) in known.items()})
    return typed([f"{key}={value}" for key, value in chosen.items()], known, who), rest


def typed(
    settings: Sequence[str], known: Mapping[str, tuple[str, Rule]], who: str
) -> dict[str, Any]:
    """The options of a command that has no others, read and checked.

    Args:
        settings: ``key=value`` words.
        known: every option's default as it would be typed, and what it may be.
        who: the command, for messages.

    Returns:
        every option's value; null for one left open.

    Raises:
        UserError: for an unknown key or a value that may not stand there.
    """
    chosen, rest = options(settings, {key: default for key, (default, _) in known.items()})
    if rest:
        key = rest[0].partition("=")[0]
        raise UserError(key, f"no key {key!r}", f"{who} has {', '.join(known)}")
    found: dict[str, Any] = {}
    for key, text in chosen.items():
        default, rule = known[key]
        try:
            value = text if rule is TEXT else yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if value is None and not default:
            found[key] = None
            continue
        if not rule.holds(value):
            if rule.choices:
                choose(key, text, rule.choices)
            raise UserError(key, f"{key}={text}: expected {rule.allowed}")
        found[key] = value
    return found


def choose(key: str, value: str, allowed: Sequence[str]) -> str:
    """``value``, if it is one of ``allowed``.

    Raises:
        UserError: naming the nearest and all allowed values.
    """
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(key, f"{key}={value}{hint} allowed: {', '.join(allowed)}")


def whole_number(key: str, value: str) -> int:
    """``value`` as a whole number of at least 1.

    Raises:
        UserError: when it is none.
    """
    if not value.isdecimal() or int(value) < 1:
        raise UserError(key, f"{key}={value}: expected a whole number, at least 1")
    return int(value)


def command(usage: str, main: Callable[[list[str]], None]) -> None:
    """Run a command on ``sys.argv``; a user's mistake is one line and exit status 2."""
    words = sys.argv[1:]
    if not words or "--help" in words or "-h" in words:
        print(usage.strip())
        raise SystemExit(0 if words else 2)
    try:
        main(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
