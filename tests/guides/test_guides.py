"""Each row of docs/migrating.md is true: its command runs, its file is there, its key is one.

The commands of four guides are run with ``-m whole``, those of guide 5 by default.
"""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from research.config import compose_config, register
from research.config.compose import composed
from research.config.keys import leaves, setting_values
from research.config.options import option_node, options
from research.config.schema import GROUPS, OPTIONAL, RUN_RULES
from research.engine.shapes import Shapes
from research.utils.errors import UserError
from tests import inventory
from tests.conftest import GOLDEN, ROOT
from tests.guides.projects import GUIDES, Project, checked, make, words_of
from tests.guides.table import Row, rows

ROWS = rows()
BY_DEFAULT = (5,)
"""The guides whose commands run in seconds."""
CHEAP = [
    row if row.guide in BY_DEFAULT else pytest.param(row, marks=pytest.mark.whole) for row in ROWS
]
PROSE = (
    "deleting `cache/phototriage_features`",  # tests/data/pairs
    "skip-if-exists, clear",  # tests/data/warehouse/test_build.py
    "pixels of 0…255 normalised with statistics for 0…1 (values up to 1136)",
    "no augmentation",
    "best by training loss",
    'box features from five feature maps, including "pool"',
    "GPU timed without synchronising",
)
"""Rows that name nothing that could be looked for here."""
VALUES = {"N": "2", "X": "0.01", "Y": "0.001", "K": "2", "M": "studio", "DIR": "out", "RUN": "r"}
SUFFIXES = (".pt", ".safetensors", ".json", ".csv", ".yaml", ".log", ".txt", ".png", ".npy", "/")


# -- what a row names ----------------------------------------------------------------------------


@cache
def known_columns() -> set[str]:
    """Of every table that the inventory has, and of the CSV of ``research.summary``."""
    found = set(Shapes.__dataclass_fields__)
    for path in (GOLDEN / "inventory").glob("run_*.json"):
        document = json.loads(path.read_text())
        found |= {column for key in document if "columns of" in key for column in document[key]}
    return found


@cache
def known_keys() -> set[str]:
    """Of runs, and of every option of every group."""
    found = {*RUN_RULES, *GROUPS, *OPTIONAL, "hydra.sweeper.study_name"}
    for group in GROUPS:
        for option in options(group):
            found |= {f"{group}.{key}" for key in setting_values(option_node(group, option))}
    return found


@cache
def command_options() -> set[str]:
    return {key for options_ in inventory.commands().values() for key in options_}


def kind(row: Row, name: str) -> str:
    """What a name in a row is: an entry of a checkpoint, a file, a column, a key, a value …"""
    if name.startswith("research."):
        return "python"
    if "entr" in row.now and not name.startswith("."):
        return "entry"
    if name in options(row.key_before(name)):
        return "value"
    if name in known_columns():
        return "column"
    if name.endswith(SUFFIXES) or name == "runs/data":
        return "file"
    if name in known_keys():
        return "key"
    return "value" if row.settings or "dataset.features" in row.names else "unknown"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_names_what_there_is(row: Row) -> None:
    """Without running anything: commands, options, keys, columns and pages exist."""
    assert row.spans or row.links or row.before in PROSE, "say what it is now, as code"
    for page in row.links:
        assert (ROOT / "docs" / page).is_file(), page
    for command in row.commands:
        words = command.split()
        if words[:2] == ["python", "-m"]:
            importlib.import_module(words[2])
            options_ = [w.partition("=")[0] for w in words[3:] if "=" in w]
            assert {*options_} <= command_options() | known_keys()
        else:
            assert words[:2] == ["python", "train.py"] or shutil.which(words[0]), words[0]
    for words in row.settings:
        keys = {word.partition("=")[0] for word in words}
        assert keys <= known_keys() | command_options()
    for name in row.names:
        found = kind(row, name)
        assert found != "unknown", name
        if found == "python":
            pkgutil.resolve_name(name.partition("(")[0])


def test_rows_of_prose_are_rows_of_the_page() -> None:
    assert {*PROSE} <= {row.before for row in ROWS}
    assert {row.guide for row in ROWS} == {*GUIDES}
    assert len(ROWS) > 160


# -- the guides' defaults ------------------------------------------------------------------------

