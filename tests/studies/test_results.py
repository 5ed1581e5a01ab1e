"""The results page: what its records say to the byte, so that no figure is typed."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from research.studies import record, results
from research.studies.definition import StudyDefinition
from research.utils.errors import UserError
from research.viz import studies as charts
from tests.conftest import ROOT, refusal, user_error, verb
from tests.studies.made import ARMS_OF_THREE, define, keep, keep_all

DOCS = ROOT / "docs"
VALUES = {"narrow": [0.5, 0.52], "wide": [0.61, 0.64], "deep": [0.7]}
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A project's documentation with one study, of which a part is done, and its page."""
    study = define(tmp_path, arms=ARMS_OF_THREE)
    keep_all(tmp_path, study, VALUES)
    results.write(results.build(tmp_path))
    return tmp_path


def outdated(docs: Path) -> list[str]:
    return list(results.outdated(results.build(docs)))


def test_the_committed_page_is_that_of_its_records() -> None:
    """Byte for byte; ``python -m research.study build=true`` writes it."""
    assert outdated(DOCS) == []


def test_all_tables_of_the_page_are_made_of_records() -> None:
    """What is written by hand around the sections has none, nor a picture."""
    text = (DOCS / "studies/results.md").read_text()
    assert "<!-- study " in text
    assert [line for line in text.splitlines() if line.startswith(("|", "!["))] == []


