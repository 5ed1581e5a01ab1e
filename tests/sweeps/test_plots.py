"""Plots of a sweep: they show what the summary holds, even if that is little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from research.sweeps import analysis, plots

TOP1 = {"name": "val/top1", "direction": "maximize"}
LATENCY = {"name": "latency_ms", "direction": "minimize"}
LOG = "tag(log, interval(1e-4, 1e-1))"


def trial(number: int, status: str = "FINISHED", **more: Any) -> dict[str, Any]:
    return {
        "trial": number,
        "params": {},
        "status": status,
        "reason": "",
        "values": {},
        "epochs": {},
        "seconds": 1.5,
        **more,
    }


def summary(
    trials: list[dict[str, Any]],
    space: Mapping[str, str],
    objectives: tuple[dict[str, str], ...] = (TOP1,),
    best: int | None = None,
    pareto: tuple[int, ...] = (),
) -> dict[str, Any]:
    """What ``final_summary.json`` says of some trials."""
    return {
        "study": "a_study",
        "storage": "runs/studies.journal",
        "sampler": "RandomSampler",
        "pruner": None,
        "n_trials": 20,
        "objectives": list(objectives),
        "monitor": "val/top1:max",
        "space": dict(space),
        "best": None if best is None else trials[best],
        "pareto": [trials[number] for number in pareto],
        "trials": trials,
    }


def lines(axes: Axes) -> dict[str, list[list[float]]]:
    """(x, y) of all that is drawn with a label."""
    return {
        str(line.get_label()): np.column_stack(line.get_data()).tolist()
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def some() -> dict[str, Any]:
    """Finished, pruned, failed, killed and running trials."""
    return summary(
        [
            trial(0, values={"val/top1": 0.5}, epochs={"1": 0.25, "2": 0.5}, params={"lr": 0.01}),
            trial(1, "PRUNED", epochs={"1": 0.125}, params={"lr": 0.1}, values={"val/top1": 0.125}),
            trial(2, "FAILED", params={"lr": 0.02}, reason="UserError: no"),
            trial(3, values={"val/top1": 0.75}, epochs={"1": 0.5, "2": 0.75}, params={"lr": 0.001}),
            trial(4, "KILLED", params={"lr": 0.04}),
            trial(5, values={"val/top1": 0.25}, epochs={"1": None, "2": 0.25}, params={"lr": 0.05}),
            trial(6, "RUNNING", epochs={"1": 0.0}, params={"lr": 0.002}),
        ],
        {"lr": LOG},
        best=3,
    )


def test_one_objective_and_one_key() -> None:
    figures = plots.figures(some())
    assert list(figures) == ["history", "learning_curves", "slices"]
    drawn = lines(figures["history"].axes[0])
    assert drawn["finished"] == [[0, 0.5], [3, 0.75], [5, 0.25]]
    assert drawn["best so far"] == [[0, 0.5], [3, 0.75], [5, 0.75]]
    assert drawn["pruned"] == [[1, 0.125]]
    assert [x for x, _ in drawn["failed"]] == [2]
    assert [x for x, _ in drawn["killed"]] == [4]

    drawn = lines(figures["learning_curves"].axes[0])
    assert drawn == {
        "finished": [[1, 0.25], [2, 0.5]],
        "pruned": [[1, 0.125]],
        "best": [[1, 0.5], [2, 0.75]],
        "running": [[1, 0.0]],
    }

    (axes,) = figures["slices"].axes
    assert axes.get_xscale() == "log"
    points, best = (np.column_stack(line.get_data()).tolist() for line in axes.get_lines())
    assert points == [[0.01, 0.5], [0.001, 0.75], [0.05, 0.25]]
    assert best == [[0.001, 0.75]]


def test_less_is_better() -> None:
    loss = {"name": "val/loss", "direction": "minimize"}
    trials = [trial(n, values={"val/loss": v}, params={"seed": n}) for n, v in enumerate((3, 1, 2))]
    (axes,) = plots.figures(summary(trials, {"seed": "0,1,2"}, (loss,), best=1))["history"].axes
    assert lines(axes)["best so far"] == [[0, 3], [1, 1], [2, 1]]


def test_values_of_epochs_are_of_the_monitored_metric() -> None:
    """Whatever the objective is: an accuracy is no latency."""
    trials = [
        trial(0, values={"latency_ms": 3.0}, epochs={"1": 0.5}, params={"seed": 0}),
        trial(1, "KILLED", epochs={"1": 0.25}, params={"seed": 1}),
    ]
    figures = plots.figures(summary(trials, {"seed": "0,1"}, (LATENCY,), best=0))
    (history,), (curves,) = (figures[name].axes for name in ("history", "learning_curves"))
    assert lines(history)["killed"] == [[1, 0.02]]  # at the bottom, in units of the axis
    assert curves.get_ylabel() == "val/top1"


def test_choices_are_in_order() -> None:
    given: tuple[Any, ...] = (10, 2, 2, "all", None)
    trials = [
        trial(n, params={"window": value}, values={"val/top1": n / 8})
        for n, value in enumerate(given)
    ]
    (axes,) = plots.figures(summary(trials, {"window": "10,2,all,null"}, best=4))["slices"].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10", "None", "all"]
    points = np.column_stack(axes.get_lines()[0].get_data())
    assert points[:, 0].tolist() == [1, 0, 0, 3, 2]
    medians = [segment[0, 1] for bar in axes.collections for segment in bar.get_segments()]
    assert medians == [1.5 / 8, 0, 4 / 8, 3 / 8]


def test_two_objectives_have_a_front() -> None:
    points = ((0.5, 10.0), (0.75, 20.0), (0.5, 30.0), (0.9, 40.0))
    trials = [
        trial(n, params={"lr": 0.01 * (n + 1)}, values={"val/top1": top1, "latency_ms": ms})
        for n, (top1, ms) in enumerate(points)
    ]
    trials.append(trial(4, "FAILED", params={"lr": 0.1}))
    figures = plots.figures(summary(trials, {"lr": LOG}, (TOP1, LATENCY), pareto=(0, 1, 3)))
    assert list(figures) == ["history", "slices", "pareto"]
    (axes,) = figures["pareto"].axes
    drawn = lines(axes)
    assert drawn["front"] == [[0.5, 10], [0.75, 20], [0.9, 40]]
    assert drawn["dominated"] == [[0.5, 30]]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2", "3"]
    # From 0.5 to 0.75 nothing of less than 20 ms was found.
    (front,) = (line for line in axes.get_lines() if line.get_label() == "front")
    assert front.get_drawstyle() == "steps-pre"
    upper, lower = figures["history"].axes
    assert lines(upper)["best so far"][-1] == [3, 0.9]
    assert lines(lower)["best so far"][-1] == [3, 10]


def test_three_objectives_are_drawn_in_pairs() -> None:
    third = {"name": "bytes_per_image", "direction": "minimize"}
    values = {"val/top1": 0.5, "latency_ms": 3.0, "bytes_per_image": 100}
    trials = [trial(0, params={"lr": 0.01}, values=values)]
    figures = plots.figures(summary(trials, {"lr": LOG}, (TOP1, LATENCY, third), pareto=(0,)))
    labels = [
        (a.get_xlabel().split()[0], a.get_ylabel().split()[0]) for a in figures["pareto"].axes
    ]
    assert labels == [
        ("val/top1", "latency_ms"),
        ("val/top1", "bytes_per_image"),
        ("latency_ms", "bytes_per_image"),
    ]


@pytest.mark.parametrize(
    ("trials", "drawn"),
    [
        ([], []),
        ([trial(0, "RUNNING", params={"lr": 0.1})], []),
        ([trial(0, "FAILED", params={"lr": 0.1})], ["history"]),
        ([trial(0, params={"lr": 0.1}, values={"val/top1": float("nan")})], []),
        ([trial(0, params={"lr": 0.1}, values={"val/top1": None})], []),
    ],
)
@pytest.mark.parametrize("objectives", [(TOP1,), (TOP1, LATENCY)])
def test_a_sweep_with_few_results(
    trials: list[dict[str, Any]], drawn: list[str], objectives: tuple[dict[str, str], ...]
) -> None:
    found = plots.pictures(summary(trials, {"lr": LOG}, objectives))
    assert list(found) == drawn
    assert all(min(image.size) > 300 for image in found.values())


# -- importance --------------------------------------------------------------------------------


def searched(count: int) -> dict[str, Any]:
    """Trials whose value is that of one key of two."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(count):
        lr, words = 10 ** rng.uniform(-4, -1), ("a", 1, None)
        params = {"lr": lr, "kind": words[number % 3]}
        values = {"val/top1": -abs(np.log10(lr) + 2), "latency_ms": float(number % 3)}
        trials.append(trial(number, params=params, values=values))
    return summary(trials, {"lr": LOG, "kind": "a,1,null"}, (TOP1, LATENCY))


