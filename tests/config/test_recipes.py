"""The commands in the comments of recipes and presets run as they stand there."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from research.config import check_jobs, register
from research.config.options import options
from research.utils.installation import CONF

FILES = [(group, name) for group in ("experiment", "sweep") for name in options(group)]
COMMAND = re.compile(r"^(?:[Tt]hen )?(python .*?[^\\])$", re.MULTILINE | re.DOTALL)
KEY = r"[a-z_]+(?:\.[a-z_]+)*="
SETTINGS = rf"(?:'{KEY}[^']+'|{KEY}(?:\[[^\]]*\]|[^\s,;:()]*[^\s,;:().]))"
ADVICE = re.compile(rf"{SETTINGS}(?:\s{SETTINGS})*")


def comment(group: str, name: str) -> str:
    lines = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line[2:] for line in lines if line.startswith("# ") and line[2] != "@")


def commands(group: str, name: str) -> list[list[str]]:
    """The words of each command, of which the first is the one that trains."""
    found = COMMAND.findall(comment(group, name))
    return [shlex.split(text.replace("\\\n", " ")) for text in found]


def advised(group: str, name: str) -> Iterator[list[str]]:
    """Words that a comment says may be added."""
    rest = COMMAND.sub("", comment(group, name)).replace("\n", " ")
    for text in ADVICE.findall(rest):
        yield shlex.split(text)


def check(words: list[str]) -> None:
    """Check what would be trained, as ``train.py`` does before it starts."""
    assert words[:2] == ["python", "train.py"]
    settings = [word for word in words[2:] if word != "-m"]
    check_jobs(settings, multirun="-m" in words)


def some(marked: list[Any], every: int) -> list[Any]:
    """One in ``every`` in the default selection, the others ``whole``."""
    return [
        pytest.param(*each, marks=[] if at % every == 0 else pytest.mark.whole, id="-".join(each))
        for at, each in enumerate(marked)
    ]


@pytest.fixture(autouse=True)
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of weights has to be there when a run is checked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MIT_B1.pth").touch()


@pytest.mark.parametrize(("group", "name"), some(FILES, 9))
def test_a_recipe_runs_as_its_comment_says(group: str, name: str) -> None:
    register()
    first, *others = commands(group, name)
    assert f"{group}={name}" in first
    assert ("-m" in first) == (group == "sweep" or name.endswith("_folds"))
    check(first)
    for words in others:
        if words[1] == "train.py":
            check(words)
        else:
            assert importlib.import_module(words[2]).USAGE.startswith(" ".join(words[:3]))


@pytest.mark.whole
@pytest.mark.parametrize(("group", "name"), FILES)
def test_what_a_recipe_advises_may_be_added(group: str, name: str) -> None:
    register()
    first, *_ = commands(group, name)
    for more in advised(group, name):
        keys = {word.partition("=")[0] for word in more}
        check([*(word for word in first if word.partition("=")[0] not in keys), *more])


def test_the_comments_have_commands_and_advice() -> None:
    assert all(commands(*each) for each in FILES)
    assert ["model=densenet169"] in [*advised("experiment", "cifar10_densenet121")]
    assert len(next(advised("experiment", "cifar10_densenet_bc_40_12_cpu"))) == 6
    assert sum(len([*advised(*each)]) for each in FILES) > 15
