"""A study is known by its resolved configuration and its search space."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.config import compose_config
from research.config.keys import WITHOUT_EFFECT, leaves
from research.sweeps.description import FOLDER, describe, find_name, read_description
from research.sweeps.identity import Search, changed_settings, local
from research.sweeps.objectives import Objective
from research.sweeps.space import Space
from tests.conftest import one_line_of, user_error
from tests.sweeps.conftest import Sweep, summaries

CONFIG = compose_config(["dataset=imagefolder", "dataset.train_dirs=[data/a]"]).config
FLAGS = ("--config-dir", "options", "experiment=mine", "seed=0")


def search(*words: str, **changed: Any) -> Search:
    space = Space.parse({}, words or ["optimizer.lr=0.1,0.2", "seed=0,1"])
    usual: dict[str, Any] = {
        "objectives": [Objective("val/top1", "maximize")],
        "monitor": "val/top1:max",
        "space": space,
        "storage": "runs/studies.journal",
        "sampler": "GridSampler",
        "configuration": CONFIG,
        "options": {},
        "settings": [0],
    }
    return Search(**{**usual, **changed})


def with_value(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(config))
    *parts, last = key.split(".")
    node = changed
    for part in parts:
        node = node[part]
    node[last] = value
    return changed


def described(name: str, of: Search, *, named: bool = False) -> dict[str, Any]:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    describe(folder, of, named=named, has_trials=False, pruner=None, n_trials=4)
    found = read_description(folder)
    assert found is not None
    return found


def never(known: Any) -> str:
    return "none"


def name_of(of: Search) -> str:
    return find_name(of, "grid", never)


def test_every_setting_but_those_without_effect_makes_another_study(study_folder: Path) -> None:
    mine = search()
    known = described(name_of(mine), mine)
    for key in dict(leaves(CONFIG)):
        other = replace(mine, configuration=with_value(CONFIG, key, "another"))
        differs = list(other.changes(known))
        above = {".".join(key.split(".")[: end + 1]) for end in range(key.count(".") + 1)}
        expected = [] if above & (WITHOUT_EFFECT | {"optimizer.lr", "seed"}) else [key]
        assert differs == expected
        assert (other.name("grid") == known["study"]) == (not expected), key


def test_what_is_written_differently_is_the_same_study(study_folder: Path) -> None:
    (study_folder / "link").symlink_to("data")
    mine = search("optimizer.lr=1e-1,0.2", "seed=0,1")
    known = described(name_of(mine), mine)
    same = [
        search("seed=0,1", "optimizer.lr=0.1,2e-1"),
        *(
            replace(mine, configuration=with_value(CONFIG, "dataset.train_dirs", [str(form)]))
            for form in (study_folder / "data/a", "./data/a", "data/../data/a", "link/a")
        ),
        replace(mine, storage=str(study_folder / "runs/studies.journal")),
    ]
    (study_folder / "data/a").mkdir(parents=True)
    for other in same:
        assert other.changes(known) == {}
        assert name_of(other) == known["study"]
    database = replace(mine, storage="sqlite:///studies.db")
    known = described("database", database)
    absolute = replace(mine, storage=f"sqlite:///{study_folder}/studies.db")
    assert absolute.changes(known) == {}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (search("optimizer.lr=0.1,0.3", "seed=0,1"), "optimizer.lr: 0.1,0.2 → 0.1,0.3"),
        (search("optimizer.lr=0.1,0.2"), "seed: 0,1 → (none)"),
        (search(objectives=[Objective("val/loss", "minimize")]), "val/top1:maximize → val/loss:m"),
        (search(storage="sqlite:///x.db"), "storage: runs/studies.journal → sqlite:///x.db"),
        (search(sampler="TPESampler"), "sampler: GridSampler → TPESampler"),
        (search(configuration=with_value(CONFIG, "epochs", 9)), "epochs: 4 → 9"),
    ],
)
def test_a_named_study_says_what_differs(study_folder: Path, other: Search, said: str) -> None:
    described("mine", search(), named=True)
    with user_error("hydra.sweeper.study_name", "mine", "belongs to another search", said):
        described("mine", other, named=True)
    described("mine", replace(search(), settings=[7]), named=True)  # the sampler's seed may change


def test_options_of_a_swept_group_are_compared_one_by_one(study_folder: Path) -> None:
    words = ["model=a,b", "seed=0,1"]
    mine = search(*words, options={"model=a": CONFIG, "model=b": CONFIG})
    known = described(name_of(mine), mine)
    edited = with_value(CONFIG, "model.drop_rate", 0.5)
    other = replace(mine, options={"model=a": CONFIG, "model=b": edited})
    assert list(other.changes(known)) == ["model.drop_rate"]
    assert name_of(other) != known["study"]
    # Those of the default model, which is not trained, do not matter.
    assert replace(mine, configuration=edited).changes(known) == {}


def test_a_named_study_is_not_found_by_its_search(study_folder: Path) -> None:
    described("mine", search(), named=True)
    assert name_of(search()) != "mine"


DAMAGE = {
    "empty": b"",
    "no JSON": b"{",
    "another kind": b"[1]",
    "deep": b"[" * 100_000,
    "binary": b"\xff\xfe\x00",
    "a field": b'{"study": 3}',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_study_stops_no_other(
    study_folder: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    mine = search()
    for name in ("broken", name_of(mine)):
        (FOLDER / name).mkdir(parents=True)
        (FOLDER / name / "study.json").write_bytes(damage)
    (FOLDER / "half_made").mkdir()
    assert described(name_of(mine), mine)["study"] == name_of(mine)  # written anew
    assert "broken is damaged and left alone" in caplog.text
    with user_error("hydra.sweeper.study_name", "broken/study.json", "another"):
        describe(FOLDER / "broken", mine, named=True, has_trials=True, pruner=None, n_trials=4)


def test_the_name_of_a_study_says_more_than_its_description(
    study_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = search()
    path = FOLDER / name_of(mine) / "study.json"
    described(path.parent.name, mine)
    for damaged in (with_value(CONFIG, "epochs", 9), {"model": {"a": "${b}"}}):
        content = {**json.loads(path.read_text()), "configuration": damaged}
        path.write_text(json.dumps(content))
        assert name_of(mine) == path.parent.name
        assert not mine.changes(described(path.parent.name, mine))
        assert "was damaged and is written anew" in caplog.text
        caplog.clear()


def test_the_summary_replaces_a_damaged_description(study_folder: Path) -> None:
    known = described("mine", search(), named=True)
    (FOLDER / "mine" / "study.json").rename(FOLDER / "mine" / "final_summary.json")
    (FOLDER / "mine" / "study.json").write_bytes(b"")
    assert read_description(FOLDER / "mine") == known
    other = search(configuration=with_value(CONFIG, "epochs", 9))
    with user_error("hydra.sweeper.study_name", "epochs: 4 → 9"):
        described("mine", other, named=True)


PATHS = st.lists(st.sampled_from(["a", "b", "..", ".", "c d"]), min_size=1, max_size=5)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=PATHS)
def test_a_relative_and_an_absolute_path_are_one(study_folder: Path, parts: list[str]) -> None:
    relative = "/".join(parts)
    assert local(relative) == local(f"{study_folder}/{relative}") == local(local(relative))


def test_a_setting_of_a_later_version_has_its_default_in_a_study_of_an_earlier_one() -> None:
    from research.config import stored

    earlier = json.loads(json.dumps(CONFIG))
    del earlier["ema"], earlier["dataset"]["crop_pct"]
    assert changed_settings(stored.with_defaults(stored.unchecked(earlier, "x")), CONFIG) == {}


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trials end at once, as failed; gives the configurations with which they were started."""
    started: list[dict[str, Any]] = []

    def train(config: dict[str, Any], *_: Any) -> Any:
        started.append(config)
        raise RuntimeError("not trained")

    monkeypatch.setattr("research.engine.run.train", train)
    return started


