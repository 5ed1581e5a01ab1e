"""Each row of docs/migrating.md is true: its command runs, its file is there, its key is one.

The commands of four guides are run with ``-m whole``, those of guide 5 by default; so are rows of
guides 2 and 4 that need no run.
"""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch

import research
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
RUN_BY_DEFAULT = (5,)
"""The guides whose commands run in seconds."""
SETTINGS_BY_DEFAULT = (2, 4, 5)
"""The guides with few settings."""
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
VARIABLES = ("V", "…")
"""What stands for any option."""
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
    found = {*RUN_RULES, *GROUPS, *OPTIONAL, "hydra.sweeper.study_name", "tags.paper"}
    for group in GROUPS:
        for option in options(group):
            found |= {f"{group}.{key}" for key in setting_values(option_node(group, option))}
    return found


@cache
def command_options() -> set[str]:
    return {key for options_ in inventory.commands().values() for key in options_}


def left_behind(row: Row, name: str) -> str:
    """What a name is if a run or a command writes it: an entry of a file, a column, a file …"""
    if name.startswith("research.") or name in options(row.key_before(name)):
        return ""
    if re.search(r"\btensors\b", row.now):
        return "tensor"
    if "entr" in row.now and not name.endswith(SUFFIXES):
        return "entry"
    if name in known_columns():
        return "column"
    return "file" if name.endswith(SUFFIXES) or name == "runs/data" else ""


def kind(row: Row, name: str) -> str:
    """What a name in a row is: what a run leaves behind, a name of Python, a key, a value …"""
    if found := left_behind(row, name):
        return found
    if name.startswith("research."):
        return "python"
    if name in options(row.key_before(name)):
        return "value"
    if name in known_keys():
        return "key"
    return "value" if row.settings or "dataset.features" in row.names else "unknown"


def needs_a_run(row: Row) -> bool:
    return bool(row.commands) or any(left_behind(row, name) for name in row.names)


def marked(row: Row) -> Any:
    default = RUN_BY_DEFAULT if needs_a_run(row) else SETTINGS_BY_DEFAULT
    return row if row.guide in default else pytest.param(row, marks=pytest.mark.whole)


def chosen_options(word: str) -> list[tuple[str, str]]:
    """The options of a group that a word names."""
    key, _, value = word.strip("'").partition("=")
    names = value.split(",") if key in {*GROUPS, *OPTIONAL} else []
    return [(key, name) for name in names if name not in VARIABLES]


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
        elif words[:2] == ["python", "train.py"]:
            keys = {word.strip("'").partition("=")[0] for word in words[2:] if "=" in word}
            assert keys <= known_keys()
        else:
            assert shutil.which(words[0]), words[0]
        for group, option in (pair for word in words for pair in chosen_options(word)):
            assert option in options(group), f"{group}={option}"
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
    assert len(ROWS) > 200


def test_a_fifth_of_the_rows_is_looked_at_by_default() -> None:
    default = [row for row in ROWS if isinstance(marked(row), Row)]
    assert len(default) * 5 >= len(ROWS)
    assert {needs_a_run(row) for row in default} == {True, False}


# -- the guides' defaults ------------------------------------------------------------------------

