"""The tables of docs/migrating.md, and the words that stand in their right columns."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "migrating.md"
SETTING = re.compile(r"'?[a-z][\w.]*=")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        guide: from 1 to 5.
        before: what the guide has.
        now: what is said of it.
    """

    guide: int
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.guide}-{self.before[:60]}"

    @cached_property
    def spans(self) -> list[str]:
        """What is set as code, in order."""
        return re.findall(r"`([^`]+)`", self.now)

    @cached_property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)#]+)", self.now)

    @cached_property
    def commands(self) -> list[str]:
        return [span for span in self.spans if is_command(span)]

    @cached_property
    def settings(self) -> list[list[str]]:
        """The words of each span of settings."""
        return [shlex.split(s) for s in self.spans if SETTING.match(s) and not is_command(s)]

    @cached_property
    def names(self) -> list[str]:
        """The other spans: files, columns, keys, values and names of Python."""
        others = {*self.commands}
        return [s for s in self.spans if s not in others and not SETTING.match(s)]

    def key_before(self, name: str) -> str:
        """The key of the last setting before a name, of which that may be another value."""
        spans = self.spans[: self.spans.index(name)]
        keys = [shlex.split(s)[-1].partition("=")[0] for s in spans if SETTING.match(s)]
        return keys[-1] if keys else ""


def is_command(span: str) -> bool:
    return span.startswith(("python ", "torchrun ", "mlflow ", "tensorboard "))


def rows() -> list[Row]:
    """Every row of the page."""
    found, guide, heading = [], 0, True
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"## (\d)\. ", line):
            guide = int(match[1])
        if not line.startswith("|"):
            heading = True
            continue
        before, now = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if not heading and set(now) != {"-", " "} and now != "---":
            found.append(Row(guide, before, now))
        heading = False
    return found
