"""Reads the record in a run folder: configuration, overrides, environment. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.config import stored
from research.config.run_files import check_names, overrides
from research.config.run_paths import instead_of
from research.config.schema import GROUPS
from research.utils import documents
from research.utils.errors import UserError

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
        raise UserError("RUN", f"{folder}: no run here (no config.yaml)", instead_of(folder))
    path = folder / "config.yaml"
    document = documents.load(path, dict, "RUN")
    if "seed" not in document:
        raise UserError("RUN", f"{path}: has no seed", "this is not the configuration of a run")
    config = stored.unchecked(document, str(path))
    check_names(config, trust, path)
    words = overrides(folder / "overrides.yaml", trust)
    if trust:
        words.append(f"trust=[{','.join(trust)}]")
    environment = _environment(folder / "environment.json")
    for group in GROUPS:
        if not isinstance(config.get(group), dict):
            raise UserError(
                "RUN", f"{path}: has no {group}", "this is not the configuration of a run"
            )
    return RunRecord(folder, config, words, environment, _outcome(folder / "summary.json"))


def _environment(path: Path) -> dict[str, Any]:
    """The environment as ``run_folder.describe`` wrote it.

    Raises:
        UserError: for an invalid commit, package or version: they become parts of commands.
    """
    content = documents.load(path, dict, "RUN")
    parts = {name: content.get(name) or {} for name in ("git", "packages", "hardware")}
    content = {
        "command": [],
        "config_dir": None,
        "data": None,
        "folder": "",
        "global_batch": None,
        "machines": 1,
        "processes": 1,
        "python": "",
        **content,
    }
    data, gpus = content["data"], parts["hardware"].get("gpus", []) if parts["hardware"] else []
    valid = {
        **{name: isinstance(part, dict) for name, part in parts.items()},
        "command": _are_texts(content["command"]),
        "data": data is None or (isinstance(data, dict) and {"name", "hash"} <= {*data}),
        "config_dir": isinstance(content["config_dir"], str | None),
        "folder": isinstance(content["folder"], str),
        "global_batch": content["global_batch"] is None or _is_count(content["global_batch"]),
        "machines": _is_count(content["machines"]),
        "processes": _is_count(content["processes"]),
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


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _outcome(path: Path) -> str:
    """Status and best value of a ``summary.json``; empty if it cannot be read."""
    try:
        summary = documents.load(path, dict, "RUN")
        if not summary["best_epoch"]:
            return str(summary["status"])
        value, epoch = summary["best_value"], summary["best_epoch"]
        return f"{summary['status']}, best {summary['monitor'][0]} {value:.4f} at epoch {epoch}"
    except (UserError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return ""
