"""Bars on a terminal: below all other output, in lines that fit, and gone at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO

import pytest

from research.utils import bars, terminal
from research.utils.bars import CLEAR, UP, Above, Bars
from research.utils.progress import Phase
from tests.conftest import ROOT


class Terminal(StringIO):
    """A terminal of 80 columns, as what is written to it."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    def taken(self) -> str:
        """What was written since the last call."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture(autouse=True)
def _uncoloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")


def test_bars_are_below_what_is_written(clock: list[float]) -> None:
    screen = Terminal()
    own = Bars(screen)
    out = Above(screen, own)
    outer, inner = Phase("evaluating", 2, "runs"), Phase("val", 10, "batches")
    own.tick(clock[0] + 0.9)
    assert screen.taken() == ""  # short work shows nothing
    clock[0] += 2
    inner.update(5)
    own.tick(clock[0])
    first, second = screen.taken().removeprefix(CLEAR).split("\n")
    assert re.fullmatch(r"evaluating  ╌+    0%  0/2 runs  0:02", first)
    assert re.fullmatch(r"val  ━+╌+   50%   5/10 batches  2.5 batches/s  0:02 left", second)
    own.tick(clock[0])
    assert screen.taken() == ""  # nothing has changed
    print("a warning", file=out)
    assert screen.taken() == f"{UP}{CLEAR}a warning\n"
    own.tick(clock[0] + 0.9)
    assert screen.taken() == ""  # it stays a second
    own.tick(clock[0] + 1.1)
    assert screen.taken().startswith(f"{CLEAR}evaluating")
    out.write("a question? ")  # its line is not ended
    assert screen.taken() == f"{UP}{CLEAR}a question? "
    own.tick(clock[0] + 9)
    assert screen.taken() == ""
    out.writelines(["yes", "\n"])
    inner.close()
    outer.close()
    screen.taken()
    own.tick(clock[0] + 75)
    assert screen.taken() == f"{CLEAR}{bars.WORKING}  1:15"  # imports, drawing pictures
    own.end()
    own.tick(clock[0] + 99)
    out.write("the end\n")
    assert screen.taken() == f"{CLEAR}the end\n"


def test_a_terminal_without_unicode(clock: list[float]) -> None:
    screen = Terminal()
    screen.encoding = "ascii"
    own = Bars(screen)
    with Phase("work", 4) as phase:
        clock[0] += 2
        phase.update(2)
        own.tick(clock[0])
    assert re.search("work  =+-+   50%", screen.taken())


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"NO_COLOR": ""}, True),  # no-color.org: if it is present and not empty
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "", "TERM": "dumb"}, False),
    ],
)
def test_colours_are_left_out_where_they_are_not_wanted(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = terminal.styled("text", terminal.BOLD, Terminal())
    assert shown == (f"{terminal.BOLD}text{terminal.RESET}" if coloured else "text")
    assert terminal.styled("text", terminal.BOLD, StringIO()) == "text"  # a file


SCRIPT = """
import logging, os, sys, time, warnings
from research.utils import bars, logs, progress
bars.QUIET, bars.INTERVAL, progress.SECONDS_BETWEEN_LINES = 0.0, 0.02, 0.0
bars.show()
logs.to_terminal()
log = logging.getLogger("research.test")
with progress.Phase("train 1", 5, "batches") as phase:
    for done in range(1, 6):
        phase.update(done, 123.4, {"loss": 0.25})
        time.sleep(0.1)
    if (child := os.fork()) == 0:  # as a worker of a loader
        os._exit(bars.are_shown())
    print("child:", os.waitpid(child, 0)[1], flush=True)
    time.sleep(0.1)
    parts = [f"metric_{number} {number / 7:.4g}" for number in range(9)]
    log.info("%s", "  ".join(parts), extra={"parts": parts})
    time.sleep(0.1)
    print("result", flush=True)
time.sleep(0.1)
print("end:", bars.are_shown(), flush=True)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": "1"}


def test_elsewhere_than_on_a_terminal_nothing_is_drawn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "child: 0\nresult\nend: False\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "train 1   20%  1/5 batches  123 samples/s  0:00 left  loss 0.25"
    assert len(lines) == 6  # in a log, the metrics are in one line
    assert "\x1b" not in done.stderr


def test_bars_on_a_terminal_of_60_columns() -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment(), stdout=slave, stderr=slave
    )
    os.close(slave)
    chunks = []
    try:
        while chunk := _read(master):
            chunks.append(chunk)
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(master)
    text = b"".join(chunks).decode().replace("\r\n", "\n")
    bar = r"train 1  ━*╌*  [ \d]+%  [2345]/5  123/s  0:0\d left  loss 0\.25"
    assert re.search(bar, text), text
    # Lines about progress are for logs.
    assert "samples/s" not in text
    # Everything else is on lines of its own; metrics are not broken, and no line is too long.
    kept = [part.rpartition("\n")[0] for part in text.split(CLEAR)]
    lines = "\n".join(part for part in kept if part).split("\n")
    assert lines[0] == "child: 0"
    assert lines[-2:] == ["result", "end: True"]
    assert " ".join(lines[1:-2]).split() == [
        word for number in range(9) for word in (f"metric_{number}", f"{number / 7:.4g}")
    ]
    assert all(line.startswith("    metric") for line in lines[2:-2])
    assert max(map(len, lines)) <= 60
    assert text.rpartition(CLEAR)[2].endswith("end: True\n") or text.endswith(CLEAR)


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux: the other end is closed
        return b""
