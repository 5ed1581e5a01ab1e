"""``study.json``, the description of a study, and the search for the study of a command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, MinLen
from pydantic import AwareDatetime, ConfigDict, StringConstraints, with_config

from research.config.migrations import current_column, current_key, current_word
from research.engine.run_folder import ROOT
from research.sweeps.identity import Search, format_changes
from research.utils import documents
from research.utils.documents import validate
from research.utils.errors import UserError, one_line
from research.utils.files import to_json, write_text

log = logging.getLogger(__name__)

FOLDER: Final = ROOT / "sweeps"
DESCRIPTION: Final = "study.json"
SUMMARY: Final = "final_summary.json"
LEGACY: Final = ("objectives", "space", "fixed", "storage", "sampler")
"""Entries of ``study.json`` that identified a study before configurations were compared."""


@with_config(ConfigDict(extra="allow"))
@dataclass(frozen=True)
class _Objective:
    name: str
    direction: Literal["maximize", "minimize"]


@with_config(ConfigDict(extra="allow"))
@dataclass(frozen=True)
class _Description:
    """The entries of ``study.json``, which ``final_summary.json`` repeats."""

    study: str
    command: list[str]
    objectives: Annotated[list[_Objective], MinLen(1)]
    space: dict[str, str]
    fixed: list[str]
    storage: str
    sampler: str
    monitor: Annotated[str, StringConstraints(pattern=r"^[^\s:]+:(min|max)$")]
    n_trials: Annotated[int, Ge(1)]
    configuration: dict[str, Any]
    started: AwareDatetime
    pruner: str | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampling: str | None = None


def read_description(folder: Path) -> dict[str, Any] | None:
    """The description of the study in a folder, under current names; ``None`` if it has none.

    ``final_summary.json`` repeats ``study.json`` and replaces a damaged one.

    Raises:
        UserError: if both are damaged.
    """
    description = _read(folder)
    return None if description is None else migrated(description)


def _read(folder: Path) -> dict[str, Any] | None:
    damage: UserError | None = None
    for path in (folder / DESCRIPTION, folder / SUMMARY):
        try:
            document = read_json(path)
            validate(_Description, document, "hydra.sweeper.study_name", path, "")
            return dict(document)
        except FileNotFoundError:
            continue
        except UserError as error:
            damage = damage or error
    if damage is not None:
        raise damage
    return None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: if it cannot be read.
        FileNotFoundError: if there is none.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    return documents.load(path, object, "hydra.sweeper.study_name", "use another study")


def migrated(description: Mapping[str, Any]) -> dict[str, Any]:
    """A ``study.json`` of any version under current names."""
    content = dict(description)
    content["space"] = {current_key(key): text for key, text in content["space"].items()}
    content["fixed"] = sorted(current_word(word) for word in content["fixed"])
    content["objectives"] = [
        {**each, "name": current_column(each["name"])} for each in content["objectives"]
    ]
    metric, _, mode = content["monitor"].rpartition(":")
    content["monitor"] = f"{current_column(metric)}:{mode}"
    return content


def find_name(search: Search, prefix: str, legacy: Callable[[Mapping[str, Any]], str]) -> str:
    """The name of a search's study; a new one if there is none yet.

    Args:
        search: of a study that its user has not named.
        prefix: of a new name.
        legacy: the name that earlier versions gave to a search, from its ``LEGACY`` entries.
    """
    for folder in sorted(path for path in FOLDER.glob("*") if path.is_dir()):
        try:
            description = _read(folder)
            if description is None:
                continue
            if "sampling" in description:
                own = description["sampling"] == search.sampling
            else:
                own = legacy({key: description[key] for key in LEGACY}) == folder.name
            if not own:
                continue
            known = migrated(description)
            changes = search.changes(known)
        except (UserError, OSError, ValueError, TypeError) as error:
            log.warning("sweep: %s is damaged and left alone (%s)", folder, one_line(error))
            continue
        if not changes:
            return folder.name
        words = known["fixed"], known["space"], known["sampler"]
        if words == (search.space.identity, search.space.expressions, search.sampler):
            log.info(
                "sweep: %s belongs to the same command with other settings (%s): this is a new "
                "study",
                folder,
                format_changes(changes),
            )
    return search.name(prefix)


def describe(
    folder: Path, search: Search, *, named: bool, has_trials: bool, **settings: Any
) -> None:
    """Write ``study.json``; a resumed study keeps its first command and start time.

    Args:
        folder: of the study.
        search: what identifies the study.
        named: whether the user has chosen its name.
        has_trials: whether the study is not new.
        settings: what may differ each time.

    Raises:
        UserError: if the folder belongs to another search, or to one that is not known.
    """
    damage, changes = "", {}
    try:
        known = read_description(folder)
        changes = search.changes(known) if known else {}
    except UserError as error:
        known, damage = None, error.message
    if not named:
        # The name contains the digest of the search that it belongs to.
        if changes or damage:
            log.warning("sweep: %s was damaged and is written anew", folder / DESCRIPTION)
        known = None if changes else known
    elif known is None and has_trials:
        raise UserError(
            "hydra.sweeper.study_name",
            f"{folder / DESCRIPTION}: {damage or 'it is missing'}; the search of its trials is not "
            "known",
            f"choose another hydra.sweeper.study_name, or delete {folder}",
        )
    elif changes:
        raise UserError(
            "hydra.sweeper.study_name",
            f"hydra.sweeper.study_name={folder.name}: {folder} belongs to another search "
            f"({format_changes(changes)})",
            "choose another name",
        )
    first = {key: known[key] for key in ("command", "started")} if known else {}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"study": folder.name, **search.document(), "command": sys.argv, **settings}
    content["sampling"] = None if named else search.sampling
    write_text(folder / DESCRIPTION, to_json({**content, "started": started, **first}))
