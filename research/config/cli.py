"""Command lines of ``python -m research.COMMAND``: paths first, then ``key=value`` options.

A command declares its options as a frozen dataclass whose fields are made by ``option``:

    @dataclass(frozen=True)
    class Options(cli.RunOptions):
        batch_size: int = cli.option(8, COUNT, "frames per batch")

``parse`` reads a command line into it, and ``usage`` renders it as help. Imports no torch.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from research.config.messages import format_value
from research.config.rules import DEVICE, PATH, TEXT, Rule, one_of
from research.config.schema import GROUPS, RUN_RULES
from research.utils import conditions
from research.utils.documents import parse_typed
from research.utils.errors import UserError
from research.utils.installation import NAME, VERSION
from research.utils.launch import require_one_process
from research.utils.starting import start

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    OptionsT = TypeVar("OptionsT", bound=DataclassInstance)

T = TypeVar("T")
WIDTH = 100
"""Characters per line of a help text."""
DOTTED_NAME = Rule(
    "a dotted name, such as my_models.Net",
    lambda value: isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+", value) is not None,
)


@dataclass(frozen=True)
class Option:
    """Declaration of one option.

    Attributes:
        key: as typed.
        default: value if the option is not set.
        rule: of the value; of each entry if the option is a list.
        help: one line.
        placeholder: shown in the help if there is no default (None or an empty list).
    """

    key: str
    default: Any
    rule: Rule
    help: str
    placeholder: str

    @property
    def is_list(self) -> bool:
        """Whether it has several values, ``key=a,b`` or ``key=[a,b]``."""
        return isinstance(self.default, tuple)

    @property
    def default_text(self) -> str:
        """The default as typed, or the placeholder."""
        if self.default in (None, ()):
            return self.placeholder
        return ",".join(map(_typed, self.default if self.is_list else [self.default]))

    def read(self, text: str) -> Any:
        """The value of ``key=text``.

        Raises:
            UserError: if the value is not allowed.
        """
        if not self.is_list:
            return None if not text and self.default is None else self._checked(text, text)
        inner = text.removeprefix("[").removesuffix("]")
        parts = [part.strip() for part in inner.split(",") if part.strip()]
        if not parts and self.default:
            parts = [""]  # raises the error of the rule: the list may not be empty
        return tuple(self._checked(part, text) for part in parts)

    def check(self, value: Any) -> None:
        """Check a value that was not typed as text.

        Raises:
            UserError: if it is not allowed.
        """
        for each in value if self.is_list else [value]:
            if each is None and self.default is None:
                continue
            plain = str(each) if isinstance(each, Path) else each
            if not self.rule.is_valid(plain):
                if self.rule.choices:
                    choose(self.key, str(plain), self.rule.choices)
                raise UserError(self.key, f"{self.key}={each}: expected {self.rule.allowed}")

    def _checked(self, part: str, text: str) -> Any:
        """The value of one entry of ``text``."""
        value = part if self.rule in (TEXT, PATH) else _parsed(part)
        if value is None and self.default is None:
            return None
        if not self.rule.is_valid(value):
            if self.rule.choices:
                choose(self.key, part, self.rule.choices)
            several = ", or several separated by commas" if self.is_list else ""
            raise UserError(self.key, f"{self.key}={text}: expected {self.rule.allowed}{several}")
        return Path(value) if self.rule is PATH else value


def option(default: T, rule: Rule, help: str, *, key: str = "", placeholder: str = "") -> T:
    """A field of an options dataclass.

    Args:
        default: value if the option is not set; None if the command chooses, a tuple for a list
            of values separated by commas.
        rule: of the value. Values of ``TEXT`` and ``PATH`` are not parsed as YAML; that of ``PATH``
            is a ``Path``.
        help: one line.
        key: as typed, if it is not the name of the field.
        placeholder: shown in the help if there is no default (None or an empty list).
    """
    return field(default=default, metadata={"option": (key, rule, help, placeholder)})


@dataclass(frozen=True)
class TrustOptions:
    """Option of every command that builds objects from the configuration of a run."""

    trust: tuple[str, ...] = option(
        (),
        DOTTED_NAME,
        "classes and functions of your own that the run names: [my_models.Net]",
        placeholder="[]",
    )


@dataclass(frozen=True)
class CheckpointOptions(TrustOptions):
    """Options of every command that loads a run."""

    checkpoint: str = option("best", one_of("best", "last"), "best or last, of a run folder")


@dataclass(frozen=True)
class RunOptions(CheckpointOptions):
    """Options of every command that loads a run on a device."""

    device: str = option("auto", DEVICE, "auto, cpu, cuda, cuda:N or mps")


def declared(options: type[DataclassInstance]) -> dict[str, Option]:
    """The options of a dataclass by field name: its own first, then those of its bases."""
    declarations = {}
    entries = {entry.name: entry for entry in fields(options) if "option" in entry.metadata}
    for base in options.__mro__:
        for name in get_annotations(base):
            if name in entries and name not in declarations:
                entry = entries[name]
                key, *rest = entry.metadata["option"]
                declarations[name] = Option(key or name, entry.default, *rest)
    return declarations


def checked(options: OptionsT) -> OptionsT:
    """Options that did not come from a command line.

    Raises:
        UserError: for a value that is not allowed.
    """
    for name, entry in declared(type(options)).items():
        entry.check(getattr(options, name))
    return options


def parse(
    options: type[OptionsT], words: Sequence[str], others: str | None = None
) -> tuple[list[str], OptionsT, list[str]]:
    """Read the words of a command line.

    Args:
        options: dataclass of the command's options.
        words: paths, then ``key=value``.
        others: prefix of other allowed keys, such as ``dataset.``; an empty prefix allows all keys,
            None no others.

    Returns:
        The paths, the options, and the words with other keys.

    Raises:
        UserError: for an unknown key, a value that is not allowed, or words in the wrong order.
    """
    paths, settings = split(words)
    known = declared(options)
    names = {entry.key: name for name, entry in known.items()}
    values, rest = {}, []
    for word in settings:
        key, _, text = word.partition("=")
        if key in names:
            values[names[key]] = known[names[key]].read(text)
            continue
        near = difflib.get_close_matches(key, names, 1)
        if near and key not in (*RUN_RULES, *GROUPS):
            raise UserError(key, f"no key {key!r}", f"did you mean {near[0]!r}? see --help")
        if others is None or not key.startswith(others):
            more = f" and {others}KEY" if others else ""
            raise UserError(key, f"no key {key!r}", f"the options are {', '.join(names)}{more}")
        rest.append(word)
    return paths, options(**values), rest


def usage(
    synopsis: str,
    description: str,
    options: type[DataclassInstance] | Mapping[str, type[DataclassInstance]],
    notes: str = "",
) -> str:
    """The help text of a command.

    Args:
        synopsis: the command and its positional words.
        description: what it does.
        options: dataclass of its options; or several by heading, each without inherited fields.
        notes: more text, below the options.
    """
    if isinstance(options, Mapping):
        tables = [
            f"{heading}\n{_table([declared(group)[name] for name in get_annotations(group)])}"
            for heading, group in options.items()
        ]
    else:
        tables = [_table([*declared(options).values()])]
    parts = [f"{synopsis.strip()}\n\n{description.strip()}", *tables, notes.strip()]
    return "\n".join(part for part in parts if part)


def _table(options: Sequence[Option]) -> str:
    """One line ``key=default  help`` for each option, wrapped at ``WIDTH``."""
    left = [f"{entry.key}={entry.default_text}" for entry in options]
    column = max(map(len, left)) + 4
    return "\n".join(
        textwrap.fill(
            entry.help,
            WIDTH,
            initial_indent=f"  {text}".ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for entry, text in zip(options, left, strict=True)
    )


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


def no_paths(paths: Sequence[str]) -> None:
    """Check that a command line has no paths.

    Raises:
        UserError: for a positional word.
    """
    if paths:
        raise UserError(
            paths[0], f"{paths[0]}: settings are written key=value, such as model=resnet34"
        )


def choose(key: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        UserError: otherwise, with the nearest and all allowed values.
    """
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(key, f"{key}={value}{hint} allowed: {', '.join(allowed)}")


def command(usage: str, main: Callable[[list[str]], None]) -> None:
    """Run a command with ``sys.argv``.

    A mistake of the user, or an everyday condition of the machine (``research.utils.conditions``),
    is printed in one line, with exit status 2. Every other exception keeps its traceback.
    """
    start()
    words = sys.argv[1:]
    if "--version" in words:
        print(NAME, VERSION)
        return
    if not words or "--help" in words or "-h" in words:
        print(usage.strip())
        raise SystemExit(0 if words else 2)
    try:
        require_one_process("this command")
        main(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has ended, as in `… | head`; Python would write to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        print(f"interrupted by {signal.Signals(number).name}", file=sys.stderr)
        raise SystemExit(128 + number) from None
    except Exception as error:
        known = error if isinstance(error, UserError) else conditions.explain(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        raise SystemExit(2) from None


def _parsed(text: str) -> Any:
    """The text as a value; what is none is text, for the rule to refuse."""
    try:
        return parse_typed(text)
    except ValueError:
        return text


def _typed(value: Any) -> str:
    """A default as typed on the command line."""
    if isinstance(value, float):
        return re.sub(r"e([+-])0", r"e\1", f"{value:g}")
    return format_value(value)