def test_what_is_built_again_is_the_same(docs: Path) -> None:
    files = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    assert {"results.md", "nets.csv", "nets.svg"} <= {path.name for path in files}
    assert results.write(results.build(docs)) == []
    assert outdated(docs) == []
    for built in results.build(docs):
        built.path.unlink()
    assert len(results.write(results.build(docs))) == 3
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("name", ["results.md", "records/nets.csv"])
def test_a_digit_that_was_changed_by_hand_is_noticed(name: str, docs: Path) -> None:
    path = docs / name
    text = path.read_text()
    built, found = results.build(docs), list(re.finditer(r"\d", text))
    for match in found[:: max(1, len(found) // 60)]:
        other = str((int(match[0]) + 1) % 10)
        path.write_text(text[: match.start()] + other + text[match.end() :])
        [line] = results.outdated(built)
        number = text[: match.start()].count("\n") + 1
        assert line.startswith(f"{path}:{number}: has ")
    path.write_text(text)
    assert outdated(docs) == []


def test_a_digit_of_a_record_that_was_changed_is_noticed(docs: Path) -> None:
    path = docs / "records/nets/wide_seed0.json"
    path.write_text(path.read_text().replace('"top1": 0.61', '"top1": 0.62'))
    lines = outdated(docs)
    assert [line.partition(":")[0] for line in lines] == [
        str(docs / name) for name in ("results.md", "records/nets.csv", "pictures/studies/nets.svg")
    ]


def test_a_picture_that_was_changed_by_hand_is_noticed(docs: Path) -> None:
    path = docs / "pictures/studies/nets.svg"
    text = path.read_text()
    path.write_text(text.replace("<!-- narrow", "<!-- other").replace("1  narrow", "1  wide"))
    assert path.read_text() != text
    [line] = outdated(docs)
    assert line.startswith(str(path))


def test_every_figure_of_the_tables_has_a_record(docs: Path) -> None:
    """Computed from the JSON files alone, without the code that makes the page."""
    page = (docs / "results.md").read_text()
    kept = [json.loads(path.read_text()) for path in (docs / "records/nets").glob("*.json")]
    figures: set[float] = set()
    for arm, values in VALUES.items():
        own = [each for each in kept if each["arm"] == arm]
        top1 = [each["evaluation"]["metrics"]["top1"] for each in own]
        assert sorted(top1) == values
        figures |= {round(v, 4) for v in top1} | {len(own), round(statistics.fmean(top1), 4)}
        if len(top1) > 1:
            figures |= {round(statistics.stdev(top1), 4), 0.0}
        figures |= {each["evaluation"]["metrics"]["loss"] for each in own}
        figures |= {each["evaluation"]["n"] for each in own}
        figures |= {each["costs"]["parameters"] for each in own}
        figures |= {each["costs"]["macs"] / 1e9 for each in own}
        figures |= {each["costs"]["bytes_per_image"] for each in own}
        figures |= {each["seconds"]["training"] for each in own}
        per_image = [each["seconds"]["training"] / len(each["epochs"]["val/top1"]) for each in own]
        figures |= {
            1000 * s / each["samples"]["train"] for s, each in zip(per_image, own, strict=True)
        }
    figures |= {3, 4}  # the seeds of the definition; the channels that it tells of
    table = page.partition("| arm |")[2].partition("\n\n")[0]
    rows = [re.sub(r"`\w+`", "", line) for line in table.splitlines()[2:]]
    shown = [float(each.replace(",", "")) for row in rows for each in NUMBER.findall(row)]
    assert len(shown) > 20
    assert [number for number in shown if number not in figures] == []


def test_the_table_of_runs_has_each_once(docs: Path) -> None:
    with (docs / "records/nets.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], float(row["test/top1"])) for row in rows] == [
        ("narrow_seed0", 0.5), ("wide_seed0", 0.61), ("deep_seed0", 0.7),
        ("narrow_seed1", 0.52), ("wide_seed1", 0.64),
    ]  # fmt: skip
    assert {(row["n"], row["checkpoint"], row["threads"]) for row in rows} == {("50", "last", "1")}


def test_what_is_undone_says_its_hours(docs: Path) -> None:
    page = (docs / "results.md").read_text()
    # Four runs, of arms whose recorded runs took 120 s.
    assert "5 of 9 runs are recorded; the others need about 8 minutes, one run at a time." in page


def test_a_stale_record_is_said_and_not_used(docs: Path) -> None:
    arms = {**ARMS_OF_THREE, "wide": {"settings": {"model.widths": [9, 9, 9]}}}
    define(docs, arms=arms)
    results.write(results.build(docs))
    page = (docs / "results.md").read_text()
    assert "Stale, of a former definition and not used here: wide_seed0, wide_seed1." in page
    assert "0.62" not in page  # the mean of both
    assert "wide_seed" not in (docs / "records/nets.csv").read_text()
    assert re.search(r"\| `wide` \| 0 of 3 \| needs 90 minutes \|", page)


def test_a_record_of_no_run_is_said(docs: Path) -> None:
    define(docs, arms={name: own for name, own in ARMS_OF_THREE.items() if name != "deep"})
    (docs / "records/nets/<b>|`[a](b).json").touch()
    results.write(results.build(docs))
    page = (docs / "results.md").read_text()
    assert "Of no run of the definition, and not used: …b…………a……b…, deep_seed0." in page


def test_runs_of_an_arm_with_other_settings_are_said(docs: Path) -> None:
    study = define(docs, arms=ARMS_OF_THREE)
    for run in study.runs()[:6]:
        lr = 0.1 if run.name == "wide_seed1" else 0.05
        settings = {"optimizer.lr": lr, "seed": run.seed, "dataset.fold": run.seed}
        keep(docs, run, 0.5, configuration=settings)
    results.write(results.build(docs))
    page = (docs / "results.md").read_text()
    assert re.findall(r"\*\*The runs of .+?\*\*", page) == [
        "**The runs of `wide` differ in `optimizer.lr`.**"
    ]


def test_runs_of_an_arm_on_other_data_are_said(docs: Path) -> None:
    """Each fold has data of its own."""
    study = define(docs, folds=3, seeds=[0, 1], arms={"narrow": {}, "wide": {}})
    for run in study.runs():
        changed = "b" if run.name == "wide_fold1_seed1" else "a"
        keep(docs, run, 0.5, data=f"{changed}{run.fold}")
    results.write(results.build(docs))
    page = (docs / "results.md").read_text()
    said = re.findall(r"\*\*The runs of .+?\*\*", page)
    assert said == ["**The runs of `wide` differ in `data`.**"]


def test_files_of_a_study_without_records_go(docs: Path) -> None:
    for path in (docs / "records/nets").glob("*.json"):
        path.unlink()
    results.write(results.build(docs))
    assert not (docs / "records/nets.csv").exists()
    assert not (docs / "pictures/studies/nets.svg").exists()
    page = (docs / "results.md").read_text()
    assert "Undone: 9 runs, about 6.0 hours, one run at a time." in page


@pytest.mark.parametrize("lines", ["", "<!-- study nets -->\n" * 2, "<!-- study nats -->\n"])
def test_each_study_has_one_place_on_the_page(lines: str, docs: Path) -> None:
    (docs / "studies/results.md").write_text(lines)
    with pytest.raises(UserError, match="one for each definition") as caught:
        results.build(docs)
    assert caught.value.key == "docs"


def test_the_command_checks_and_builds(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = verb("study")
    study.main(["check=true", f"docs={docs}"])
    page = docs / "results.md"
    page.write_text(page.read_text().replace("0.6100", "0.9100"))
    with pytest.raises(SystemExit) as ended:
        study.main(["check=true", f"docs={docs}"])
    assert ended.value.code == 1
    study.main(["build=true", f"docs={docs}"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "the results page is that of its records"
    assert "has '| `wide`" in printed[1]
    assert "0.9100" in printed[1]
    assert printed[2] == f"wrote {page}"
    study.main(["dry=true", f"docs={docs}"])
    listed = capsys.readouterr().out
    assert re.search(r"9 runs: 5 recorded, 0 stale, 4 undone", listed)
    assert re.search(r"wide_seed1 +recorded +top1 0.64\n", listed)
    assert re.search(r"wide_seed2 +undone +2 minutes\n", listed)
    for key, word in (("check", "nets"), ("build", "data.pictures=.")):
        with user_error(key, "is of the whole page", "leave it out"):
            study.main([word, f"{key}=true", f"docs={docs}"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nats"], "NAME=nats; did you mean 'nets'?"),
        (["nets"], "nets needs data.pictures=PATH; folders train and val"),
        (["nets", "data.photos=."], "data=photos"),
        (["nets", "data.pictures=missing"], "data.pictures=missing: no such file or folder"),
        (["nets", "hours=-1"], "hours=-1: expected a number above 0"),
        (["nets", "docs=none"], "none/studies: no definition of a study"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, docs: Path) -> None:
    own = [] if any(word.startswith("docs=") for word in words) else [f"docs={docs}"]
    assert line in refusal(verb("study").main, [*words, *own])


# -- pictures ------------------------------------------------------------------------------------


def test_another_version_of_matplotlib_goes_by_the_numbers(docs: Path) -> None:
    text = (docs / "pictures/studies/nets.svg").read_text()
    [description] = re.findall(r"<dc:description>(.+)</dc:description>", text)
    older = charts.CREATOR.sub("Matplotlib v3.0.0", text).replace("stroke", "line")
    assert charts.is_same(text, text, description)
    assert charts.is_same(older, text, description)
    assert not charts.is_same(older, text.replace(description, "x"), "x")
    assert not charts.is_same(text.replace("stroke", "line"), text, description)


def test_a_picture_has_no_colour_and_no_date(docs: Path) -> None:
    text = (docs / "pictures/studies/nets.svg").read_text()
    colours = {each.lower() for each in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
    assert colours
    assert all(each[1:3] == each[3:5] == each[5:7] for each in colours)
    assert "dc:date" not in text
    assert "narrow" in text  # as text


def test_a_picture_has_the_units_of_the_table(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, dict[str, float]]] = []
    over_costs = charts.over_costs

    def spy(values: Any, costs: dict[str, dict[str, float]], *rest: Any) -> Any:
        drawn.append(costs)
        return over_costs(values, costs, *rest)

    monkeypatch.setattr(charts, "over_costs", spy)
    results.build(docs)
    [costs] = drawn
    assert costs["GMAC"]["narrow"] == pytest.approx(0.0025)  # of 2,500,000
    assert "| 0.0025 |" in (docs / "results.md").read_text()


def front_of(points: list[tuple[float, float]], mode: str) -> list[tuple[float, float]]:
    """Points that no other beats in both, by comparing each with each."""
    sign = 1 if mode == "max" else -1
    return sorted(
        (x, y)
        for x, y in points
        if not any((a <= x and sign * b >= sign * y) and (a, b) != (x, y) for a, b in points)
    )


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_front_is_that_of_points_that_no_other_beats(mode: str) -> None:
    points = [(1.0, 0.4), (2.0, 0.5), (2.0, 0.3), (3.0, 0.45), (4.0, 0.2), (5.0, 0.9)]
    arms = {f"arm{number}": point for number, point in enumerate(points)}
    figure = charts.over_costs(
        {arm: [y - 0.01, y + 0.01] for arm, (_, y) in arms.items()},
        {"GMAC": {arm: x for arm, (x, _) in arms.items()}}, "val/top1", mode,
    )  # fmt: skip
    [dashed] = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    drawn = [(float(x), round(float(y), 6)) for x, y in dashed.get_xydata()]
    assert drawn == front_of(points, mode)


def study_of(docs: Path) -> StudyDefinition:
    return define(docs, arms=ARMS_OF_THREE)


def test_a_seed_more_changes_the_picture(docs: Path) -> None:
    before = (docs / "pictures/studies/nets.svg").read_text()
    keep(docs, study_of(docs).runs()[5], 0.7)
    assert record.path_of(docs, study_of(docs).runs()[5]).name == "deep_seed1.json"
    results.write(results.build(docs))
    assert (docs / "pictures/studies/nets.svg").read_text() != before
