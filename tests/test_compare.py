"""The compare command, from folders to tables and files."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research import compare
from tests.comparison.recorded import config, record, study
from tests.conftest import ROOT, advised, user_error


def table(printed: str, index: int) -> list[list[str]]:
    """Cells of one of the Markdown tables, header first."""
    block = [part for part in printed.split("\n\n") if part.startswith("|") or "\n|" in part][index]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_two_models_over_three_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "runs" / "sweeps" / "one")
    record(tmp_path / "runs" / "killed", config(), [0.1], status="KILLED")
    compare.main(["out=seen"])
    printed = capsys.readouterr()
    assert "val/top1 (higher is better) in each run's best epoch" in printed.out
    assert "optimistic" in printed.out
    assert "skipped: 1 KILLED; status=all" in printed.err
    _, _, first, second = table(printed.out, 0)
    assert first == [
        "1", "resnet34", "3", "480", "0.9133 ± 0.0153", "0.9000 … 0.9300", "8,000", "6.0",
    ]  # fmt: skip
    assert second[:5] == ["2", "densenet121", "3", "480", "0.9117 ± 0.0135"]
    header, _, row = table(printed.out, 1)
    assert header[1] == "difference from resnet34"
    assert row == [
        "2", "densenet121", "-0.0017", "[-0.0050, +0.0020]", "[-0.0104, +0.0071]", "0.497",
        "paired", "not distinguishable: needs about 34 more seeds to tell",
    ]  # fmt: skip
    content = json.loads((tmp_path / "seen" / "comparison.json").read_text())
    assert content["groups"][0]["values"] == {"0": 0.9, "1": 0.91, "2": 0.93}
    assert (content["reference"], content["left_out"]) == ("resnet34", {"KILLED": 1})
    with (tmp_path / "seen" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["resnet34", "densenet121"]
    assert float(rows[1]["t_high"]) == pytest.approx(0.0071, abs=1e-4)
    assert {row["n"] for row in rows} == {"480"}
    assert "different numbers of samples" not in printed.out
    with (tmp_path / "seen" / "runs.csv").open(newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["480"] * 6
    assert (tmp_path / "seen" / "comparison.html").stat().st_size > 20_000
    assert "files: seen (comparison.html, comparison.json, comparison.csv, runs.csv)" in printed.err
    best = "runs/sweeps/one/resnet34_2"  # of the highest value in the best group
    assert advised(printed.err) == ["python", "-m", "research.reproduce", best]


def test_runs_of_other_numbers_of_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of runs that did not count them."""
    for seed, n in enumerate((480, 96, None)):
        record(tmp_path / "a" / f"a_{seed}", config(seed=seed), [0.5], n=n)
    record(tmp_path / "a" / "b", config("vit"), [0.4], n=None)
    compare.main([str(tmp_path / "a"), f"out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert [row[3] for row in table(printed, 0)[2:]] == ["96…480", ""]
    assert "different numbers of samples (96…480)" in printed
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["480", "96", "", ""]


@pytest.mark.parametrize(
    ("dataset", "hashes", "said"),
    [
        ({"split_seed": None}, ["a", "a", "a"], ""),
        ({"split_seed": None}, ["a", "a", "b"], "dataset.split_seed=0 draws one for all"),
        ({"split_seed": None}, ["a", "b", "b"], "its files have changed between them"),
        ({"split_seed": 0}, ["a", "a", "b"], "its files have changed between them"),
        ({}, ["a", "", "b"], "its files have changed between them"),
        ({}, ["a", "", ""], ""),
        ({"workers": 2}, ["a", "a", "b"], "its files have changed between them"),
    ],
)
def test_runs_of_other_data(
    dataset: dict[str, Any],
    hashes: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of two models with seed 0, and one with seed 1; other settings of the data say it all."""
    runs = (("resnet34", 0), ("densenet121", 0), ("densenet121", 1))
    for (model, seed), data in zip(runs, hashes, strict=True):
        settings = config(model, seed=seed, dataset={"name": "photos", **dataset})
        record(tmp_path / f"a/{model}_{seed}", settings, [0.5], data=data)
    settings = config("vit", dataset={"name": "others", **dataset})
    record(tmp_path / "a/vit", settings, [0.5], data="c")
    compare.main([str(tmp_path / "a"), f"out={tmp_path / 'out'}"])
    lines = " ".join(capsys.readouterr().out.split())
    known = ("dataset.split_seed=0 draws one for all", "its files have changed between them")
    assert [text for text in known if text in lines] == ([said] if said else [])


def test_against_and_metric_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path / "a")
    words = [str(tmp_path / "a"), f"out={tmp_path / 'out'}"]
    for against in ("2", "densenet121", "dense"):
        compare.main([*words, f"against={against}"])
        row = table(capsys.readouterr().out, 1)[2]
        assert row[1:4] == ["resnet34", "+0.0017", "[-0.0020, +0.0050]"]
    compare.main([*words, "metric=val/loss"])
    printed = capsys.readouterr().out
    assert "val/loss (lower is better)" in printed
    assert "optimistic" not in printed
    assert table(printed, 0)[2][1:5] == ["resnet34", "3", "480", "0.08667 ± 0.01528"]
    compare.main([*words, "metric=val/loss:max", "group_by=model", "confidence=0.5"])
    printed = capsys.readouterr().out
    assert table(printed, 0)[2][1] == "densenet121"
    assert table(printed, 1)[0][3] == "bootstrap 50 %"
    compare.main([*words, "group_by=optimizer.lr"])
    printed = capsys.readouterr().out
    assert table(printed, 0)[2][1:3] == ["all runs", "3 (6 runs)"]
    assert "difference" not in printed


def test_results_on_the_test_split_are_a_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the best epoch, as the run's own; none is taken from a damaged file."""
    study(tmp_path / "a")
    words = [str(tmp_path / "a"), f"out={tmp_path / 'out'}"]
    with user_error("metric", "metric=test/top1: no run logged it"):
        compare.main([*words, "metric=test/top1"])
    for number, folder in enumerate(sorted((tmp_path / "a").iterdir())):
        (folder / "evaluations").mkdir()
        content: Any = {
            "epoch": 2,
            "changed": {},
            "n": 24,
            "metrics": {"top1": number / 10, "x": None},
        }
        if number == 0:
            content["epoch"] = 1  # the run has gone on since
        if number == 1:
            content = []
        (folder / "evaluations/test.json").write_text(json.dumps(content))
    compare.main([*words, "metric=test/top1"])
    printed = capsys.readouterr()
    assert [row[1:5] for row in table(printed.out, 0)[2:]] == [
        ["resnet34", "3", "24", "0.4000 ± 0.1000"], ["densenet121", "1", "24", "0.2000"],
    ]  # fmt: skip
    assert "2 without test/top1" in printed.err
    assert "optimistic" not in printed.out
    compare.main(words)
    [advice] = re.findall(r"metric=test/\S+", capsys.readouterr().out)
    compare.main([*words, advice])
    assert "test/top1 (higher is better)" in capsys.readouterr().out


def test_a_clear_difference_is_significant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lr, drop in ((0.1, 0.0), (0.2, 0.05), (0.3, 0.3)):
        for seed, noise in enumerate((0.001, -0.002, 0.0015)):
            settings = config(lr=lr, seed=seed + (10 if lr == 0.3 else 0))
            record(tmp_path / f"{lr}_{seed}", settings, [0.9 - drop + (1 + lr) * noise])
    record(tmp_path / "single", config(lr=0.4), [0.2])
    compare.main([str(tmp_path), f"out={tmp_path / 'out'}"])
    rows = table(capsys.readouterr().out, 1)[2:]
    assert [row[-2:] for row in rows] == [
        ["paired", "distinguishable: worse"],
        ["unpaired", "distinguishable: worse"],
        ["unpaired", "no spread yet: one seed"],
    ]
    assert rows[2][3:5] == ["", ""]


def test_the_best_is_one_of_many_and_a_named_group_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(2).normal(0, 0.002, (6, 4))
    for index, row in enumerate(noise):
        for seed, value in enumerate(row):
            settings = config(lr=1.0 + index, seed=seed)
            record(tmp_path / f"{index}_{seed}", settings, [0.9 + value + 0.006 * (index == 5)])
    out = tmp_path / "out"
    p_values = []
    for words in ([], ["against=lr=6"]):
        compare.main([str(tmp_path), f"out={out}", *words])
        rows = table(capsys.readouterr().out, 1)[2:]
        found = json.loads((out / "comparison.json").read_text())
        assert found["reference"] == "lr=6"
        assert [row["verdict"] for row in found["groups"][1:]] == [row[-1] for row in rows]
        assert [f"{row['p']:.3f}" for row in found["groups"][1:]] == [row[5] for row in rows]
        p_values.append([row["p"] for row in found["groups"][1:]])
        many = 5 if words else 15
        assert any(f"for {many} comparisons by Holm" in note for note in found["notes"])
    assert max(p_values[0]) < 1
    assert all(best > named for best, named in zip(*p_values, strict=True))


def test_a_setting_may_be_called_as_a_column(tmp_path: Path) -> None:
    for epochs in (10, 20):
        record(tmp_path / str(epochs), {**config(), "epochs": epochs}, [0.5, 0.6, 0.7])
    compare.main([str(tmp_path), f"out={tmp_path / 'out'}"])
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["epochs"], row["setting.epochs"]) for row in rows]
    assert found == [("3.0", "10"), ("3.0", "20")]


def test_runs_that_monitored_other_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path)
    monitor, typed = ("val/loss", "min"), ["optimizer.lr=0.5"]
    record(tmp_path / "loss", config(lr=0.5), [0.5, 0.2], monitor=monitor, overrides=typed)
    with user_error("metric", "val/loss:min", "val/top1:max"):
        compare.main([str(tmp_path), f"out={tmp_path / 'out'}"])
    compare.main([str(tmp_path), "metric=val/top1", f"out={tmp_path / 'out'}"])
    assert "lr=0.5" in capsys.readouterr().out


