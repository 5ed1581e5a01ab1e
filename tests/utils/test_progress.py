"""Progress of long work: phases, lines in a log, and lines that fit to a terminal."""

from __future__ import annotations

import logging
import re

import pytest

from research.utils import pace, progress
from research.utils.progress import Phase, line, track, track_batches


def test_a_log_gets_a_line_every_30_seconds(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    caplog.set_level(logging.INFO, "research")
    # 80 batches, one in 2 seconds: a line when 30 more seconds have passed.
    with Phase("train 1", 80, "batches") as phase:
        for done in range(1, 81):
            clock[0] += 2
            phase.update(done, 16.04, {"loss": 0.5})
    lines = [text.split("  ") for text in caplog.messages]
    assert [parts[2] for parts in lines] == [f"{n}/80 batches" for n in (15, 30, 45, 60, 75)]
    # 15 batches took 30 s, so that the 65 others take 130 s.
    assert lines[0][:2] == ["train 1", " 18%"]
    assert lines[0][3:] == ["16.0 samples/s", "2:10 left", "loss 0.5"]
    assert all(record.is_progress for record in caplog.records)  # type: ignore[attr-defined]
    caplog.clear()
    with Phase("val", 80, "batches") as phase:  # another phase has its own clock
        clock[0] += 29
        phase.update(1)
        assert not caplog.messages
        clock[0] += 2
        with Phase("fold", 4, "samples") as inner:
            clock[0] += 31
            inner.update(2)
    (text,) = caplog.messages
    assert text == "val  1/80: fold   50%  2/4 samples  0:15 each  0:31 left"


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    caplog.set_level(logging.INFO, "research")
    seen = []
    for item in track("abc", "short"):
        clock[0] += 9
        seen.append((item, [phase.done for phase in progress.open_phases()]))
    assert seen == [("a", [0]), ("b", [1]), ("c", [2])]
    assert not caplog.messages


def test_phases_are_nested_and_closed_by_an_exception() -> None:
    def names() -> list[str]:
        return [phase.name for phase in progress.open_phases()]

    def work() -> None:
        with Phase("outer", 2):
            for _ in track([1, 2], "inner"):
                assert names() == ["outer", "inner"]
                raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    assert names() == []
    # The outer one may end first: a generator that is still read is not affected.
    outer, inner = track("ab", "first"), track("ab", "second")
    next(outer), next(inner)
    assert list(outer) == ["b"]
    assert names() == ["second"]
    inner.close()  # type: ignore[attr-defined]


def test_the_rate_of_batches_is_that_of_their_samples(clock: list[float]) -> None:
    found = []
    for _ in track_batches(["aaa", "aaa", "a"], "val", 3):
        found += [(phase.done, phase.rate) for phase in progress.open_phases()]
        clock[0] += 0.5
    assert found == [(0, None), (1, 6.0), (2, 6.0)]


def test_running_metrics_are_computed_now_and_then(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    computed: list[float] = []

    def metrics() -> dict[str, float]:
        computed.append(clock[0])
        clock[0] += 0.1
        return {"top1": len(computed) / 10}

    shown = set()
    for _ in track_batches(["aa"] * 400, "val", 400, metrics):
        (phase,) = progress.open_phases()
        shown.add(phase.metrics.get("top1"))
        clock[0] += 0.1
    assert computed[0] >= 100 + progress.SECONDS_BEFORE_METRICS
    assert 3 <= len(computed) <= 1 + progress.FRACTION * (clock[0] - 100) / 0.1
    assert shown == {None, *(n / 10 for n in range(1, 1 + len(computed)))}


METRICS = {"loss": 12.345678, "best val/pair_accuracy": 0.87654}
LONGEST = {
    "train 1000": (5004, 4999, "batches", 12345.6, METRICS),
    "evaluating test": (20, 9, "runs", None, {}),
    "noisy all but RGB": (126, 100, "batches", 15.94, {}),
    "reading headers in photographs_2026": (1_281_167, 1_281_001, "files", None, {}),
    "measuring statistics": (4096, 4000, "batches", 640.0, {}),
    "near-duplicates": (9, 5, "bands", None, {}),
    "predicting": (100_000, 99_999, "frames", None, {}),
    "range test": (1000, 999, "steps", None, {"loss": 0.00012345}),
    "rendering demo captures": (60, 59, "runs", None, {}),
}
"""By name of a phase: items, of which so many are done, unit, samples per second, metrics."""


@pytest.mark.parametrize("name", LONGEST)
@pytest.mark.parametrize("width", [59, 79, 139])
def test_a_line_fits_to_the_terminal_and_keeps_what_is_important(
    name: str, width: int, clock: list[float]
) -> None:
    total, done, unit, rate, metrics = LONGEST[name]
    with Phase(name, total, unit) as phase:
        clock[0] += 3000
        phase.update(done, rate, metrics)
        text = line(phase, clock[0], width)
    assert len(text) <= width
    shown = name if f"{name}  " in text else text.partition("…")[0]
    assert text.startswith(shown)
    assert len(shown) >= min(len(name), 20)
    rate_and_time = r" +([\d.e+]+( \w+)?/s|\S+ each) +[\d:]+:\d\d left"
    assert re.search(rf" [ \d]\d\d?% +{done}/{total}( {unit})?{rate_and_time}", text), text
    if metrics:
        assert text.count(f"{next(iter(metrics))} {next(iter(metrics.values())):.4g}") == 1
    if width == 139:
        assert "━" in text
        assert f"{done}/{total} {unit}  " in text
        assert all(f"{name} {value:.4g}" in text for name, value in metrics.items())


def test_the_bar_grows_with_the_work(clock: list[float]) -> None:
    with Phase("work", 10) as phase:
        for done in range(11):
            phase.done = done
            clock[0] += 1
            bar = re.search("[━╌]+", line(phase, clock[0], 60))
            assert bar is not None
            assert bar[0].count("━") == pytest.approx(done / 10 * len(bar[0]), abs=0.51)


def test_what_was_done_before_does_not_count_for_the_time_left(clock: list[float]) -> None:
    with Phase("train 2", 100, "batches", first=90) as phase:
        clock[0] += 10
        phase.update(95)
        assert "95/100 batches  0.5 batches/s  0:10 left" in line(phase, clock[0])


def test_work_without_a_known_end_shows_how_long_it_has_taken(clock: list[float]) -> None:
    with Phase("writing ONNX") as phase:
        assert line(phase, clock[0] + 75, 79) == "writing ONNX  1:15"
    with Phase("predicting", None, "frames") as phase:
        clock[0] += 5
        phase.update(20)
        assert line(phase, clock[0], 79) == "predicting  20 frames  4 frames/s  0:05"


def test_names_of_files_move_no_cursor() -> None:
    with Phase("listing a\x1b[2Jb\n") as phase:
        assert phase.name == "listing a [2Jb "


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (360_000, "4d 04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