DEFAULTS: dict[int, tuple[str, dict[str, Any]]] = {
    1: (
        "`python -m src.nn.backbone.train_compressed_backbones --variant V`",
        {
            "epochs": 100, "batch_size": 256, "precision": "bf16", "compression.window": 4,
            "compression.range": "studio", "save_every": 10, "keep": "all",
        },
    ),
    2: (
        "`python scripts/train_all_backbones_comprehensive.py --data data/`",
        {
            "epochs": 30, "batch_size": 2, "optimizer.lr": 0.005, "scheduler.step_size": 10,
            "scheduler.gamma": 0.1, "save_every": 1, "keep": "all",
            "optimizer._target_": "torch.optim.SGD",
        },
    ),
    3: (
        "`uv run python src/main.py --mode train`",
        {
            "epochs": 200, "batch_size": 64, "optimizer._target_": "torch.optim.SGD",
            "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
            "scheduler._target_": "research.engine.schedules.cosine", "scheduler.warmup_epochs": 5,
            "keep": "all", "dataset.name": "cifar10", "model.name": "densenet121",
        },
    ),
    4: (
        "`python -m sim_bench.training.train_frozen --config configs/frozen/multifeature.yaml`",
        {
            "epochs": 50, "batch_size": 32, "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.01,
            "optimizer._target_": "torch.optim.AdamW", "patience": 10, "model.dropout": 0.5,
            "model.mlp_hidden_dims": [512, 256], "dataset.min_agreement": 0.7,
        },
    ),
    5: (
        "`cargo run -p training --features burn_runtime --bin train -- --manifest M`",
        {"model._target_": "research.models.detectors.TinyDet"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("guide", DEFAULTS)
def test_the_first_form_has_the_defaults_of_the_guide(guide: int) -> None:
    register()
    before, expected = DEFAULTS[guide]
    (row,) = (row for row in ROWS if row.before == before)
    words = [w for w in row.commands[0].replace("V ", "luma_fusion ").split()[2:] if w != "-m"]
    found = dict(leaves(composed([word.strip("'") for word in words]).config))
    assert {key: found[key] for key in expected} == expected


# -- what is found in a run, and after the commands ----------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Project]:
    return cache(lambda guide: make(guide, tmp_path_factory.mktemp(f"guide_{guide}")))


def columns_of(project: Project) -> set[str]:
    found: set[str] = set()
    for path in project.folder.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found |= set(next(csv.reader(file), []))
    return found


def entries_of(checkpoint: Path) -> set[str]:
    content = torch.load(checkpoint, weights_only=True)
    return {*content, *(f"state.{name}" for name in content["state"])}


def typed(words: list[str]) -> Iterator[str]:
    """Words with values for their capitals; without those that stand for any value."""
    for word in words:
        key, _, value = word.partition("=")
        if "…" not in value and key not in ("resume", "init_from", "model.pretrained"):
            yield f"{key}={VALUES.get(value, value)}"


FOLDERS = ("dataset.train_dirs=[a]", "dataset.val_dir=v")
BASES: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (
        ("experiment=imagenet_resnet34_compressed", *FOLDERS),
        ("experiment=imagenet_resnet34", *FOLDERS),
    ),
    2: (("experiment=rgbx_guide", "dataset.root=data"),),
    3: (("experiment=cifar10_densenet121",), ("model=densenet121", "dataset=cifar10"), FOLDERS),
    4: (
        ("experiment=phototriage_multifeature", "dataset.root=data"),
        ("experiment=phototriage_e2e_resnet50", "dataset.root=data"),
    ),
    5: (
        ("model=tinydet", "dataset=warehouse", "dataset.manifest=store"),
        ("model=bigdet", "dataset=warehouse", "dataset.manifest=store"),
    ),
}
"""The systems of a guide, one of which has to accept a setting."""


def accepted(guide: int, words: list[str]) -> None:
    """Check settings as ``train.py`` does.

    Raises:
        UserError: of the last system that refuses them.
    """
    keys = {word.partition("=")[0] for word in words}
    *others, last = BASES[guide]
    for base in others:
        with suppress(UserError):
            compose_config([*(word for word in base if word.partition("=")[0] not in keys), *words])
            return
    compose_config([*(word for word in last if word.partition("=")[0] not in keys), *words])


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("row", CHEAP, ids=str)
def test_a_row(row: Row, project: Callable[[int], Project]) -> None:
    """Its commands have run, its settings are accepted, its files, columns and keys are there."""
    register()
    made = project(row.guide)
    checked(row, made)
    options_: dict[str, str] = {}
    for words in row.settings:
        chosen = [*typed(words)]
        keys = {word.partition("=")[0] for word in chosen}
        if chosen and keys <= known_keys():
            accepted(row.guide, [*(w for key, w in options_.items() if key not in keys), *chosen])
        options_ |= {key: w for w in chosen if (key := w.partition("=")[0]) == "scheduler"}
    for name in row.names:
        match kind(row, name):
            case "file":
                assert made.find(name) or (ROOT / name).exists(), name
            case "column":
                assert name in columns_of(made)
            case "entry":
                assert name in entries_of(made.folder / "runs/first/checkpoints/last.pt")
            case "value" if key := row.key_before(name):
                accepted(row.guide, [f"{key}={name}"])


def test_commands_are_made_small_and_not_others() -> None:
    words = words_of("python train.py experiment=imagenet_resnet34 dataset.val_dir=v", GUIDES[1])
    assert words[2:4] == ["experiment=imagenet_resnet34", "dataset.val_dir=v"]
    assert "epochs=1" in words
    assert words_of("python -m research.predict RUN IMAGE", GUIDES[5])[3] == "runs/first"
