"""Where a command writes its files, and the command with which to go on. Imports no torch.

Standard output has the result of a command and nothing else, so that it can be piped: logs,
progress, where files are and what comes next are on standard error.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from research.config import targets
from research.config.cli import CheckpointOptions, RunOptions, declared
from research.config.messages import format_value
from research.config.overrides import override, train_command
from research.config.rules import is_model_address
from research.config.run_files import comparable, is_own
from research.utils import conditions
from research.utils.errors import UserError

TRUSTING: Final = (
    "crossval", "evaluate", "export", "leaderboard", "predict", "reproduce", "robustness",
)  # fmt: skip
"""Verbs that build what a run names: their options derive from ``cli.TrustOptions``."""


def run_dir_of(path: Path) -> Path:
    """The run folder of a path: the path itself, or the folder of a checkpoint file."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "checkpoints" else folder


def folder_in_run(run: Path, name: str) -> Path:
    """The folder ``name`` for results in a run folder.

    Raises:
        UserError: if it is a link that leads outside of the run folder, or there is none.
    """
    if is_model_address(run):
        raise UserError("out", f"{run}: a model in MLflow has no run folder", "set out=FOLDER")
    folder = run_dir_of(run)
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError("out", f"{folder / name}: a link that leads elsewhere", "set out=FOLDER")
    return folder / name


def print_files(out: Path, *names: str, following: str = "") -> None:
    """Print on standard error where files were written, and a command to go on with.

    Args:
        out: the folder.
        names: of the files in it.
        following: the command; empty for none.
    """
    more = f" ({', '.join(names)})" if names else ""
    print(f"\nfiles: {out}{more}", file=sys.stderr)
    if following:
        print_next(following)


def print_next(following: str, check: str = "") -> None:
    """Print on standard error a command to go on with.

    Args:
        following: the command.
        check: one that may come before it.
    """
    if check:
        print(f"check: {check}", file=sys.stderr)
    print(f"next:  {following}", file=sys.stderr)


def typed_options(options: CheckpointOptions) -> list[str]:
    """The options that commands on a run share, as typed; without those at their defaults."""
    shared = declared(RunOptions if isinstance(options, RunOptions) else CheckpointOptions)
    values = {name: getattr(options, name) for name in shared}
    usual = RunOptions()
    return [
        f"{name}={format_value(list(value) if isinstance(value, tuple) else value)}"
        for name, value in values.items()
        if value != getattr(usual, name)
    ]


def command_of(verb: str, *words: object) -> str:
    """A command line of ``python -m research.VERB``, quoted for the shell.

    With ``trust=[…]`` if a run of the user's among the words needs it, and they lack it.
    """
    needed = []
    if verb in TRUSTING and not any(str(word).startswith("trust=") for word in words):
        found = [word for path in words if isinstance(path, Path) for word in trust_words(path)]
        needed = [*dict.fromkeys(found)]
    return shlex.join(["python", "-m", f"research.{verb}", *map(str, words), *needed])


def resume_command(run: Path, *words: str) -> str:
    """The command line that resumes a run.

    Args:
        run: its folder.
        words: more of the command line, ``key=value`` each.
    """
    trusted = [] if any(word.startswith("trust=") for word in words) else trust_words(run)
    return train_command([override("resume", str(run)), *trusted, *words])


def trust_words(run: Path) -> list[str]:
    """``trust=[…]`` as a word of a command on a run, if its configuration names code of the user.

    None for a run outside of ``runs/``, which may be someone else's: its user decides.

    Args:
        run: its folder, or one of its checkpoints.
    """
    folder = run_dir_of(run)
    try:
        names = targets.own_names(comparable(folder)) if is_own(folder) else []
    except (UserError, OSError):
        return []
    return [targets.trust_word(names)] if names else []


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Raise a ``UserError`` if results cannot be written to ``out``.

    Raises:
        UserError: for a full disk, a folder that is a file, or one without write permission.
    """
    try:
        yield
    except OSError as error:
        raise conditions.explain(error, {"out": out}) or UserError(
            "out", f"{out}: {error.strerror or error}", "set another out=FOLDER"
        ) from None
