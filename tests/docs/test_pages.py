"""Every link and every command of the documentation, and the size of the README."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from research.config import cli, register
from research.config.help import EXAMPLES
from research.config.jobs import check_jobs
from research.utils.installation import CONF
from tests.conftest import ROOT, verb
from tests.docs.pages import DOCS, Command, Page, pages
from tests.guides.test_guides import known_keys

PAGES = pages()
VALUES = {"N": "2", "K": "2", "X": "0.01", "V": "luma_fusion"}
"""What capitals stand for where not every text will do."""
FIRST = ("README.md", "docs/index.md", "docs/start.md", "docs/tutorials")
"""The pages that are read first: their commands are checked by default, others with ``whole``."""


JOBLIB = "hydra_plugins.hydra_joblib_launcher"
"""The one extra package of the commands that development does not install."""


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
    words = [
        re.sub(r"(?<==)[NKXV]$", lambda match: VALUES[match[0]], word)
        for word in command.words
        if not re.search(r"…|^\[|[^\]]\]$|<", word) or "=[" in word
    ]
    if command.verb == "train":
        if "--config-dir" not in words:  # options of the reader's own: test_own_code.py
            check_training(words)
        return
    if command.verb.isupper():  # any of them
        return
    module = verb(command.verb)
    if not words or "--help" in words:
        return
    original = cli.parse

    def parse(options: Any, words: list[str], others: str | None = None) -> None:
        _, _, rest = original(options, words, others)
        unknown = {word.partition("=")[0] for word in rest} - known()
        assert others or not {key for key in unknown if not key.startswith("hydra/")}
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(cli, "parse", parse)
        with pytest.raises(Parsed):
            module.main(words)


@cache
def known() -> set[str]:
    return known_keys()


def check_training(words: list[str]) -> None:
    """Compose and check its jobs; of ``resume=RUN``, what is typed beside it."""
    if "--help" in words:
        return
    words = words[: words.index("--cfg")] if "--cfg" in words else words
    settings = [word for word in words if word != "-m" and not word.startswith("resume=r")]
    settings = [word for word in settings if word != "resume=RUN"]
    if "dataset=imagenet" in settings and not any("train_dirs" in word for word in settings):
        settings.append("dataset.train_dirs=[DIR]")  # of a command that is written with …
    if find_spec(JOBLIB) is None:
        own = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=")
        settings = [word for word in settings if not word.startswith(own)]
    register()
    check_jobs(settings, multirun="-m" in words)


def refused(commands: Iterable[Command], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The commands that are not accepted, and why."""
    found = {}
    for command in commands:
        try:
            check(command, monkeypatch)
        except (Exception, SystemExit) as error:
            found[str(command)] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A working directory with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    for name in ("FILE", "mit_b1.pth", "RUN"):
        (tmp_path / name).touch()
    return monkeypatch


def commands(*, first: bool) -> list[Command]:
    chosen = (page for page in PAGES if str(page).startswith(FIRST) == first)
    return list(dict.fromkeys(command for page in chosen for command in page.commands))


def test_every_command_of_the_first_pages_is_accepted(project: pytest.MonkeyPatch) -> None:
    assert refused(commands(first=True), project) == {}
    assert len(commands(first=True)) > 50


@pytest.mark.whole
def test_every_other_command_is_accepted(project: pytest.MonkeyPatch) -> None:
    assert refused(commands(first=False), project) == {}
    assert len(commands(first=False)) > 100


def test_no_command_has_one_folder_for_two_splits() -> None:
    texts = [page.text for page in PAGES]
    texts += [path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")]
    texts.append(EXAMPLES)
    splits = re.compile(r"train_dirs=\[([^\]]*)\]['\s\\]+dataset\.val_dir=([^\s`]+)")
    found = [match for text in texts for match in splits.findall(text)]
    assert len(found) > 15
    assert [both for both in found if both[1] in both[0].split(",")] == []


@pytest.mark.parametrize(
    "line",
    [
        "python train.py model=resnet43",
        "python train.py model=resnet34 \\\n    epoch=3",
        "python train.py seed=0,1",
        "python -m research.evaluate RUN splt=test",
        "python -m research.evaluate RUN dataset.nothing=2",
        "python -m research.prepare frame SOURCE STORE",
        "pip install -e . && lab nothing RUN",
    ],
)
def test_a_wrong_command_is_found(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(tmp_path / "a.md")
    page.path.write_text(f"```bash\n{line}    # why\n```\n")
    assert len(refused(page.commands, monkeypatch)) == 1


# -- the first screens ---------------------------------------------------------------------------


def test_the_readme_is_two_screens_with_a_picture_on_the_first() -> None:
    lines = Page(ROOT / "README.md").text.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 130
    pictures = [number for number, line in enumerate(lines) if line.startswith("![")]
    assert len(pictures) == 1
    assert pictures[0] < 25


def test_the_pictures_of_the_gallery_are_small_and_shown() -> None:
    files = {path.name: path for path in (DOCS / "gallery").iterdir()}
    shown = [Path(link).name for link in Page(DOCS / "gallery.md").links if "gallery/" in link]
    assert sorted(shown) == sorted(files)
    sizes = [path.stat().st_size for path in files.values()]
    assert max(sizes) < 150_000
    assert sum(sizes) < 1_500_000
    for path in files.values():
        with Image.open(path) as image:
            assert max(image.size) <= 1600
            assert image.width >= 300
