"""Reads the record in a run folder: configuration, overrides, environment. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from research.config import stored, targets
from research.config.migrations import current_word
from research.config.schema import GROUPS
from research.utils import secrets
from research.utils.errors import UserError, one_line

OWN = ("run_dir", "resume", "sweep")
"""Settings of a single run, which are not repeated: its folder, and what started it."""
WORD = re.compile(r"(?!hydra[./=@])[A-Za-z][\w./@]*=")
COMMIT = re.compile(r"[0-9a-f]{7,64}|")
PACKAGE = re.compile(r"[A-Za-z0-9][\w.-]*")
VERSION = re.compile(r"\d[\w.!]*(\+[a-z0-9.]+)?")


@dataclass(frozen=True)
class RunRecord:
    """The record in a run folder.

    Attributes:
        folder: the run folder.
        config: resolved configuration.
        overrides: of its command line, without ``OWN``.
        environment: as ``run_folder.describe`` wrote it.
        outcome: status and best value; empty if the run never started.
    """

    folder: Path
    config: dict[str, Any]
    overrides: list[str]
    environment: dict[str, Any]
    outcome: str


def read_record(folder: Path, trust: Sequence[str] = ()) -> RunRecord:
    """Read the record of a run folder.

    Args:
        folder: of the run.
        trust: names of the user's own code that its configuration may contain.

    Raises:
        UserError: for a folder without a run, a damaged file, or content that no run writes.
    """
    if not (folder / "config.yaml").exists():
        raise UserError("RUN", f"{folder}: no run here (no config.yaml)", "pass a run folder")
    path = folder / "config.yaml"
    document = _load(path, dict)
    if "seed" not in document:
        raise UserError("RUN", f"{path}: has no seed", "this is not the configuration of a run")
    config = stored.unchecked(document, str(path))
    _check_names(config, trust, path)
    overrides = _overrides(folder / "overrides.yaml", trust)
    environment = _environment(folder / "environment.json")
    for group in GROUPS:
        if not isinstance(config.get(group), dict):
            raise UserError(
                "RUN", f"{path}: has no {group}", "this is not the configuration of a run"
            )
    return RunRecord(folder, config, overrides, environment, _outcome(folder / "summary.json"))


def _check_names(config: Mapping[str, Any], trust: Sequence[str], path: Path) -> None:
    try:
        targets.check_targets(config, trust)
    except UserError as error:
        raise UserError("RUN", f"{path}: refused, its configuration has {error}") from None


def _overrides(path: Path, trust: Sequence[str]) -> list[str]:
    """The overrides of a run's command line, migrated to today's keys, without ``OWN``.

    The ``trust=`` of the run does not count, only that of this command.

    Raises:
        UserError: for a word that is not a setting: the words are composed, and printed as part of
            a command.
    """
    words = []
    for word in _load(path, list):
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
            _check_names(targets.nested(".".join(above), {last: value}), trust, path)
        if key not in (*OWN, "trust"):
            words.append(word)
    return [*words, f"trust=[{','.join(trust)}]"] if trust else words


def _environment(path: Path) -> dict[str, Any]:
    """The environment as ``run_folder.describe`` wrote it.

    Raises:
        UserError: for an invalid commit, package or version: they become parts of commands.
    """
    content = _load(path, dict)
    parts = {name: content.get(name) or {} for name in ("git", "packages", "hardware")}
    content = {"command": [], "data": None, "folder": "", "python": "", **content}
    data, gpus = content["data"], parts["hardware"].get("gpus", []) if parts["hardware"] else []
    valid = {
        **{name: isinstance(part, dict) for name, part in parts.items()},
        "command": _are_texts(content["command"]),
        "data": data is None or (isinstance(data, dict) and {"name", "hash"} <= {*data}),
        "folder": isinstance(content["folder"], str),
        "python": isinstance(content["python"], str),
        "gpus": _are_texts(gpus),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise UserError("RUN", f"{path}: damaged ({name})", "use another run")
    commit = parts["git"].get("commit")
    if commit is not None and not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
        raise UserError("RUN", f"{path}: refused, {str(commit)[:80]!r} is not a commit")
    for name, version in parts["packages"].items():
        if version is None:
            continue
        if not PACKAGE.fullmatch(name) or not VERSION.fullmatch(str(version)):
            raise UserError(
                "RUN", f"{path}: refused, {name[:40]}=={str(version)[:40]} is not a package"
            )
    return {**content, **parts}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _load(path: Path, kind: type) -> Any:
    parse = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("RUN", f"{path}: missing", "this run cannot be repeated") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError("RUN", f"{path}: damaged ({one_line(error)})", "use another run") from None
    if not isinstance(content, kind):
        raise UserError("RUN", f"{path}: damaged (expected a {kind.__name__})", "use another run")
    return secrets.redacted(content)


def _outcome(path: Path) -> str:
    """Status and best value of a ``summary.json``; empty if it cannot be read."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not summary["best_epoch"]:
            return str(summary["status"])
        value, epoch = summary["best_value"], summary["best_epoch"]
        return f"{summary['status']}, best {summary['monitor'][0]} {value:.4f} at epoch {epoch}"
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError,
    ):  # fmt: skip
        return ""
