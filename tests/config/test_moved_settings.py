"""``batch_size``, ``workers`` and ``pin_memory`` were settings of the data set up to version 2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from research.comparison import collect
from research.config import compose_config, resume, run_files, stored
from research.config.changes import changed
from research.config.help import help_text
from research.config.jobs import check_jobs
from research.config.migrations import VERSION, current_word
from research.engine import checkpoint
from research.sweeps.description import FOLDER, find_name
from research.tracking.mlflow_resume import changed_settings
from tests.conftest import user_error
from tests.sweeps.test_identity import described, search
from tests.test_stored_runs import ASSETS

MOVED: dict[str, Any] = {"batch_size": 6, "workers": 3, "pin_memory": True}
RUN = ASSETS / "runs/classification"
OWN = "_target_: own_npz.Npz\nprovides: [classes, images]\nname: own\nimage_size: 32\n"
KEYS = pytest.mark.parametrize("key", MOVED)


def recorded() -> dict[str, Any]:
    """The configuration of a run of version 1."""
    return stored.configuration(yaml.safe_load((RUN / "config.yaml").read_text()), "here")


def of_version_2(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A configuration of today, as version 2 stored it."""
    old: dict[str, Any] = json.loads(json.dumps(config))
    old["dataset"] |= {key: old.pop(key) for key in MOVED} | changes
    return old | {"version": 2}


def option(folder: Path, name: str, text: str) -> list[str]:
    """A file ``GROUP/NAME.yaml`` of the user's own, and the words that choose it."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [name.replace("/", "=")]


def test_a_stored_configuration_has_them_at_the_top() -> None:
    for version in (1, 2):
        old = of_version_2(recorded(), **MOVED) | {"version": version}
        new = stored.configuration(old, "here")
        assert {key: new[key] for key in MOVED} == MOVED
        assert not MOVED.keys() & new["dataset"].keys()
        assert new["version"] == VERSION
    with user_error("batch_size", "here: refused", "batch_size=0", "at least 1"):
        stored.configuration(of_version_2(recorded(), batch_size=0), "here")
    with user_error("dataset.batch_size", "here: refused", "not a setting"):
        stored.configuration(of_version_2(recorded()) | {"version": VERSION}, "here")


def test_a_checkpoint_has_them_at_the_top() -> None:
    config = checkpoint.read(RUN / "checkpoints/last.pt")["config"]
    assert config["batch_size"] == 8
    assert not MOVED.keys() & config["dataset"].keys()


def test_a_stored_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder alone; with its own words under their new names; and with other values."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/old"
    run.mkdir(parents=True)
    own = ["dataset=cifar10", "dataset.root=data", "model=fastnet"]
    old = of_version_2(compose_config(own).config, **MOVED)
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    words = [*own, *(f"dataset.{key}={json.dumps(value)}" for key, value in MOVED.items())]
    (run / "overrides.yaml").write_text(yaml.safe_dump(words))
    today = [current_word(word) for word in words]
    assert run_files.overrides(run / "overrides.yaml", []) == today
    for more in ([], today):
        config = resume.compose([f"resume={run}", *more]).settings
        assert {key: config[key] for key in MOVED} == MOVED
    found = resume.compose([f"resume={run}", "workers=0", "pin_memory=null"])
    assert (found.settings["workers"], found.settings["pin_memory"]) == (0, None)
    with user_error("resume", "batch_size is 6 in the run, 7 here"):
        resume.compose([f"resume={run}", "batch_size=7"])
    with user_error("dataset.workers", "write workers=VALUE"):
        resume.compose([f"resume={run}", "dataset.workers=0"])


@KEYS
def test_a_study_is_found(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sweeps an old key, and one in which it is fixed."""
    monkeypatch.chdir(tmp_path)
    values = {"batch_size": "4,8", "workers": "0,1", "pin_memory": "true,false"}[key]
    for name, space in (("swept", f"{key}={values}"), ("fixed", "seed=0,1")):
        mine = search(space)
        path = FOLDER / name / "study.json"
        content = described(name, mine)
        content["space"] = {
            f"dataset.{axis}" if axis in MOVED else axis: text
            for axis, text in content["space"].items()
        }
        content["configuration"] = of_version_2(content["configuration"])
        path.write_text(json.dumps(content))
        assert find_name(mine, "grid", lambda _: "") == name
        content["configuration"]["dataset"]["batch_size"] = 5
        path.write_text(json.dumps(content))
        swept = (name, key) == ("swept", "batch_size")
        assert (find_name(mine, "grid", lambda _: "") == name) is swept
        path.unlink()