SGD, ADAMW = "torch.optim.SGD", "torch.optim.AdamW"
IMAGENET = {
    "epochs": 100, "batch_size": 256, "precision": "bf16", "save_every": 10, "keep": "all",
}  # fmt: skip
RGBX = {
    "epochs": 30, "batch_size": 2, "optimizer._target_": SGD, "optimizer.lr": 0.005,
    "scheduler._target_": "research.engine.schedules.step", "scheduler.step_size": 10,
    "scheduler.gamma": 0.1, "save_every": 1, "keep": "all",
}  # fmt: skip
CIFAR = {
    "epochs": 200, "batch_size": 64, "keep": "all",
    "scheduler._target_": "research.engine.schedules.cosine", "scheduler.warmup_epochs": 5,
    "dataset.name": "cifar10", "model.name": "densenet121", "model.block_layers": [6, 12, 24, 16],
}  # fmt: skip
E2E = (
    "optimizer=adamw optimizer.lr=0.001 optimizer.weight_decay=0.01 batch_size=32 epochs=50 "
    "'model.mlp_hidden_dims=[512,256]' model.dropout=0.5"
)
PHOTOS = {
    "batch_size": 32, "optimizer.weight_decay": 0.01, "optimizer._target_": ADAMW,
    "optimizer.lr": 1e-3, "epochs": 50, "patience": 10, "model.mlp_hidden_dims": [512, 256],
    "model.dropout": 0.5, "dataset.min_agreement": 0.7, "evaluate_at_end": "test",
}  # fmt: skip
DEFAULTS: list[tuple[int, str, dict[str, Any]]] = [
    (1, "experiment=imagenet_resnet34", IMAGENET),
    (
        1,
        "experiment=imagenet_resnet34_compressed compression=luma_fusion",
        {**IMAGENET, "compression.window": 4, "compression.range": "studio"},
    ),
    (1, "experiment=imagenet_cspdarknet53", IMAGENET),
    (1, "experiment=imagenet_efficientvit_m4", IMAGENET),
    (2, "sweep=all_backbones", RGBX),
    (2, "experiment=rgbx_guide", {**RGBX, "model.x_channels": None, "model.fpn_channels": 256}),
    (
        3,
        "experiment=cifar10_densenet121",
        {
            **CIFAR, "optimizer._target_": SGD, "optimizer.lr": 0.1, "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 1e-4,
        },
    ),
    (
        3,
        "experiment=cifar10_densenet121_adamw",
        {**CIFAR, "optimizer._target_": ADAMW, "optimizer.lr": 1e-3},
    ),
    (
        3,
        "experiment=imagenet_densenet121",
        {
            "epochs": 90, "batch_size": 256, "global_batch_size": 256, "optimizer.lr": 0.1,
            "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
            "scheduler._target_": "research.engine.schedules.step", "scheduler.step_size": 30,
            "scheduler.gamma": 0.1, "scheduler.warmup_epochs": 5,
        },
    ),
    (
        4,
        "experiment=phototriage_multifeature",
        {**PHOTOS, "dataset.features": ["clip", "resnet50.layer4", "quality"]},
    ),
    (
        4,
        "experiment=phototriage_resnet50",
        {**PHOTOS, "dataset.features": ["resnet50.layer4"]},
    ),
    (4, "experiment=phototriage_vgg16", {**PHOTOS, "dataset.features": ["vgg16"]}),
    (4, "experiment=phototriage_clip_aesthetic", {**PHOTOS, "dataset.features": ["clip"]}),
    *(
        (4, f"experiment=phototriage_e2e_{backbone} {E2E}", {**PHOTOS, "model.backbone": backbone})
        for backbone in ("resnet50", "vgg16")
    ),
    (
        5,
        "model=tinydet dataset=warehouse",
        {"model._target_": "research.models.detectors.TinyDet", "scheduler.lr_end": 0.0},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("guide", "words", "expected"), DEFAULTS)
def test_what_is_offered_has_the_defaults_of_the_guide(
    guide: int, words: str, expected: dict[str, Any]
) -> None:
    register()
    last = words.partition(" ")[0].partition("=")[2]
    assert any(last in row.now for row in ROWS if row.guide == guide), "a row offers it"
    assert E2E not in words or any(E2E in row.now for row in ROWS if row.guide == guide)
    found = dict(leaves(composed(shlex.split(words)).config))
    assert {key: found[key] for key in expected} == expected


# -- what is found in a run, and after the commands ----------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Project]:
    return cache(lambda guide: make(guide, tmp_path_factory.mktemp(f"guide_{guide}")))


def columns_of(project: Project, row: Row) -> set[str]:
    """Of the tables that the row names, or of any."""
    named = [name for name in row.names if name.endswith(".csv")]
    tables = [path for name in named or ["*.csv"] for path in project.find(name)]
    found: set[str] = set()
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            found |= set(next(csv.reader(file), []))
    return found


def entries_of(project: Project, row: Row) -> set[str]:
    """Of the JSON file that the row names, or of a checkpoint."""
    for name in row.names:
        if name.endswith(".json"):
            return {key for path in project.find(name) for key in json.loads(path.read_text())}
    checkpoint = project.folder / "runs/first/checkpoints/last.pt"
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
@pytest.mark.parametrize("row", [*map(marked, ROWS)], ids=str)
def test_a_row(row: Row, project: Callable[[int], Project]) -> None:
    """Its commands have run, its settings are accepted, its files, columns and keys are there."""
    register()
    options_: dict[str, str] = {}
    for words in row.settings:
        chosen = [*typed(words)]
        keys = {word.partition("=")[0] for word in chosen}
        if chosen and keys <= known_keys():
            accepted(row.guide, [*(w for key, w in options_.items() if key not in keys), *chosen])
        options_ |= {key: w for w in chosen if (key := w.partition("=")[0]) == "scheduler"}
    for name in row.names:
        if kind(row, name) == "value" and (key := row.key_before(name)):
            accepted(row.guide, [f"{key}={name}"])
    if needs_a_run(row):
        made = project(row.guide)
        checked(row, made)
        for name in row.names:
            is_there(made, row, name)


def is_there(made: Project, row: Row, name: str) -> None:
    """What a run or a command leaves behind."""
    match kind(row, name):
        case "file":
            assert made.find(name) or (ROOT / name).exists(), name
        case "column":
            assert name in columns_of(made, row)
        case "entry":
            assert name in entries_of(made, row)
        case "tensor" if made.guide == 5:
            assert name in research.open_store(made.folder / "store").manifest.tensors


def test_commands_are_made_small_and_not_others() -> None:
    words = words_of("python train.py experiment=imagenet_resnet34 dataset.val_dir=v", GUIDES[1])
    assert words[2:4] == ["experiment=imagenet_resnet34", "dataset.val_dir=v"]
    assert "epochs=1" in words
    words = words_of("python train.py -m model=rgbx_mit_b1,rgbx_mit_b5 epochs=50", GUIDES[2])
    assert words[3:5] == ["model=rgbx_mit_b0,rgbx_mit_b0", "epochs=1"]
    assert words_of("python -m research.predict RUN IMAGE", GUIDES[5])[3] == "runs/first"
