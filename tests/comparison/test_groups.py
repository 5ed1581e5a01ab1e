"""Reading, grouping and labelling of recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from research.comparison.collect import RecordedRun, direction, find_runs, select
from research.comparison.groups import group_runs
from research.config.keys import WITHOUT_EFFECT
from research.config.migrations import VERSION
from tests.comparison.recorded import config, record, study
from tests.conftest import user_error


def runs(
    root: Path, *settings: dict[str, Any], overrides: tuple[str, ...] = ()
) -> list[RecordedRun]:
    """One run for each configuration."""
    for index, one in enumerate(settings):
        record(root / f"run_{index}", one, [0.5, 0.9], overrides=overrides)
    chosen, skipped = select(find_runs([root]), "", [])
    assert not skipped
    return chosen


def names(found: list[RecordedRun], *by: str) -> list[str]:
    return [group.label for group in group_runs(found, "val/top1", by)]


def test_seeds_of_one_configuration_are_one_group(tmp_path: Path) -> None:
    found = runs(
        tmp_path,
        config(seed=0, run_dir="a", device="cpu", logging={"csv": {}}),
        config(seed=1, run_dir="b", tags={"try": 2}),
    )
    [group] = group_runs(found, "val/top1")
    assert (group.label, group.settings) == ("resnet34", {})
    assert group.values == {0: 0.9, 1: 0.9}
    assert group.cost("parameters") == 1000


@pytest.mark.parametrize(
    ("settings", "recorded", "groups"),
    [
        ([{"batch_size": 16}] * 2, [16, 32], [[0], [1]]),  # two processes
        ([{"batch_size": 32}, {"batch_size": 16}], [32, 32], [[0, 1]]),  # of half the batch each
        ([{"batch_size": 16}] * 2, [16, None], [[0, 1]]),  # recorded by an earlier version
        ([{"batch_size": 16}] * 2, [32, None], [[0], [1]]),
        ([{"batch_size": 16, "global_batch_size": 32}] * 2, [None, 32], [[0, 1]]),
        ([{}, {}], [None, None], [[0, 1]]),
    ],
)
def test_the_batch_of_all_processes_separates_groups(
    settings: list[dict[str, Any]],
    recorded: list[int | None],
    groups: list[list[int]],
    tmp_path: Path,
) -> None:
    for index, (other, batch) in enumerate(zip(settings, recorded, strict=True)):
        one = config(seed=index, **other)
        record(tmp_path / f"run_{index}", one, [0.5, 0.9], global_batch=batch)
    chosen, _ = select(find_runs([tmp_path]), "", [])
    assert [[run.seed for run in each.runs] for each in group_runs(chosen, "val/top1")] == groups


def test_what_has_no_effect_on_a_run_separates_no_groups(tmp_path: Path) -> None:
    """A study goes on with other values of these: its trials are compared as one group."""
    values = {key: (1, 2) for key in sorted(WITHOUT_EFFECT - {"monitor"}) if "." not in key}
    values |= {"tags": ({"a": "b"}, {}), "logging": ({"csv": {}}, {}), "version": (VERSION,) * 2}
    values |= {"evaluate_at_end": (None, "test"), "monitor": (None, "val/top1:max")}
    parts = [key.partition(".") for key in WITHOUT_EFFECT if "." in key]
    first, second = ({key: pair[at] for key, pair in values.items()} for at in (0, 1))
    for at, settings in enumerate((first, second)):
        settings |= {part: {} for part, _, _ in parts}
        for part, _, key in parts:
            settings[part][key] = at
    found = runs(tmp_path, config(**first), config(**{**second, "seed": 1}))
    assert names(found) == ["resnet34"]
    assert names(runs(tmp_path / "b", config(**first), config(**first, epochs=4))) == [
        "epochs=3", "epochs=4",
    ]  # fmt: skip


def test_labels_use_the_fewest_settings(tmp_path: Path) -> None:
    found = runs(
        tmp_path,
        config("resnet34", 0.1, width=1),
        config("resnet34", 0.01, width=1),
        config("densenet121", 0.1, width=2),
    )
    # Only both together distinguish the groups; the width follows the model.
    assert names(found) == ["resnet34, lr=0.1", "resnet34, lr=0.01", "densenet121, lr=0.1"]
    assert names(found, "model") == ["resnet34", "densenet121"]
    assert names(found, "optimizer.lr") == ["lr=0.1", "lr=0.01"]
    assert names(found, "model", "optimizer") == names(found)
    assert group_runs(found, "val/top1")[2].settings == {
        "model._target_": "densenet121", "model.name": "densenet121", "optimizer.lr": "0.1",
        "width": "2",
    }  # fmt: skip


def test_what_was_typed_comes_first(tmp_path: Path) -> None:
    settings = (config(lr=0.1, warmup=1), config(lr=0.2, warmup=2))
    typed = ("optimizer.lr=0.1",)
    assert names(runs(tmp_path / "a", *settings, overrides=typed)) == ["lr=0.1", "lr=0.2"]
    typed = ("warmup=1",)
    assert names(runs(tmp_path / "b", *settings, overrides=typed)) == ["warmup=1", "warmup=2"]


def test_parts_are_labelled_with_their_names(tmp_path: Path) -> None:
    one = config(compression={"variant": "none"})
    other = config(compression={"variant": "luma_fusion", "window": 4})
    third = config(compression={"variant": "luma_fusion", "window": 2})
    assert names(runs(tmp_path, one, other, third)) == [
        "compression=none, window=–", "compression=luma_fusion, window=4",
        "compression=luma_fusion, window=2",
    ]  # fmt: skip


def test_labels_are_short_and_unique(tmp_path: Path) -> None:
    long = "x" * 40
    found = runs(tmp_path, *(config(root=f"/data/{long}{end}") for end in ("_a", "_b", "")))
    assert names(found) == [f"root=/data/{long}{end}" for end in ("_a", "_b", "")]
    found = runs(tmp_path / "short", config(root=f"/{long}/a"), config(root=f"/{long}/b"))
    assert names(found) == ["root=a", "root=b"]
    found = runs(tmp_path / "alike", config(note=1), config(note="1"))
    assert names(found) == ["note=1 #1", "note=1 #2"]


def test_runs_of_one_seed_count_once(tmp_path: Path) -> None:
    found = [*runs(tmp_path / "a", config()), *runs(tmp_path / "b", config())]
    [group] = group_runs(found, "val/top1")
    assert (len(group.runs), group.values) == (2, {0: 0.9})


def test_a_setting_that_no_run_has(tmp_path: Path) -> None:
    found = runs(tmp_path, config())
    with user_error("group_by", "group_by=optimiser.lr", "'optimizer.lr'"):
        group_runs(found, "val/top1", ["optimiser.lr"])
    with user_error("group_by", "group_by=modl", "'model'"):
        group_runs(found, "val/top1", ["modl"])


# -- reading ------------------------------------------------------------------------------------


def test_runs_are_found_wherever_they_are(tmp_path: Path) -> None:
    study(tmp_path / "sweeps" / "one")
    single = record(tmp_path / "single", config(), [0.1])
    for name in (".hidden", "mlflow-artifacts", "single/checkpoints"):
        record(tmp_path / name / "copy", config(), [0.1])
    found = find_runs([tmp_path, single, single / "checkpoints"])
    assert len(found) == 7
    assert found[0] == single
    for missing in (tmp_path / "nowhere", tmp_path / ".hidden" / "copy" / "x"):
        with user_error("RUN", missing):
            find_runs([missing])


def test_skipped_runs_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study(tmp_path)
    for status in ("PRUNED", "RUNNING", "PRUNED"):
        record(
            tmp_path / f"{status}_{len(list(tmp_path.iterdir()))}", config(), [0.1], status=status
        )
    damaged = record(tmp_path / "damaged", config(), [0.1])
    (damaged / "summary.json").write_text("{")
    chosen, skipped = select(find_runs([tmp_path]), "", ["FINISHED"])
    assert len(chosen) == 6
    assert skipped == {"PRUNED": 2, "RUNNING": 1, "damaged": 1}
    assert f"{damaged}: skipping a damaged run" in caplog.text
    assert len(select(find_runs([tmp_path]), "", [])[0]) == 9


def test_runs_of_an_experiment(tmp_path: Path) -> None:
    record(tmp_path / "a", config(), [0.1], overrides=["experiment=demo", "seed=0"])
    record(tmp_path / "b", config(), [0.1], overrides=["experiment=demo_2"])
    chosen, skipped = select(find_runs([tmp_path]), "demo", ["FINISHED"])
    assert [run.folder.name for run in chosen] == ["a"]
    assert not skipped


def test_values_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    record(tmp_path / "a", config(), [0.1, 0.7, 0.3])
    [run] = select(find_runs([tmp_path]), "", [])[0]
    assert (run.value("val/top1"), run.value("val/loss")) == (0.7, pytest.approx(0.3))
    assert run.value("val/mAP50") is None
    assert run.costs == {"parameters": 1000, "seconds": 6, "epochs": 3}
    assert run.curves["val/top1"] == [0.1, 0.7, 0.3]


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val/top1", "max"), ("val/loss", "min"), ("train/box_loss", "min"), ("val/ece", "min"),
        ("epoch_time_sec", "min"), ("val/mAP50", "max"), ("val/lossless", "max"),
    ],
)  # fmt: skip
def test_which_way_is_better(metric: str, mode: str, tmp_path: Path) -> None:
    record(tmp_path / "a", config(), [0.1])
    assert direction(select(find_runs([tmp_path]), "", [])[0], metric) == mode


def test_a_metric_that_was_monitored_on_another_split_has_its_direction(tmp_path: Path) -> None:
    low = record(tmp_path / "low", config(), [0.1, 0.2], monitor=("val/top1", "min"))
    chosen, _ = select(find_runs([low]), "", [])
    assert [direction(chosen, f"{split}/top1") for split in ("val", "test", "train")] == ["min"] * 3


def test_the_terms_of_the_loss_are_better_if_low(tmp_path: Path) -> None:
    folder = record(tmp_path / "a", config(), [0.1])
    table = folder / "epoch_metrics.csv"
    head, row = table.read_text().splitlines()
    table.write_text(f"{head},train/giou,train/recall\n{row},0.1,0.2\n")
    (folder / "batch_metrics.csv").write_text("epoch,batch,loss,giou\n1,1,0.5,0.2\n")
    chosen, _ = select(find_runs([tmp_path]), "", [])
    found = {name: direction(chosen, f"train/{name}") for name in ("giou", "recall")}
    assert found == {"giou": "min", "recall": "max"}
