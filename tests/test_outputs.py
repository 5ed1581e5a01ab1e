"""Standard output has results and nothing else: a table of all commands, and the rule behind it.

That what commands advise works, and that no log is among their results, is tested as they are run,
in ``test_every_command.py``.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from research.lab import verbs
from research.utils import logs
from tests.conftest import ROOT

ENDS = {
    "benchmark": "its figures answer a question of this project",
    "reproduce": "its result is the commands",
    "study": "it does all that is left to do",
}
"""Commands that advise none, and why."""
ADVICE = {"train": "research/engine/overview.py"}
"""Where a command's advice is, if it is not in its own module."""
WORDS = re.compile(r"^\s*(next|files|check): ")


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls in a module by the name that is called, such as ``outputs.print_next``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("verb", verbs())
def test_a_command_says_what_comes_next_or_it_is_the_end(verb: str) -> None:
    path = ROOT / ADVICE[verb] if verb in ADVICE else verbs()[verb]
    advises = any(
        name == "outputs.print_next"
        or (name == "outputs.print_files" and any(k.arg == "following" for k in call.keywords))
        or (name == "log.info" and ast.unparse(call.args[0]).strip("'\"").startswith("next:"))
        for name, call in calls(path)
    )
    assert advises == (verb not in ENDS)


def test_advice_and_places_are_printed_in_one_module() -> None:
    """On standard error, where no command can put them among its results."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "research").rglob("*.py")
        for name, call in calls(path)
        if name == "print"
        and any(
            isinstance(text, ast.Constant) and WORDS.match(str(text.value))
            for argument in call.args
            for text in ast.walk(argument)
        )
    }
    assert found == {"research/config/outputs.py"}
    for name, call in calls(ROOT / "research/config/outputs.py"):
        if name == "print":
            assert [ast.unparse(k.value) for k in call.keywords if k.arg == "file"] == [
                "sys.stderr"
            ]


def test_logs_are_on_standard_error_and_results_on_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No command chooses a stream: ``to_terminal`` takes none."""
    logs.to_terminal()
    log = logging.getLogger("research.test")
    log.info("read")
    log.warning("left out")
    logs.log_table(log, "before", [("data", ["3 classes"]), ("nothing", [])])
    logs.log_table(log, "after", [("val", ["top1 0.5", "(n=2)"])], is_result=True)
    log.info("verdict", extra=logs.RESULT)
    printed, logged = capsys.readouterr()
    assert printed == "after\n  val  top1 0.5  (n=2)\nverdict\n"
    assert logged == "read\nleft out\nbefore\n  data     3 classes\n"