def test_costs_that_a_sweep_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path)
    trials: list[dict[str, Any]] = [
        {"values": {"val/top1": 0.9, "latency_ms": 3.5}, "paths": {"run": "elsewhere/resnet34_0"}},
        {"status": "FAILED"},
    ]
    (tmp_path / "final_summary.json").write_text(json.dumps({"trials": trials}))
    compare.main([str(tmp_path), f"out={tmp_path / 'out'}"])
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        rows = {Path(row["run"]).name: row["latency_ms"] for row in csv.DictReader(file)}
    assert rows == {"resnet34_0": "3.5"} | {name: "" for name in rows if name != "resnet34_0"}
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert '{"key":"latency_ms","label":"latency","unit":"ms/image"}' in text


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["nowhere"], "RUN", "nowhere"),
        (["a", "experiment=demo"], "RUN", "no run to compare; pass other RUN folders"),
        (["a", "status=DONE"], "status", "status=DONE"),
        (["a", "status=PRUNED"], "RUN", "6 FINISHED; status=all"),
        (["a", "metric=val/top2"], "metric", "'val/top1'"),
        (["a", "metric=val/top1:best"], "metric", "val/top1:max, val/top1:min"),
        (["a", "group_by=lr"], "group_by", "group_by=lr"),
        (["a", "against=vgg"], "against", "resnet34, densenet121"),
        (["a", "against=e"], "against", "against=e: fits several groups"),
        (["a", "against=3"], "against", "against=3: no such group"),
        (["a", "confidence=95"], "confidence", "0.9999"),
        (["a", "groupby=model"], "groupby", "'group_by'"),
        (["a", "out=file"], "out", "out=FOLDER"),
    ],
)
def test_mistakes(
    words: list[str], key: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "a")
    (tmp_path / "file").touch()
    with user_error(key, expected):
        compare.main(words)