@KEYS
def test_a_command_line_names_the_new_key(key: str) -> None:
    value = json.dumps(MOVED[key])
    advice = f"dataset.{key} is called {key} now: write {key}=VALUE"
    with user_error(f"dataset.{key}", advice):
        compose_config([f"dataset.{key}={value}"])
    with user_error(f"dataset.{key}", advice):
        check_jobs([f"dataset.{key}=0,1"], multirun=True)
    with user_error(f"dataset.{key}", advice):
        changed(recorded(), [f"dataset.{key}={value}"])
    assert changed(recorded(), [f"{key}={value}"])[key] == MOVED[key]


PRESET = "# @package _global_\nhydra: {sweeper: {params: {dataset.batch_size: '1,2'}}}\n"
RECIPE = "# @package _global_\ndataset: {workers: 3}\n"


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("sweep/old_space", PRESET, "batch_size"),
        ("experiment/old_recipe", RECIPE, "workers"),
        ("dataset/old_data", f"{OWN}batch_size: 3\n", "batch_size"),
    ],
)
def test_files_of_the_user_name_the_new_key(name: str, text: str, key: str, tmp_path: Path) -> None:
    """A sweep's space, a recipe or a data set is refused, not used without the setting."""
    words = option(tmp_path, name, text)
    with user_error(f"dataset.{key}", f"dataset.{key} is called {key} now"):
        check_jobs(words, multirun=name.startswith("sweep"), own=tmp_path)


def test_the_default_is_the_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a recipe, which is below the command line; it is no setting itself."""
    assert compose_config([]).config["batch_size"] == 32
    words = ["dataset=cifar10", "model=fastnet"]
    assert compose_config(words).config["batch_size"] == 128
    assert "  batch_size         128 " in help_text(words)
    recipe = ["experiment=cifar10_densenet121"]
    assert compose_config(recipe).config["batch_size"] == 64
    assert compose_config([*recipe, "batch_size=5"]).config["batch_size"] == 5
    with user_error("dataset.default_batch_size", "not a setting"):
        compose_config([*words, "dataset.default_batch_size=5"])
    code = "class Npz:\n    def __init__(self, name, image_size, network): ...\n"
    (tmp_path / "own_npz.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = option(tmp_path, "dataset/own", OWN + "default_batch_size: 3\n")
    assert compose_config(own, tmp_path).config["batch_size"] == 3
    own = option(tmp_path / "other", "dataset/bad", OWN + "default_batch_size: many\n")
    with user_error("batch_size", "batch_size=many", "a whole number"):
        compose_config(own, tmp_path / "other")


def test_old_and_new_runs_are_compared(tmp_path: Path) -> None:
    """Under the new names: settings, words of the command line, and MLflow's parameters."""
    (run,), _ = collect.select([RUN], "", [])
    assert run.settings["batch_size"] == 8
    assert "batch_size=8" in run.overrides
    assert not any(name.startswith("dataset.batch") for name in [*run.settings, *run.overrides])
    known = SimpleNamespace(params={"dataset.batch_size": "8", "dataset.workers": "null"}, tags={})
    now = {"batch_size": "8", "workers": "3"}
    assert changed_settings(now, known) == {"resumed.workers": "3"}
