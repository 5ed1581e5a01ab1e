"""What users have: settings, commands, and what a run of each task leaves behind.

``pytest --update-golden tests/test_inventory.py`` writes it to ``tests/golden/inventory``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from research.config.compose import composed
from research.config.group_rules import LAUNCHER, group_rules
from research.config.keys import setting_values
from research.config.messages import format_value
from research.config.options import options
from research.config.rules import Rule
from research.config.schema import GROUPS, OPTIONAL, RUN_DEFAULTS, RUN_RULES, register, rule_for
from research.utils.installation import CONF
from tests.conftest import ROOT, verb

Inventory = dict[str, Any]
OPTION = re.compile(r"^ {2}(?:[a-z_.]+=\S* )*", re.MULTILINE)
WORD = re.compile(r"([a-z_.]+)=(\S*)")


def settings() -> Inventory:
    """Every key with its default and what it may be: of a run, and of each option of each group."""
    register()
    run = {name: _default_and_rule(RUN_DEFAULTS[name], rule) for name, rule in RUN_RULES.items()}
    groups = {}
    for group in GROUPS:
        for option in options(group):
            config = composed([f"{group}={option}"]).unresolved
            node, rules = config[group], group_rules(config)
            groups[f"{group}={option}"] = {
                key: _default_and_rule(value, rule_for(f"{group}.{key}", value, rules))
                for key, value in setting_values(node).items()
            }
    sweeper = yaml.safe_load((CONF / "hydra/sweeper/study.yaml").read_text())
    keys = {
        key: _default_and_rule(value, rule_for(f"hydra.sweeper.{key}", value, group_rules({})))
        for key, value in sweeper.items()
        if key[0] != "_" and key != "defaults"
    }
    launchers = {}
    for path in sorted((CONF / "hydra/launcher").glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        rules = group_rules({LAUNCHER: node})
        launchers[f"{LAUNCHER}={path.stem}"] = {
            key: _default_and_rule(value, rule_for(f"{LAUNCHER}.{key}", value, rules))
            for key, value in node.items()
            if key[0] != "_"
        }
    recipes = {group: options(group) for group in OPTIONAL}
    for option in options("dataset"):
        size = composed([f"dataset={option}"]).config["batch_size"]
        groups[f"batch_size of dataset={option}"] = str(size)
    return {"run": run, **groups, "hydra.sweeper": keys, **launchers, **recipes}


def _default_and_rule(value: Any, rule: Rule) -> str:
    return f"{format_value(value)} ({rule.allowed})"


def commands() -> Inventory:
    """Every ``python -m research.COMMAND`` with the options that its help names."""
    found = {}
    for path in sorted((ROOT / "research").glob("*.py")):
        if path.stem not in ("judge", "lab") and "cli.command(" in path.read_text(encoding="utf-8"):
            usage = verb(path.stem).USAGE
            lines = (OPTION.match(line) for line in usage.splitlines())
            words = [word for line in lines if line for word in WORD.findall(line[0])]
            found[path.stem] = dict(sorted(words))
    return found


def of_run(folder: Path) -> Inventory:
    """Files, columns, and what checkpoints and records hold, of a finished run."""
    checkpoint = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    summary = yaml.safe_load((folder / "summary.json").read_text())
    return {
        "files": files(folder),
        **{f"columns of {table}": columns(folder / f"{table}.csv") for table in TABLES},
        **{
            f"columns of tables/{path.name}": columns(path)
            for path in sorted((folder / "tables").glob("*.csv"))
        },
        "checkpoint": sorted(checkpoint),
        "checkpoint state": sorted(checkpoint["state"]),
        "checkpoint data": sorted(checkpoint["data"]),
        "summary.json": sorted(summary),
        "summary.json epochs": sorted(summary["epochs"][0]),
        "environment.json": sorted(yaml.safe_load((folder / "environment.json").read_text())),
    }


TABLES = ("epoch_metrics", "batch_metrics")


def files(folder: Path) -> list[str]:
    """Names below a folder, with numbers that change from run to run left out."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    plain_names = (re.sub(r"(?<=loss_)[\d.]+(?=\.pt)|(?<=tfevents).*", "…", name) for name in names)
    return sorted({name for name in plain_names if not name.endswith(".lock")})


def columns(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def of_mlflow(client: Any, run_id: str) -> Inventory:
    """Metrics, parameters, tags and artifacts of an MLflow run."""
    run = client.get_run(run_id)
    tags: Mapping[str, str] = run.data.tags
    found: list[str] = []
    folders = [""]
    while folders:
        for entry in client.list_artifacts(run_id, folders.pop() or None):
            (folders if entry.is_dir else found).append(entry.path)
    return {
        "metrics": sorted(key for key in run.data.metrics if not key.startswith("system/")),
        "parameters": sorted(run.data.params),
        "tags": sorted(tags),
        "artifacts": sorted(found),
    }


def keys(path: Path) -> list[str]:
    """Of a JSON file that holds a mapping."""
    return sorted(yaml.safe_load(path.read_text(encoding="utf-8")))
