"""Tables against independent arithmetic: scipy's tests, Holm by hand, and the bootstrap."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from research.comparison.statistics import group_interval
from research.studies import results, tables
from research.studies.definition import StudyDefinition
from research.studies.plan import StudyPlan, plan
from research.studies.record import RecordedCase, RecordedTiming
from tests.studies.made import ARMS_OF_THREE, baseline, define, keep, keep_all

VALUES = {
    "narrow": [0.50, 0.52, 0.51],
    "wide": [0.61, 0.64, 0.61],
    "deep": [0.511, 0.515, 0.518],
}


def cells(table: str) -> list[list[str]]:
    """The rows of the first table in a text, without the rule."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


@pytest.fixture
def three(tmp_path: Path) -> StudyPlan:
    study = define(tmp_path, arms=ARMS_OF_THREE)
    keep_all(tmp_path, study, VALUES)
    return plan(study, tmp_path)


def test_an_arm_has_its_mean_spread_range_samples_and_costs(three: StudyPlan) -> None:
    header, *rows = cells(tables.arms(three))
    assert header[:6] == ["arm", "seeds", "test/top1", "lowest … highest", "loss", "n"]
    assert [row[0] for row in rows] == ["`narrow`: 4 channels", "`wide`", "`deep`"]
    for row, values in zip(rows, VALUES.values(), strict=True):
        mean, sd = statistics.fmean(values), statistics.stdev(values)
        assert row[1:3] == ["3", f"{mean:.4f} ± {sd:.4f}"]
        assert row[3] == f"{min(values):.4f} … {max(values):.4f}"
        assert row[4:] == ["1.250 ± 0.000", "50", "12,345", "0.0025", "3,072", "125", "100"]


def test_an_arm_that_is_done_without_a_finite_value_needs_nothing(tmp_path: Path) -> None:
    study = define(tmp_path, seeds=[0], arms={"narrow": {}, "wide": {}})
    keep(tmp_path, study.runs()[0], None)
    _, narrow, wide = cells(tables.arms(plan(study, tmp_path)))
    assert narrow[1:3] == ["0 of 1", "no finite value"]
    assert wide[2].startswith("needs ")


def test_verdicts_are_those_of_paired_tests_adjusted_by_holm(three: StudyPlan) -> None:
    _, *rows = cells(tables.differences(three))
    reference = VALUES["narrow"]
    raw = [float(stats.ttest_rel(VALUES[arm], reference).pvalue) for arm in ("wide", "deep")]
    small, large = sorted(raw)
    adjusted = {small: 2 * small, large: max(2 * small, large)}
    for row, arm, p in zip(rows, ("wide", "deep"), raw, strict=True):
        mean = statistics.fmean(VALUES[arm]) - statistics.fmean(reference)
        assert row[:2] == [f"`{arm}` − `narrow`", f"{mean:+.4f}"]
        assert row[4:6] == [f"{adjusted[p]:.3f}", "3 paired"]
    assert rows[0][6] == "distinguishable: better"
    assert rows[1][6].startswith("not distinguishable: needs about")


def test_every_comparison_of_the_definition_counts_before_its_runs_are_done(
    tmp_path: Path,
) -> None:
    study = define(tmp_path, arms=ARMS_OF_THREE)
    keep_all(tmp_path, study, {"narrow": VALUES["narrow"], "wide": VALUES["wide"]})
    _, row = cells(text := tables.differences(plan(study, tmp_path)))
    p = float(stats.ttest_rel(VALUES["wide"], VALUES["narrow"]).pvalue)
    assert row[4] == f"{2 * p:.3f}"
    assert "the 2 comparisons of the definition" in text


def test_an_arm_is_compared_with_its_own_reference(tmp_path: Path) -> None:
    arms = {**ARMS_OF_THREE, "deep": {"against": "wide"}}
    study = define(tmp_path, arms=arms)
    keep_all(tmp_path, study, VALUES)
    _, *rows = cells(tables.differences(plan(study, tmp_path)))
    assert [row[0] for row in rows] == ["`wide` − `narrow`", "`deep` − `wide`"]
    assert (
        rows[1][1] == f"{statistics.fmean(VALUES['deep']) - statistics.fmean(VALUES['wide']):+.4f}"
    )
    alone = define(tmp_path, arms={**arms, "wide": {"against": "wide"}})
    assert [alone.against(arm) for arm in arms] == [None, None, "wide"]


def test_without_a_reference_or_values_there_is_no_comparison(tmp_path: Path) -> None:
    study = define(tmp_path, reference=None)
    keep_all(tmp_path, study, VALUES)
    assert tables.differences(plan(study, tmp_path)) == ""
    bare = define(tmp_path, "bare")
    assert tables.differences(plan(bare, tmp_path)) == ""
    _, first, _ = cells(tables.arms(plan(bare, tmp_path)))
    assert first[1:3] == ["0 of 3", "needs 90 minutes"]


def folded(tmp_path: Path) -> StudyDefinition:
    return define(tmp_path, folds=3, seeds=[0, 1], arms={"narrow": {}})