@pytest.mark.long
def test_as_a_process_without_torch(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    script = (
        "import sys; from research import compare; compare.main(['runs']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [page] = (tmp_path / "runs" / "compare").glob("*/comparison.html")
    assert f"files: {page.parent.relative_to(tmp_path)} ({page.name}, " in done.stderr


# -- MLflow -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_the_page_goes_to_the_run_of_the_sweep(
    tmp_path: Path,
    store: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    client = MlflowClient(store)
    experiment = client.create_experiment("ours", artifact_location=(tmp_path / "art").as_uri())
    parent = client.create_run(experiment).info.run_id
    logging = {"mlflow": {"uri": store, "experiment": "ours"}}
    for seed in (0, 1):
        record(
            tmp_path / "runs" / "sweep" / f"trial_{seed}", config(seed=seed, logging=logging), [0.5]
        )
    words = [str(tmp_path / "runs" / "sweep"), f"out={tmp_path / 'out'}"]
    compare.main(words)
    assert "mlflow" not in capsys.readouterr().err
    (tmp_path / "runs" / "sweep" / "mlflow_run_id").write_text(parent)
    compare.main(words)
    assert f"mlflow: run {parent}" in capsys.readouterr().err
    # An address that only other people's runs name does not count.
    (tmp_path / "runs").rename(tmp_path / "strangers")
    compare.main([str(tmp_path / "strangers" / "sweep"), f"out={tmp_path / 'out'}"])
    assert "mlflow" not in capsys.readouterr().err
    (tmp_path / "strangers").rename(tmp_path / "runs")
    files = {file.path for file in client.list_artifacts(parent, "comparison")}
    names = ("comparison.html", "comparison.json", "comparison.csv", "runs.csv")
    assert files == {f"comparison/{name}" for name in names}
    # Runs from several places, into a run of their own.
    record(tmp_path / "other", config(seed=2, logging=logging), [0.5])
    compare.main([str(tmp_path / "other"), *words, f"mlflow={store}"])
    [run] = client.search_runs([experiment], "attributes.run_name = 'comparison'")
    assert {file.path for file in client.list_artifacts(run.info.run_id, "comparison")} == files
    assert run.info.status == "FINISHED"


def test_a_store_that_is_away_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study(tmp_path / "a")
    away = f"mlflow=sqlite:///{tmp_path}/away.db"
    compare.main([str(tmp_path / "a"), f"out={tmp_path / 'out'}", away])
    assert "away.db: the comparison was not uploaded" in caplog.text
    assert (tmp_path / "out" / "comparison.html").exists()
    assert not (tmp_path / "away.db").exists()
