"""That the candidates do the work that is timed; how fast they are is nothing for a test."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from research import benchmark, build
from research.benchmark import Cost
from research.errors import UserError
from research.tracking.tracker import Progress, Row, Run, Status, Table, Tracker
from tests.conftest import SMALL, TINY, data_overrides


@pytest.fixture
def files(folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return sorted((folders / "train").rglob("*.jpg"))[:6]


@pytest.mark.parametrize("name", ["loading", "readers", "store", "frames"])
def test_every_pass_goes_over_every_file(name: str, files: list[Path]) -> None:
    with ExitStack() as stack:
        passes = getattr(benchmark, name)(files, 32, stack)
        assert len(passes) >= 3
        for candidate in passes.values():
            assert candidate() % 6 == 0


def test_ratios_are_speeds_relative_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("research.benchmark.time.perf_counter", lambda: clock[0])

    def taking(seconds: float, samples: int) -> benchmark.Pass:
        def candidate() -> int:
            clock[0] += seconds
            return samples

        return candidate

    rows = benchmark.measure({"slow": taking(2, 10), "fast": taking(1, 100)}, rounds=3)
    assert [row["name"] for row in rows] == ["slow", "fast"]
    assert [row["ms"] for row in rows] == pytest.approx([200, 10])
    assert rows[0]["ratio"] == (1, 1, 1)
    assert rows[1]["ratio"] == pytest.approx((20, 20, 20))


def test_the_command(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["readers", *map(str, files), "rounds=1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "6 files, 1 rounds, one thread"
    assert [line.split("  ")[0] for line in printed[1:]] == [
        "pyjpegio", "pyjpegio (control)", "jpeglib",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give a NAME"),
        (["store"], "store: give IMAGES"),
        (["tracking", "x.jpg"], "x.jpg: tracking reads no IMAGES"),
        (["stores", "x.jpg"], "did you mean"),
        (["store", "x", "round=3"], "round"),
    ],
)
def test_mistakes(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        benchmark.main(words)


# -- tracking ----------------------------------------------------------------------------------


def test_every_candidate_trains_the_same_steps_and_one_of_them_is_tracked(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []

    class Spy(Tracker):
        def start(self, run: Run) -> None:
            assert (run.folder / "batch_metrics.csv").parent.is_dir()
            told.append("start")

        def log(self, table: Table, step: int, row: Row) -> None:
            told.append(f"{table} {step}")

        def progress(self, state: Progress) -> None:
            told.append("progress")

        def flush(self) -> None:
            told.append("flush")

        def finish(self, status: Status) -> None:
            told.append(status)

    def spies(config: build.Config) -> list[Tracker]:
        assert config["logging"]["mlflow"]["system_metrics"] is True
        return [Spy()]

    monkeypatch.setattr(build, "trackers", spies)
    costs = benchmark.tracking([*SMALL, *TINY, *data_overrides(folders)], steps=2, rounds=1)
    one_run = ["start", "batch 1", "batch 2", "progress", "epoch 1", "flush", "FINISHED"]
    assert told == 2 * one_run  # the first is not counted
    assert {name: len(found) for name, found in costs.items()} == {
        "off": 1,
        "off (control)": 1,
        "on": 1,
    }
    (on,) = costs["on"]
    assert 0 < on.inside_wall < on.wall
    assert 0 < on.inside <= on.processor
    assert costs["off"][0].inside_wall < on.inside_wall


def test_the_cost_of_tracking_is_told_in_ratios_and_as_a_share() -> None:
    off = [Cost(0.1, 0.08, 0, 0, 0), Cost(0.2, 0.08, 0, 0, 0), Cost(0.1, 0.08, 0, 0, 0)]
    on = [
        Cost(0.11, 0.088, 0.002, 0.001, 0.0006),
        Cost(0.202, 0.084, 0.002, 0.001, 0.0006),
        Cost(0.102, 0.08, 0.002, 0.001, 0.0006),
    ]
    _, first, second, said = benchmark.report({"off": off, "on": on})
    assert first.split() == [
        *("off", "100.00", "1.0000", "(1.0000-1.0000)", "80.00", "1.0000", "(1.0000-1.0000)"),
    ]  # fmt: skip
    assert second.split() == [
        *("on", "110.00", "1.0200", "(1.0100-1.1000)", "84.00", "1.0500", "(1.0000-1.1000)"),
    ]  # fmt: skip
    assert "in the trackers 2.000 ms, 1.000 ms of it of processor" in said
    assert "in their threads 0.600 ms of processor, together 2.00% of" in said