def edit(path: Path, **content: Any) -> None:
    """Write an option file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# @package _global_\n{yaml.safe_dump(content)}")


@pytest.mark.long
def test_after_an_edit_the_same_words_mean_another_study(
    sweep: Sweep,
    study_folder: Path,
    untrained: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = study_folder / "options/experiment/mine.yaml"
    more = (*FLAGS, "hydra.sweeper.max_failure_rate=1")
    caplog.set_level(logging.INFO)
    edit(own, patience=1)
    sweep(*more)
    edit(own, patience=3)
    sweep(*more)
    assert "the same command with other settings (patience: 1 → 3)" in caplog.text
    names = {each["configuration"]["patience"]: each["study"] for each in summaries(study_folder)}
    assert [config["patience"] for config in untrained] == [1, 3]
    line = one_line_of(lambda: sweep(*more, f"hydra.sweeper.study_name={names[1]}"))
    assert "belongs to another search (patience: 1 → 3)" in line
    edit(own, patience=1)
    sweep(*more)
    assert len(untrained) == 2  # the first study again, which is done
    assert "1 of 1 trials done" in caplog.text


def test_own_options_are_checked_before_the_first_trial(
    sweep: Sweep, study_folder: Path, untrained: list[dict[str, Any]]
) -> None:
    edit(study_folder / "options/experiment/mine.yaml", epochs=1)
    for words, said in (
        (["model.blok_layers=1,2", "model=densenet121"], "in model=densenet121; did you mean"),
        (["epochs=0,1"], "epochs=0: expected a whole number at least 1"),
        (["monitor=val/accuracy:max"], "no metric 'val/accuracy' is logged; choose one of"),
    ):
        assert said in one_line_of(lambda words=words: sweep(*FLAGS, *words))  # type: ignore[misc]
    flags = ("--config-dir", "nowhere")
    assert "--config-dir nowhere: no such folder" in one_line_of(lambda: sweep(*flags))
    assert not untrained
    assert not (study_folder / "runs/sweeps").exists()


def test_the_help_names_the_folder_of_own_options(
    study_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from research.config import command_line
    from train import main

    edit(study_folder / "options/experiment/mine.yaml", epochs=77)
    monkeypatch.setattr(sys, "argv", ["train.py", *FLAGS, "--help"])
    command_line(main)
    printed = capsys.readouterr().out
    assert "--config-dir FOLDER" in printed
    assert "mine*" in printed
