"""Names of earlier versions: in files, on the command line, in tables and in studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import research
from research.comparison import collect
from research.config import compose_config, migrations, resolved, stored
from research.config.keys import leaves
from research.config.migrations import Migration
from research.engine import build, run_folder
from research.tracking.files import read_rows
from research.utils.errors import UserError
from tests.conftest import Train, user_error
from tests.test_stored_runs import ASSETS, as_recorded, project, without_paths, words_of  # noqa: F401 - a fixture

Migrate = Callable[..., None]
CONFIG: dict[str, Any] = migrations.migrated(
    yaml.safe_load((ASSETS / "runs/classification/config.yaml").read_text())
)
KEYS = sorted(key for key, _ in leaves(CONFIG) if "_target_" not in key and key != "version")
FASTNET = "research.models.fastnet.FastNet"


@pytest.fixture
def migrate(monkeypatch: pytest.MonkeyPatch) -> Migrate:
    """A function that adds a version with renamed names."""

    def add(**changes: Any) -> None:
        monkeypatch.setattr(
            migrations, "MIGRATIONS", [*migrations.MIGRATIONS, Migration(**changes)]
        )

    return add


def renamed(config: dict[str, Any], new: str, old: str) -> dict[str, Any]:
    """A configuration in which a key has its old name."""
    result = json.loads(json.dumps(config))
    migrations._put(result, old, migrations._pop(result, new))
    return result


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(KEYS), st.sampled_from(["", "gone.", "model.", "a.b."]))
def test_any_key_can_be_renamed(monkeypatch: pytest.MonkeyPatch, key: str, where: str) -> None:
    today = stored.configuration(CONFIG, "here")
    old = f"{where}old_{key.rpartition('.')[2]}"
    then = {**renamed(CONFIG, key, old), "version": 1}
    with pytest.raises(UserError) as caught:
        stored.configuration(then, "here")
    assert caught.value.key in (key, old, old.partition(".")[0], key.partition(".")[0])
    with monkeypatch.context() as patch:
        steps = [Migration(keys={old: key}), *migrations.MIGRATIONS]
        patch.setattr(migrations, "MIGRATIONS", steps)
        config = stored.configuration(then, "here")
        assert migrations.current_word(f"{old}=1") == f"{key}=1"
    assert config == today


def test_names_change_several_times(migrate: Migrate) -> None:
    migrate(keys={"optimizer.rate": "optimizer.step"}, columns={"val/right": "val/accuracy"})
    migrate(keys={"optimizer.step": "optimizer.lr"}, columns={"val/accuracy": "val/top1"})
    then = renamed(CONFIG, "optimizer.lr", "optimizer.rate")
    then["monitor"] = "val/right:max"
    config = stored.configuration(then, "here")
    assert config["optimizer"]["lr"] == CONFIG["optimizer"]["lr"]
    assert config["monitor"] == "val/top1:max"
    assert migrations.current_key("optimizer.rate") == "optimizer.lr"
    assert migrations.current_column("val/right") == "val/top1"


def test_a_group_of_keys_moves_as_a_whole(migrate: Migrate) -> None:
    migrate(keys={"data": "dataset"})
    then = renamed(CONFIG, "dataset", "data")
    assert stored.configuration(then, "here") == stored.configuration(CONFIG, "here")
    assert migrations.current_key("data.mean") == "dataset.mean"
    assert migrations.current_key("database") == "database"


def test_a_class_has_moved(migrate: Migrate) -> None:
    then = json.loads(json.dumps(CONFIG))
    then["dataset"]["_target_"] = "research.folders.Folders"
    with user_error("dataset._target_", "research.folders.Folders"):
        stored.configuration(then, "here")
    migrate(targets={"research.folders.Folders": "research.data.folder.ImageFolders"})
    assert stored.configuration(then, "here") == stored.configuration(CONFIG, "here")
    with user_error("dataset._target_", "research.data.folder.ImageFolders"):
        compose_config(["dataset._target_=research.folders.Folders"])


def test_missing_keys_get_their_default_or_the_value_of_the_migration(migrate: Migrate) -> None:
    then = json.loads(json.dumps(CONFIG))
    del then["lr_backbone"], then["dataset"]["crop_pct"], then["decay_norms"]
    config = stored.configuration(then, "here")
    assert config["lr_backbone"] is None
    assert config["dataset"]["crop_pct"] == 0.875
    assert config["decay_norms"] is True
    migrate(added={"decay_norms": False})
    assert stored.configuration(then, "here")["decay_norms"] is False


@pytest.mark.parametrize("version", [0, migrations.VERSION + 1, -1, "1", 1.0, None, True, [1]])
def test_a_version_that_is_not_known(version: Any) -> None:
    with user_error("version", f"version={version}"):
        stored.configuration({**CONFIG, "version": version}, "here")


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("optimizer.rate=0.1", "write optimizer.lr="),
        ("passes=3", "write epochs="),
        ("data.mean=null", "write dataset.mean="),
    ],
)
def test_the_error_for_an_old_key_has_the_new_one(migrate: Migrate, word: str, advice: str) -> None:
    migrate(keys={"optimizer.rate": "optimizer.lr", "passes": "epochs", "data": "dataset"})
    with user_error(word.partition("=")[0], advice):
        compose_config([word])


def test_a_run_with_old_names_is_resumed(
    project: Path,  # noqa: F811
    train: Train,
    migrate: Migrate,
) -> None:
    """Configuration, checkpoint and tables are those of a version with other names."""
    run = project / "runs/classification"
    words = words_of(run)
    path = run / "config.yaml"
    then = renamed(yaml.safe_load(path.read_text()), "optimizer.lr", "optimizer.rate")
    path.write_text(yaml.safe_dump(then))
    table = run / "epoch_metrics.csv"
    before = read_rows(table)
    table.write_text(table.read_text().replace("val/top1", "val/right"))
    migrate(keys={"optimizer.rate": "optimizer.lr"}, columns={"val/right": "val/top1"})
    assert run_folder.changed(compose(words), run) == []
    train(*words, "epochs=4", "resume=auto")
    after = read_rows(table)
    assert as_recorded(after[:3], before[0]) == without_paths(before)
    assert len(after) == 4
    assert "val/right" not in table.read_text()
    (recorded,), left_out = collect.select([run], "", [])
    assert not left_out
    assert recorded.settings["optimizer.lr"] == 0.02
    assert research.load(run, device="cpu").config["optimizer"]["lr"] == 0.02


def compose(words: list[str]) -> dict[str, Any]:
    from research.config import resolved

    return resolved(compose_config([*words, "resume=auto"])[0])


def test_a_sweep_with_old_names_is_resumed(
    project: Path,  # noqa: F811
    train: Train,
    migrate: Migrate,
) -> None:
    """The study's folder, its storage and its trials contain optimizer.rate for optimizer.lr."""
    (study,) = (project / "runs/sweeps").iterdir()
    command = json.loads((study / "study.json").read_text())["command"][1:]
    command = [migrations.current_word(word) for word in command]
    journal = project / "runs/studies.journal"
    for path in (study / "study.json", journal, study / "final_summary.json"):
        path.write_text(path.read_text().replace("optimizer.lr", "optimizer.rate"))
    old_name = _rename_like_old_version(study, command)
    migrate(keys={"optimizer.rate": "optimizer.lr"})
    train(*command)
    folders = [path.name for path in (project / "runs/sweeps").iterdir() if path.is_dir()]
    assert folders == [old_name]
    summary = json.loads((project / "runs/sweeps" / old_name / "final_summary.json").read_text())
    assert summary["counts"] == {"FINISHED": 4}
    assert {tuple(trial["params"]) for trial in summary["trials"]} == {("optimizer.lr", "seed")}
    points = {tuple(trial["params"].values()) for trial in summary["trials"]}
    assert points == {(0.02, 0), (0.02, 1), (0.05, 0), (0.05, 1)}
    assert journal.read_text().count("optimizer.rate") >= 4  # one name per parameter in the storage


