"""Standard output has results and nothing else: a table of all commands, and the rule behind it.

That what commands advise works, and that no log is among their results, is tested as they are run,
in ``test_every_command.py``.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from research.config import outputs
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


def test_verbs_that_build_what_a_run_names_get_its_trust() -> None:
    """``outputs.TRUSTING`` against the options of every command."""
    found = {
        name
        for name in verbs()
        for module in [import_module("train" if name == "train" else f"research.{name}")]
        if "trust=" in getattr(module, "USAGE", "")
    }
    assert found == {*outputs.TRUSTING}


@pytest.mark.parametrize("place", ["runs/one", "elsewhere/one"])
def test_a_command_on_a_run_has_the_trust_that_it_needs(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that may be someone else's, its user decides."""
    monkeypatch.chdir(tmp_path)
    run = Path(place)
    (run / "checkpoints").mkdir(parents=True)
    config = {
        "model": {"_target_": "mine.Net", "head": {"_target_": "mine.Head"}},
        "task": {"_target_": "research.tasks.classification.Classification"},
        "dataset": {"_target_": "os.system"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    trust = "'trust=[mine.Head,mine.Net]'" if place.startswith("runs") else ""
    file = run / "checkpoints" / "best.pt"
    file.touch()
    for path in (run, file):
        line = outputs.command_of("evaluate", path, "split=test")
        assert line == f"python -m research.evaluate {path} split=test {trust}".rstrip()
        assert outputs.resume_command(path) == f"python train.py resume={path} {trust}".rstrip()
    assert outputs.command_of("evaluate", run, "trust=[a.B]").count("trust") == 1
    assert "trust" not in outputs.command_of("compare", run)
    assert "trust" not in outputs.command_of("evaluate", Path("models:/net/1"))


def test_advice_to_resume_is_a_whole_command() -> None:
    """No message says ``… resume=RUN`` by itself: ``outputs.resume_command`` makes the command."""
    found = []
    for path in (ROOT / "research").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            texts = [part.value for part in parts[:-1] if isinstance(part, ast.Constant)]
            if any(str(text).endswith(" resume=") for text in texts):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