def test_a_seed_is_the_mean_of_its_folds_and_counts_when_all_are_there(tmp_path: Path) -> None:
    study = folded(tmp_path)
    for run, value in zip(study.runs(), [0.1, 0.2, 0.6, 0.9, 0.9], strict=False):
        keep(tmp_path, run, value)
    assert plan(study, tmp_path).values("narrow", "top1") == {0: pytest.approx(0.3)}
    _, row = cells(tables.arms(plan(study, tmp_path)))
    assert row[1:3] == ["1 of 2", "0.3000"]
    assert row[5] == "150"  # three folds of 50
    keep(tmp_path, study.runs()[-1], None)  # not finite
    assert plan(study, tmp_path).values("narrow", "top1").keys() == {0}


def test_the_interval_beside_a_baseline_is_over_groups(tmp_path: Path) -> None:
    study = folded(tmp_path)
    rng = np.random.default_rng(3)
    differences, groups = [], []
    for number, run in enumerate(study.runs()):
        fold = []
        for group in range(4):
            n = 3 + group
            # The same groups in both seeds, of which the value of a group is the mean.
            value, base = rng.uniform(0, n), 0.3 * n
            fold.append((n, value, base))
            if run.seed == 0:
                groups += [f"{run.fold}-{group}"] * n
            differences.append((run.seed, n, value - base))
        keep(tmp_path, run, 0.1 * number, baseline=baseline(*fold))
    both = [[d for s, _, d in differences if s == seed] for seed in (0, 1)]
    counts = [n for s, n, _ in differences if s == 0]
    each = [d / n for d, n in zip(np.mean(both, axis=0), counts, strict=True)]
    spread = np.repeat(each, counts)
    low, high = group_interval(spread, groups) or (0, 0)
    _, row = cells(tables.baselines(plan(study, tmp_path)))
    assert row[1:3] == ["12", "54"]
    assert row[5] == f"{spread.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
    assert row[4] == "0.3000"


def test_disturbed_metrics_are_a_row_each(tmp_path: Path) -> None:
    study = define(tmp_path)
    for run in study.runs():
        drop = 0.1 if run.arm == "wide" else 0.25
        cases = [
            RecordedCase("clean", "", 0, {"top1": 0.5}),
            RecordedCase("missing", "RGB", 0, {"top1": 0.5 - drop}),
            RecordedCase("shifted", "all but RGB", 4, {"top1": 0.4 + 0.01 * run.seed}),
        ]
        keep(tmp_path, run, 0.5, cases=cases)
    header, *rows = cells(tables.cases(plan(study, tmp_path)))
    assert header == ["test/top1", "amount", "`narrow`", "`wide`"]
    assert rows == [
        ["clean", "", "0.5000 ± 0.0000", "0.5000 ± 0.0000"],
        ["missing RGB", "", "0.2500 ± 0.0000", "0.4000 ± 0.0000"],
        ["shifted all but RGB", "4 px", "0.4100 ± 0.0100", "0.4100 ± 0.0100"],
    ]


def test_a_disturbed_seed_is_the_mean_of_its_folds_and_counts_when_all_are_there(
    tmp_path: Path,
) -> None:
    study = folded(tmp_path)
    for run, value in zip(study.runs(), [0.1, 0.2, 0.6, 0.9, 0.9], strict=False):
        cases = [RecordedCase("missing", "RGB", 0, {"top1": value})]
        keep(tmp_path, run, 0.5, cases=cases)
    header, row = cells(tables.cases(plan(study, tmp_path)))
    assert (header[2:], row) == (["`narrow`"], ["missing RGB", "", "0.3000"])


def test_benchmarks_have_a_table_for_each_result(tmp_path: Path) -> None:
    arms = {"loop": {"benchmark": "loop"}, "start": {"benchmark": "start", "about": "a command"}}
    study = define(
        tmp_path, metric=None, also=[], reference=None, costs=[], picture=[], base={}, arms=arms
    )
    assert [run.name for run in study.runs()] == ["loop_seed0", "start_seed0"]
    timings = [
        RecordedTiming("steps", "step", "bare loop", 0.0125, (1.0, 1.0, 1.0), 5),
        RecordedTiming("steps", "step", "train.py", 0.0135, (0.93, 0.9, 0.95), 5),
        RecordedTiming("epoch", "step", "bare loop", 2e-5, (1.0, 1.0, 1.0), 3),
    ]
    keep(tmp_path, study.runs()[0], None, evaluation=None, timings=timings)
    text = tables.timings(plan(study, tmp_path))
    rows = csv.DictReader((results.table(plan(study, tmp_path), tmp_path).text or "").splitlines())
    assert [(row["name"], float(row["seconds"]), float(row["lowest"])) for row in rows] == [
        ("bare loop", 0.0125, 1.0), ("train.py", 0.0135, 0.9), ("bare loop", 2e-5, 1.0),
    ]  # fmt: skip
    assert text.endswith("`start`: a command: needs 30 minutes.")
    assert cells(text.split("\n\n")[1]) == [
        ["steps, n = 5", "ms a step", "speed (lowest … highest)"],
        ["bare loop", "12.5", "1.00 (1.00 … 1.00)"],
        ["train.py", "13.5", "0.93 (0.90 … 0.95)"],
    ]
    assert re.search(r"epoch, n = 3 \| µs a step .*\n.*\n\| bare loop \| 20 \|", text)