def _rename_like_old_version(study: Path, command: list[str]) -> str:
    """Give the study the name that it would have from its old settings, in all files."""
    import hashlib

    about = json.loads((study / "study.json").read_text())
    search = {key: about[key] for key in ("objectives", "space", "fixed", "storage", "sampler")}
    from hydra import compose as compose_hydra
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    from research.utils.installation import CONF

    with initialize_config_dir(str(CONF)):
        swept = [w for w in command if w.startswith("hydra")]
        cfg = compose_hydra("config", swept, return_hydra_config=True)
    sweeper = cfg.hydra.sweeper
    identity = (
        search,
        sweeper.seed,
        OmegaConf.to_container(sweeper.sampler),
        sweeper.pruner._target_,
    )
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = f"grid_{digest}"
    for path in (
        study.parents[1] / "studies.journal",
        *study.rglob("*.json"),
        *study.rglob("*.yaml"),
    ):
        path.write_text(path.read_text().replace(study.name, name))
    study.rename(study.with_name(name))
    return name


@pytest.mark.parametrize("key", ["batch_size", "workers", "pin_memory"])
def test_a_key_under_both_names_is_refused(key: str) -> None:
    """Neither value is dropped without a word."""
    config = json.loads(json.dumps(CONFIG))
    config |= {"version": 2, "dataset": config["dataset"] | {key: None}}
    with user_error(f"dataset.{key}", "not a setting"):
        stored.configuration(config, "here")


def test_added_values_are_for_the_runs_that_the_migration_names(migrate: Migrate) -> None:
    then = json.loads(json.dumps(CONFIG))
    del then["decay_norms"]
    migrate(added={"decay_norms": False}, only={"compression.variant": "none", "epochs": 4711})
    assert stored.configuration(then, "here")["decay_norms"] is True
    migrate(added={"decay_norms": False}, only={"compression.variant": "none"})
    assert stored.configuration(then, "here")["decay_norms"] is False


@pytest.mark.parametrize("variant", ["reconstruction", "block_stem"])
def test_reconstruction_of_before_refines_pixels(variant: str) -> None:
    words = ["model=resnet34_compressed", "model.name=resnet10t", f"compression={variant}"]
    today = resolved(compose_config(words)[0])
    then = json.loads(json.dumps({**today, "version": 3}))
    then["compression"].pop("refinement", None)
    config = stored.configuration(then, "here")
    if variant != "reconstruction":
        assert config["compression"] == today["compression"]
        return
    assert today["compression"]["refinement"] == "blocks"
    assert config["compression"] == {**today["compression"], "refinement": "pixels"}
    # The tensors of a checkpoint of version 3.
    network = build.model(config, {"classes": ["a", "b"]})
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items() if "stem." in name}
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (32,))
    assert shapes == {
        "stem.refine.0.0.weight": (32, 3, 3, 3),
        **{f"stem.refine.0.1.{name}": shape for name, shape in norm.items()},
        "stem.refine.0.1.num_batches_tracked": (),
        "stem.refine.1.weight": (3, 32, 3, 3),
    }
