"""That the candidates do the work that is timed; how fast they are is nothing for a test."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from research import benchmark
from research.utils.errors import UserError


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
        ([], "pass a NAME"),
        (["store"], "store: pass IMAGES"),
        (["tracking", "x.jpg"], "x.jpg: tracking reads no IMAGES"),
        (["stores", "x.jpg"], "did you mean"),
        (["store", "x", "round=3"], "round"),
    ],
)
def test_mistakes(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        benchmark.main(words)
