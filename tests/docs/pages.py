"""What the pages of the documentation say: links, anchors, pictures, code and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT

DOCS = ROOT / "docs"
SOURCES = ("studies", "records")
"""Folders of ``docs`` that the results page is made of; they hold no pages."""
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\w+=\S+ +)*(?:python (?:train\.py|-m research\.)|torchrun |srun |lab )")


@dataclass(frozen=True)
class Command:
    """A command of this project on a page.

    Attributes:
        verb: ``train``, or the name of a module of ``research``.
        words: what follows.
    """

    verb: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join([self.verb, *self.words])


@dataclass(frozen=True)
class Page:
    """A file of Markdown."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without blocks of code."""
        return FENCE.sub("", self.text)

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        text = re.sub(r"(`+)[^`].*?\1", "", self.prose, flags=re.DOTALL)
        return re.findall(r"\]\(([^)\s]+)\)", text)

    @cached_property
    def anchors(self) -> set[str]:
        """Of the headings. A heading that is repeated gets a number, in repositories another than
        on the site, so that only the first can be linked.
        """
        found = set()
        for heading in re.findall(r"^#+ +(.+)$", self.prose, re.MULTILINE):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            found.add(re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-"))
        return found

    def blocks(self, *languages: str) -> list[str]:
        """The blocks of code in these languages."""
        return [code for _, language, code in FENCE.findall(self.text) if language in languages]

    @cached_property
    def commands(self) -> list[Command]:
        """Of blocks for a shell and of spans of code, each once."""
        lines = [line for code in self.blocks("bash", "sh", "") for line in _lines(code)]
        spans = re.findall(r"`([^`]+)`", self.prose)
        lines += [" ".join(span.split()) for span in spans if COMMAND.match(span)]
        return list(dict.fromkeys(command for line in lines for command in _commands(line)))


def _lines(code: str) -> list[str]:
    return code.replace("\\\n", " ").splitlines()


def _commands(line: str) -> Iterator[Command]:
    """Of a line, without what only the shell or the launcher reads."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a line of output with an apostrophe
        return
    part: list[str] = []
    for word in [*words, ";"]:
        if word in ("&&", ";", "|", "&"):
            yield from _command(part)
            part = []
        else:
            part.append(word)


def _command(words: list[str]) -> Iterator[Command]:
    text = " ".join(words)
    if not COMMAND.match(text):
        return
    if "train.py" in words:
        yield Command("train", tuple(words[words.index("train.py") + 1 :]))
    elif words[0] == "lab":
        yield Command(words[1], tuple(words[2:]))
    else:
        named = next((word for word in words if re.fullmatch(r"research\.[a-z_]+", word)), None)
        if named is not None:
            after = words.index(named) + 1
            yield Command(named.removeprefix("research."), tuple(words[after:]))


def pages() -> list[Page]:
    """Every page of the repository: at its top, and below ``docs``."""
    below = {path: path.relative_to(DOCS).parts[0] for path in DOCS.rglob("*.md")}
    shown = [path for path, top in below.items() if top not in SOURCES and top[0] != "."]
    return [Page(path) for path in sorted([*ROOT.glob("*.md"), *shown])]
