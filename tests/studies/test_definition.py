"""Definitions: which are refused, which runs they have, and what makes a record stale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.config import compose_config
from research.studies import definition
from research.studies.definition import StudyDefinition, load_studies, with_names, with_paths
from research.utils.errors import UserError
from tests.conftest import ROOT
from tests.studies.made import DEFINITION, define

DOCS = ROOT / "docs"
ARMS = DEFINITION["arms"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": None}, "question"),
        ({"limits": []}, "limits"),
        ({"seed": 3}, "seed"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [0, 1, 0]}, "seeds: [0, 1, 0] has one of them twice"),
        ({"hours": 0}, "hours"),
        ({"mode": "best"}, "mode"),
        ({"costs": ["money"]}, "costs"),
        ({"evaluate": {"split": "train"}}, "split"),
        ({"arms": {}}, "arms"),
        ({"arms": {"A b": {}}}, "arms"),
        ({"arms": {"narrow": {"setings": {}}}}, "setings"),
        ({"reference": "broad"}, "'broad', which is no arm"),
        ({"arms": {**ARMS, "wide": {"against": "broad"}}}, "'broad', which is no arm"),
        ({"base": {"optimizer.lr": "1e-4"}}, "text '1e-4'"),
        ({"base": {"dataset.root": "/home/me/data"}}, "path of one machine"),
        ({"base": {"dataset.root": "${data.photos}"}}, "data.photos, which the study does not"),
        ({"base": {"dataset.manifest": "${store.photos}"}}, "store.photos, which the study does"),
        ({"base": {"seed": 1}}, "seed is not for a definition"),
        ({"base": {"tags.a": "b"}}, "tags.a is not for a definition"),
        ({"base": {"dataset.group_by": "(?<=a)"}}, "a character that no record may have"),
        ({"base": {"dataset.train_dirs": ["/home/me"]}}, "path of one machine"),
        ({"base": {"hydra.run.dir": "x"}}, "no setting of train.py"),
        ({"base": {"--config-dir": "x"}}, "no setting of train.py"),
        ({"metric": None}, "benchmarks, without metric"),
        ({"stores": {"s": {"kind": "frames", "source": "videos"}}}, "data.videos, which the study"),
        ({"stores": {"pictures": {"kind": "frames", "source": "pictures"}}}, "and of a store"),
    ],
)
def test_a_mistake_is_refused_by_its_name(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(problem)) as caught:
        define(tmp_path, **changes)
    assert caught.value.key == "NAME"
    assert str(tmp_path / "studies" / "nets.yaml") in caught.value.message


def test_runs_are_seed_after_seed_and_fold_after_fold(tmp_path: Path) -> None:
    study = define(tmp_path, seeds=[3, 1], folds=3)
    names = [run.name for run in study.runs()]
    assert len(names) == len({*names}) == 2 * 2 * 3
    assert names[:4] == [
        "narrow_fold0_seed3", "narrow_fold1_seed3", "narrow_fold2_seed3", "wide_fold0_seed3",
    ]  # fmt: skip
    assert all(name.endswith("_seed3") for name in names[:6])
    words = study.runs()[4].overrides({"data.pictures": "/there"})
    assert words == [
        "model=fastnet", "dataset.root=/there/train", "model.widths=[8,16,16]",
        "dataset.folds=3", "dataset.fold=1", "seed=3",
    ]  # fmt: skip
    assert "dataset.root=PICTURES/train" in study.runs()[4].overrides()


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "title": ({"title": "Another"}, False),
    "hours": ({"hours": 2.0}, False),
    "seeds": ({"seeds": [0, 1, 2, 3]}, False),
    "columns": ({"costs": [], "also": []}, False),
    "about": ({"arms": {**ARMS, "narrow": {"about": "small"}}}, False),
    "another arm": ({"arms": {**ARMS, "more": {}}}, False),
    "comparison": ({"arms": {**ARMS, "narrow": {"against": "wide"}}}, False),
    "base": ({"base": {**DEFINITION["base"], "epochs": 2}}, True),
    "arm": ({"arms": {**ARMS, "narrow": {"settings": {"epochs": 2}}}}, True),
    "split": ({"evaluate": {"split": "val", "checkpoint": "last"}}, True),
    "checkpoint": ({"evaluate": {"split": "test", "checkpoint": "best"}}, True),
    "folds": ({"folds": 5}, True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_a_result_makes_its_record_stale(what: str, tmp_path: Path) -> None:
    changes, decides = CHANGES[what]
    before = define(tmp_path).runs()[0]
    after = define(tmp_path, **changes).runs()[0]
    assert (after.definition != before.definition) == decides
    # Another evaluation needs no other training.
    assert (after.training != before.training) == (decides and "evaluate" not in changes)


def test_a_store_decides_only_the_arms_that_read_it(tmp_path: Path) -> None:
    arms = {"narrow": {"settings": {"dataset.manifest": "${store.frames}"}}, "wide": {}}

    def hashes(size: int) -> list[str]:
        store = {"kind": "frames", "source": "pictures", "options": {"size": size}}
        study = define(tmp_path, arms=arms, stores={"frames": store}, seeds=[0])
        assert study.data_of("narrow") == {"pictures"}
        return [run.definition for run in study.runs()]

    one, two = hashes(64), hashes(128)
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, True]


@given(
    st.recursive(
        st.integers() | st.none() | st.sampled_from(["${data.a}", "${data.b}/x", "plain", "a/b"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("xyz"), inner),
    )
)
def test_names_come_back_in_place_of_paths(value: Any) -> None:
    places = {"data.a": "/one/place", "data.b": "/one/place/below"}
    shown = with_names(with_paths(value, places), places)
    assert shown == with_paths(value, {"data.a": "A", "data.b": "B"})


def test_the_order_is_that_of_the_page(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        define(tmp_path, name)
    (tmp_path / "studies/results.md").write_text("<!-- study c -->\n<!-- study a -->\n")
    assert [study.name for study in load_studies(tmp_path)] == ["c", "a", "b"]
    assert [study.name for study in load_studies(tmp_path, ["b"])] == ["b"]
    with pytest.raises(UserError, match="allowed: a, b, c"):
        load_studies(tmp_path, ["d"])


# -- the definitions of this project -------------------------------------------------------------


def committed() -> list[StudyDefinition]:
    return load_studies(DOCS)


def test_every_committed_definition_is_valid_and_names_no_path() -> None:
    assert len(committed()) >= 11
    for study in committed():
        text = (DOCS / definition.FOLDER / f"{study.name}.yaml").read_text()
        assert not re.search(r"(?<![\w.})])/(?:work|tmp|home|data|mnt)/", text)
        assert study.hours < 3


@pytest.mark.whole
@pytest.mark.parametrize("study", committed(), ids=lambda study: study.name)
def test_every_arm_composes(study: StudyDefinition, tmp_path: Path) -> None:
    """Of a benchmark, the settings that are of ``train.py``."""
    file = tmp_path / "weights.pth"
    file.touch()
    places = {f"data.{name}": str(file) for name in study.data}
    places |= {f"store.{name}": str(tmp_path) for name in study.stores}
    for arm, own in study.arms.items():
        run = next(run for run in study.runs() if run.arm == arm)
        own_words = ("rounds", "steps", "files")
        words = [w for w in run.overrides(places) if w.partition("=")[0] not in own_words]
        config = compose_config(words).config
        for key, value in {} if own.benchmark else study.settings(arm).items():
            if key in config and not isinstance(config[key], dict):
                assert config[key] == value


def test_a_definition_is_plain_yaml(tmp_path: Path) -> None:
    define(tmp_path)
    path = tmp_path / "studies/nets.yaml"
    path.write_text(path.read_text() + "base: !!python/object:os.system {}\n")
    with pytest.raises(UserError):
        load_studies(tmp_path)
