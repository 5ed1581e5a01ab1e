"""Order, warm-up and ratios of ``measure``, on a clock of the test's own."""

from __future__ import annotations

from collections import Counter

import pytest

from research.benchmarks import measure


def candidates(calls: list[str], **seconds: float) -> dict[str, measure.Candidate]:
    """Candidates that record their calls and return constant seconds."""

    def of(name: str) -> measure.Candidate:
        def candidate() -> float:
            calls.append(name)
            return seconds[name]

        return candidate

    return {name: of(name) for name in seconds}


def test_every_round_has_every_candidate_once_in_another_order() -> None:
    calls: list[str] = []
    result = measure.measure(candidates(calls, a=1, b=2, c=3), 40, unit="step")
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 41  # one for warm-up
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    orders = Counter(rounds)
    assert len(orders) == 6
    assert max(orders.values()) < 20
    assert [len(row.seconds) for row in result.rows] == [40, 40, 40]
    again: list[str] = []
    measure.measure(candidates(again, a=1, b=2, c=3), 40, unit="step")
    assert again == calls  # the order is a function of the seed
    other: list[str] = []
    measure.measure(candidates(other, a=1, b=2, c=3), 40, unit="step", seed=1)
    assert other != calls


def test_the_warm_up_is_not_counted() -> None:
    times = iter([100.0, 1.0, 2.0, 6.0])
    result = measure.measure({"only": lambda: next(times)}, 3, unit="step")
    assert result.rows[0].seconds == [1, 2, 6]
    assert result.rows[0].median == 2


def test_speeds_are_relative_to_the_reference_in_the_same_round() -> None:
    result = measure.compared({"first": [1, 2, 8], "second": [2, 2, 2]}, unit="sample", name="x")
    first, second = result.rows
    assert first.speeds == [1, 1, 1]
    assert second.speeds == [0.5, 1, 4]
    assert second.speed == measure.Spread(1, 0.5, 4)
    assert second.median == 2
    assert (result.name, result.unit) == ("x", "sample")


def test_seconds_per_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("research.benchmarks.measure.time.perf_counter", lambda: clock[0])

    def work() -> int:
        clock[0] += 5
        return 10

    assert measure.per_unit(work)() == 0.5


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = measure.compared({"[a]": [0.002, 0.004], "b": [0.001, 0.001]}, unit="step", name="x")
    result.row("b").columns["GFLOP"] = 7.3261
    result.notes.append("a note")
    measure.print_tables("loop", [result])
    printed = [each for each in capsys.readouterr().out.splitlines() if each.strip()]
    head, line, first, second, note = printed
    assert line == "| --- | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (head, first, second)]
    assert cells == [
        ["loop: x, n = 2", "ms / step", "speed (lowest-highest)", "GFLOP"],
        ["[a]", "3", "1 (1-1)", ""],
        ["b", "1", "3 (2-4)", "7.326"],
    ]
    assert note == "a note"