def test_importance_of_each_objective() -> None:
    importances = analysis.importance(searched(40))
    assert importances["val/top1"]["lr"] > 0.9
    assert importances["latency_ms"]["kind"] > 0.9
    for of_key in importances.values():
        assert sum(of_key.values()) == pytest.approx(1)
    (axes,) = plots.figures(searched(40))["importance"].axes
    assert {label.get_text() for label in axes.get_yticklabels()} == {"lr", "kind"}
    assert len(axes.patches) == 4


def test_no_importance_from_too_little_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis.importance(searched(9)) == {}
    assert analysis.importance({**searched(20), "space": {"lr": LOG}}) == {}
    same = searched(20)
    for each in same["trials"]:
        each["values"] = {"val/top1": 0.5, "latency_ms": 2.0}
    assert analysis.importance(same) == {}
    assert capsys.readouterr() == ("", "")


# -- the table ---------------------------------------------------------------------------------


def test_the_table_has_a_row_a_trial_and_the_same_columns_in_each() -> None:
    found = some()
    run = {"paths": {"run": "runs/sweeps/a/trial_0000"}, "best_n": 480, "unit": "images"}
    found["trials"][0] |= {"epochs_done": 3, **run}
    found["trials"][3]["params"]["lr"] = None
    rows = analysis.trials_table(found)
    columns = ["trial", "status", "reason", "lr", "val/top1", "n", "epochs", "seconds", "run"]
    assert [list(row) for row in rows] == [columns] * 7
    assert list(rows[0].values()) == [
        *(0, "FINISHED", "", 0.01, 0.5, 480, 3, 1.5, "runs/sweeps/a/trial_0000"),
    ]  # fmt: skip
    assert list(rows[2].values()) == [2, "FAILED", "UserError: no", 0.02, "", "", 0, 1.5, ""]
    assert rows[3]["lr"] == "None"
    assert analysis.trials_table(summary([], {"lr": LOG})) == []
