"""Reads ``config.yaml`` and ``overrides.yaml`` of a run folder; says which folders are the user's.

Both files may come from someone else: the configuration is validated like that of a checkpoint, and
the overrides are only settings.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from research.config import stored, targets
from research.config.migrations import current_word
from research.config.rules import NAME, is_model_address
from research.config.run_paths import ROOT
from research.utils import documents
from research.utils.errors import UserError

OWN: Final = ("run_dir", "resume", "sweep")
"""Settings of a single run, which are not repeated: its folder, and what started it."""
WORD: Final = re.compile(r"(?!hydra[./=@])[A-Za-z][\w./@]*=")


def is_own(path: Path) -> bool:
    """Whether a file is in the user's ``runs/``, after links are resolved; what is in its cache has
    come from elsewhere.
    """
    inside, root = path.resolve(), ROOT.resolve()
    return inside.is_relative_to(root) and not inside.is_relative_to(root / "cache")


def configuration(folder: Path, trust: Collection[str] = ()) -> dict[str, Any]:
    """The configuration of a run, migrated and validated.

    Raises:
        UserError: if it is damaged or refused, see ``stored.configuration``.
    """
    return stored.configuration(_document(folder), str(folder / "config.yaml"), trust)


def comparable(folder: Path) -> dict[str, Any]:
    """The configuration of a run, migrated but not validated, with defaults; only to be compared.

    Raises:
        UserError: if it is damaged.
    """
    document = _document(folder)
    return stored.with_defaults(stored.unchecked(document, str(folder / "config.yaml")))


def _document(folder: Path) -> Any:
    return documents.load(folder / "config.yaml", dict, "resume")


def name(folder: Path) -> str:
    """The name of a run in its summary; that of its folder if there is none."""
    try:
        found = documents.load(folder / "summary.json", dict, "resume").get("name")
    except UserError:
        found = None
    return str(found) if NAME.is_valid(found) else folder.resolve().name


def overrides(path: Path, trust: Collection[str]) -> list[str]:
    """The overrides of a run's command line, migrated to today's keys, without ``OWN``.

    The ``trust=`` of the run does not count, only that of this command.

    Args:
        path: ``overrides.yaml`` of the run folder.
        trust: names of the user's own code.

    Raises:
        UserError: for a word that is not a setting: the words are composed, and printed as part of
            a command.
    """
    words = []
    for word in documents.load(path, list, "RUN"):
        if not isinstance(word, str):
            raise UserError(
                "RUN", f"{path}: refused, a {type(word).__name__} is not a setting of a run"
            )
        if not WORD.match(word) or re.search(r"(?<!\\)\$\{", word):
            raise UserError("RUN", f"{path}: refused, {word[:80]!r} is not a setting of a run")
        word = current_word(word)
        key, _, value = word.partition("=")
        if targets.TARGET in word:
            *above, last = key.split(".")
            if last != targets.TARGET:
                raise UserError("RUN", f"{path}: refused, {word[:80]!r} is not a setting of a run")
            check_names(targets.nested(".".join(above), {last: value}), trust, path)
        if key not in (*OWN, "trust"):
            words.append(word)
    return words


def check_names(config: Mapping[str, Any], trust: Collection[str], path: Path) -> None:
    """Check that every ``_target_`` of a file is allowed at its path.

    Raises:
        UserError: for a name that is not allowed.
    """
    try:
        targets.check_targets(config, trust)
    except UserError as error:
        raise UserError("RUN", f"{path}: refused, its configuration has {error}") from None


def new_folder(out: Path | None, kind: str, run: Path) -> Path:
    """The folder for new results: ``out``, or ``runs/KIND/NAME-TIME``.

    Args:
        out: as the user has chosen it, if he has.
        kind: name of the command.
        run: run folder or checkpoint file, whose name the folder has.

    Raises:
        UserError: if ``out`` is not empty.
    """
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError("out", f"out={out}: is not empty", "set a new folder")
        return out
    if is_model_address(run):
        run = Path("_".join(run.parts[1:]))
    elif run.is_file():
        run = run.parent.parent if run.parent.name == "checkpoints" else run.with_suffix("")
    folder = ROOT / kind / (f"{run.resolve().name}-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    again = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([folder], again) if not each.exists())
