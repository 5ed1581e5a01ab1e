"""That the candidates do the work that is timed; how fast they are is nothing for a test."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from research import benchmark
from research.benchmarks import processes
from research.utils.errors import UserError
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


def steps(folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The command line of a run of seconds."""
    monkeypatch.chdir(tmp_path)
    return [*SMALL, *TINY, *data_overrides(folders)]


def test_the_same_steps_without_the_seam(
    folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = steps(folders, monkeypatch, tmp_path)
    found = processes.seam(words, 2, 1)
    assert list(found) == ["without the seam", "without (control)", "with"]
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found.values())
    plain, usual = processes.WithoutSeam(words, 2), processes.Steps(words, 2)
    for each in (plain, usual):
        each.seconds()
    weights = [list(each.experiment.state.model.parameters()) for each in (plain, usual)]
    assert all(map(torch.equal, *weights))


@pytest.mark.whole
def test_processes_side_by_side(
    folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = processes.throughput(steps(folders, monkeypatch, tmp_path), 2, 2)
    assert list(found) == [
        "1 process", "1 process (control)", "2 processes, a run each", "2 processes, one run",
    ]  # fmt: skip
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.values())


def test_a_table_of_speeds() -> None:
    lines = processes.report({"1 process": [0.5, 0.25], "2 processes": [0.25, 0.25]})
    assert lines[1].split() == ["1", "process", "2.7", "1.0000", "(1.0000-1.0000)"]
    assert lines[2].split() == ["2", "processes", "4.0", "1.5000", "(1.0000-2.0000)"]


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
        ([], "pass a NAME"),
        (["store"], "store: pass IMAGES"),
        (["tracking", "x.jpg"], "x.jpg: tracking reads no IMAGES"),
        (["processes", "x.jpg"], "x.jpg: processes reads no IMAGES"),
        (["stores", "x.jpg"], "did you mean"),
        (["store", "x", "round=3"], "round"),
    ],
)
def test_mistakes(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        benchmark.main(words)
