"""The site: built strictly and without a network, every link and picture of it, its search."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import Page, needs_browser
from tests.conftest import ROOT
from tests.docs.pages import DOCS, pages

CONFIG = "zensical.toml"
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements that load what they name."""


class Html(HTMLParser):
    """A page of the site.

    Attributes:
        ids: of its elements.
        links: where its links lead.
        loaded: what it loads.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADS and LOADS[tag] in values and values.get("rel") not in ("canonical", "next"):
            self.loaded.append(values[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a copy, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns(".site", ".cache"))
    (folder / "research").symlink_to(ROOT / "research")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", f"docs/{CONFIG}"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    printed = built.stdout + built.stderr
    assert built.returncode == 0, printed
    # What the API reference cannot find is logged, and ends no strict build.
    assert not re.search(r"error|warning|traceback", printed, re.IGNORECASE), printed
    return folder / "docs" / ".site"


def html(site: Path) -> dict[Path, Html]:
    return {path: Html(path) for path in site.rglob("*.html")}


def test_every_link_and_every_picture_is_there(site: Path) -> None:
    found = html(site)
    for path, page in found.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":  # whose links are absolute
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in found and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in found[target].ids, f"{path.name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path, page in html(site).items():
        assert [link for link in page.loaded if urlsplit(link).netloc] == [], path
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()) == [], sheet


def names(entries: list[object]) -> Iterator[str]:
    """The pages of the navigation."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for below in entry.values():
                yield from names(below if isinstance(below, list) else [below])


def test_the_navigation_has_every_page_once(site: Path) -> None:
    project = tomllib.loads((DOCS / CONFIG).read_text())["project"]
    listed = sorted(names(project["nav"]))
    below = (page.path for page in pages() if page.path.is_relative_to(DOCS))
    assert listed == sorted(str(path.relative_to(DOCS)) for path in below)
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert built == {"404.html", *(name.replace(".md", ".html") for name in listed)}
    assert not [*site.rglob("*.py"), *site.rglob("*.yaml"), *site.rglob("*.toml")]


def test_the_reference_has_every_function(site: Path) -> None:
    import research

    page = Html(site / "api.html")
    functions = set(research.__all__) - {"UserError", "__version__"}
    assert {f"research.{name}" for name in functions} <= page.ids
    text = (site / "api.html").read_text()
    assert "Evaluate a trained run on a split" in text  # the function, not the module of this name
    assert "EvaluateOptions" not in text
    assert text.count("Raises:") > len(functions)


def test_the_search_knows_the_pages(site: Path) -> None:
    index = json.loads((site / "search.json").read_text())
    assert any("warehouse" in json.dumps(item).lower() for item in index["items"])


@needs_browser
@pytest.mark.whole
def test_the_search_works_from_files(site: Path) -> None:
    with Page((site / "tutorials" / "1_compressed.html").as_uri()) as page:
        page.wait("document.querySelector('.md-search__button') !== null")
        page.evaluate("document.querySelector('.md-search__button').click()")
        for letter in "warehouse":
            page.command("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            page.command("Input.dispatchKeyEvent", type="keyUp", key=letter)
        page.wait("document.body.innerHTML.includes('warehouse.html')")
        assert page.problems == []
