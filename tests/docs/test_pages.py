"""Every link and every command of the documentation, and the size of the README."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from research.config import cli, options, register
from research.config.jobs import check_jobs
from research.utils.errors import UserError
from tests.conftest import ROOT, user_error, verb
from tests.docs.pages import DOCS, Command, Page, pages
from tests.guides.test_guides import known_keys

PAGES = pages()
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in page.commands))
VALUES = {"N": "2", "K": "2", "X": "0.01", "S": "2"}
"""What capitals stand for where a number is meant."""
SHAPES = ("VERB", "NAME", "KIND", "COMMAND")
"""Capitals in the place of a name that exists."""
OWN = {"--config-dir": ROOT / "tests/additions"}


# -- links ---------------------------------------------------------------------------------------


@cache
def anchors(path: Path) -> set[str]:
    return Page(path).anchors


def broken(page: Page) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme != "https" or "." not in parts.netloc:
                found.append(link)
            continue
        target = (page.path.parent / parts.path).resolve() if parts.path else page.path
        if not target.is_file() or (parts.fragment and parts.fragment not in anchors(target)):
            found.append(link)
        elif page.path.is_relative_to(DOCS) and not target.is_relative_to(DOCS):
            found.append(f"{link}, which is not on the site")
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Page) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.test_pages.DOCS", tmp_path)
    (tmp_path / "b.md").write_text("# A `name`, twice\n```\n# no heading [x](none.md)\n```\n")
    page = Page(tmp_path / "a.md")
    good = "[b](b.md#a-name-twice) `[no](link.md)` [web](https://example.org/x)"
    bad = "[a](none.md) [b](b.md#no-heading) [c](#gone) ![d](d.png) [e](http://example.org)"
    page.path.write_text(f"{good}\n{bad}\n")
    assert broken(page) == ["none.md", "b.md#no-heading", "#gone", "d.png", "http://example.org"]


# -- commands ------------------------------------------------------------------------------------


class Parsed(Exception):
    """A command has read its words."""


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the words of a command as it does itself, without running it."""
    words = [re.sub(r"=([NKXS])$", lambda m: f"={VALUES[m[1]]}", word) for word in command.words]
    words = [word for word in words if not re.search(r"…|^\[|\]$|<", word) or "=[" in word]
    if command.verb in SHAPES or "--help" in words:
        return
    if command.verb == "train":
        check_training(words)
        return
    module = verb(command.verb)
    original = cli.parse

    def parse(*args: Any, **others: Any) -> None:
        _, _, rest = original(*args, **others)
        unknown = [word for word in rest if word.partition("=")[0].lstrip("+~") not in known()]
        assert unknown == []
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(cli, "parse", parse)
        with pytest.raises(Parsed):
            module.main(words)


@cache
def known() -> set[str]:
    return known_keys()


def check_training(words: list[str]) -> None:
    own = None
    if "--config-dir" in words:
        place = words.index("--config-dir")
        own = OWN["--config-dir"]
        words = [*words[:place], *words[place + 2 :]]
    multirun = "-m" in words
    words = [word for word in words if word not in ("-m", "--multirun")]
    if any(word.startswith("resume=") and word != "resume=auto" for word in words):
        words = [word for word in words if not word.startswith("resume=")]
    check_jobs(words, multirun=multirun, own=own)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_accepted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)
