"""All web pages: one style and script, no network, contrast, keyboard, small screens, many runs."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.comparison import leaderboard
from research.comparison.leaderboard import LeaderboardEntry
from research.inference.player import Player
from research.inference.writers import Overlay
from research.viz.webpage import web_page
from tests.browser import Page, needs_browser
from tests.comparison.recorded import many_runs_page
from tests.conftest import ROOT

WEB = ROOT / "research/viz/web"
FILES = sorted(file for end in ("html", "css", "js") for file in ROOT.glob(f"research/**/*.{end}"))
OWN = [file for file in FILES if file.parent != WEB]
HOSTILE = "</script><img src=x onerror=alert(1)> __STYLE__ __DATA__"
MODES = ("light", "dark")
TEXT, GRAPHICS = 4.5, 3.0
"""Smallest contrasts of WCAG 2.2, level AA."""


def leaderboard_page(path: Path, count: int, name: str = "runs/trial") -> Path:
    """The page of made runs; the last one's metric is NaN."""
    drawn = np.random.default_rng(0)
    top1 = drawn.random(count)
    top1[-1] = np.nan
    order = np.argsort(-top1).tolist()
    entries = [
        LeaderboardEntry(
            f"{name}_{index:04d}", ("resnet34", "densenet121", HOSTILE)[index % 3],
            1_000_000 * (1 + index % 30), 4_000_000, float(1000 * (1 + index % 7)),
            {1: 0.001 * (1 + drawn.random()), 8: 0.004}, {"top1": value, "loss": 1.0},
            480, "images", {"speed": 1, "accuracy": 1 + order.index(index), "size": 1},
        )
        for index, value in enumerate(top1.tolist())
    ]  # fmt: skip
    settings = {"split": "val", "rounds": 20, "device": "cpu"}
    text = leaderboard.page(entries, "top1", "max", settings, "today", path.parent)
    path.write_text(text, encoding="utf-8")
    return path


# -- the files ----------------------------------------------------------------------------------


def test_there_is_one_style_and_one_script() -> None:
    assert len(OWN) >= 8
    shared = {name for file in WEB.glob("*.js") for name in _defined(file)}
    assert {"table", "scatter", "shortcuts"} <= shared
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 100, file
        assert text.count("\n") <= 400, file
        if file.parent == WEB:
            continue
        assert not re.search("<script|<style|style=|color-scheme|prefers-color", text), file
        if file.suffix == ".js":
            assert not shared & {*_defined(file)}, file


def _defined(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return re.findall(r"^(?:async )?(?:function|const|let) (\w+)", text, re.MULTILINE)


def _channel(value: int) -> float:
    part = value / 255
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def contrast(first: str, second: str) -> float:
    """Of two colours, #rgb or #rrggbb, by WCAG 2.2: 1…21."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        red, green, blue = (_channel(int(digits[at : at + 2], 16)) for at in (0, 2, 4))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_colours_can_be_read(mode: str) -> None:
    style = (WEB / "base.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--(\w+): (#\w+);", blocks[MODES.index(mode)]))
    assert len(colours) == 18
    for behind in ("page", "card"):
        for name in ("text", "soft", "link", "good", "bad"):
            assert contrast(colours[name], colours[behind]) >= TEXT, (name, behind)
        for name in ("edge", *(f"g{number}" for number in range(8))):
            assert contrast(colours[name], colours[behind]) >= GRAPHICS, (name, behind)


class Elements(html.parser.HTMLParser):
    """What a page loads, and the tags that it consists of."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        if tag in ("link", "iframe", "object") or {*values} & {"src", "href", "style"}:
            self.loads.append(tag)


PAGES: dict[str, Callable[[], str]] = {
    "comparison": lambda: (
        web_page(
            "research.comparison", "comparison", HOSTILE, [HOSTILE], ("curves.js", "comparison.js")
        ).text
    ),
    "leaderboard": lambda: (
        web_page("research.comparison", "leaderboard", HOSTILE, [HOSTILE], ("leaderboard.js",)).text
    ),
    "player": lambda: Player(HOSTILE, 0, 0.5).page.decode(),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_and_names_stay_text(name: str) -> None:
    text = PAGES[name]()
    # The name of the SVG namespace is no address.
    assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg|// .*|/\*.*\*/", "", text)
    elements = Elements()
    elements.feed(text)
    assert elements.loads == []
    assert elements.tags.count("script") == 2 == text.count("</script>")
    assert elements.tags.count("img") == (name == "player")
    for tag in ("title", "header", "h1", "main", "section", "dialog"):
        assert tag in elements.tags, tag
    assert "default-src 'none'; script-src 'sha256-" in text
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert HOSTILE in json.dumps(json.loads(data))


def test_the_leaderboard_has_its_runs_by_accuracy(tmp_path: Path) -> None:
    out = tmp_path / "a #b" / "out"
    out.mkdir(parents=True)
    text = leaderboard_page(out / "page.html", 6, str(tmp_path / "runs/é")).read_text("utf-8")
    [inner] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(inner)
    values = [run["metrics"]["top1"] for run in data["runs"]]
    assert values[-1] is None
    assert values[:-1] == sorted(values[:-1], reverse=True)
    assert {run["name"] for run in data["runs"]} == {f"é_000{number}" for number in range(6)}
    assert data["runs"][0]["href"].startswith("../../runs/%C3%A9_000")
    assert data["runs"][0]["milliseconds"]["8"] == pytest.approx(0.5)
    assert data["label"] == "val/top1 (n=480 images)"


# -- in a browser -------------------------------------------------------------------------------

LOW_CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function rgba(colour) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  }
  const part = (v) => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  function behind(element) {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  }
  const low = [];
  let measured = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    const text = walker.currentNode.textContent.trim();
    if (!text || !box.width || element.closest("script, style, #boxes, :disabled")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [rgba(element instanceof SVGElement ? style.fill : style.color), behind(element)]
      .map(light);
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    measured++;
    if (contrast < 4.5) low.push([text.slice(0, 40), contrast]);
  }
  return { measured, low };
})()
"""
FOCUS = """
(() => {
  const style = getComputedStyle(document.activeElement);
  return [document.activeElement.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
})()
"""


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Page]:
    """A page with content, ready."""
    if name == "player":
        boxes = ((0.25, 0.25, 0.5, 0.5), (0.0, 0.0, 0.25, 0.125))
        with Player(HOSTILE, 0, 0.3) as player:
            overlay = Overlay("a caption", boxes, (0.9, 0.5), ("0.90", "0.50"))
            player.show(HOSTILE, Image.new("RGB", (320, 240)), overlay, 2.0)
            player.finish()
            with Page(player.url) as page:
                page.wait("document.querySelector('#counter').textContent === '1 / 1'")
                yield page
        return
    makers = {
        "comparison": lambda: many_runs_page(folder / "page.html", 48),
        "leaderboard": lambda: leaderboard_page(folder / "page.html", 48),
    }
    with Page(makers[name]().as_uri()) as page:
        page.wait("document.querySelectorAll('.mark').length > 0")
        yield page


@needs_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_for_everybody(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path) as page:
        for mode in MODES:
            for width in (400, 1600):
                page.emulate(width, 900, mode)
                page.evaluate("new Promise((r) => requestAnimationFrame(() => setTimeout(r, 100)))")
                found = page.evaluate(LOW_CONTRAST)
                assert found["low"] == [], (mode, width)
                assert found["measured"] > 8
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        # Every stop of the tab key is seen; a chart is one stop.
        stops = 0
        page.press("Tab")
        while stops < 400:
            tag, line, thickness = page.evaluate(FOCUS)
            if tag == "BODY":
                break
            assert (line != "none", thickness >= 2) == (True, True), tag
            stops += 1
            page.press("Tab")
        assert 5 < stops < 150
        # The list of keys, by a key and away by another.
        page.press("?", "?")
        assert page.evaluate("document.querySelector('#keys').open")
        listed = page.evaluate("[...document.querySelectorAll('kbd')].map((k) => k.textContent)")
        assert {"?", "Escape", "Home", "End"} <= {*listed}
        page.press("Escape")
        page.wait("!document.querySelector('#keys').open")
        loaded = "performance.getEntriesByType('resource').map((entry) => entry.name)"
        own = page.evaluate("location.origin")
        assert [url for url in page.evaluate(loaded) if not url.startswith(own)] == []
        assert page.evaluate("document.images.length") == (name == "player")
        assert page.text("#problem") == ""
        assert page.problems == []


def seen(page: Page, column: int) -> list[str]:
    """The cells of a column of the runs that are in the document."""
    cells: list[str] = page.evaluate(
        "[...document.querySelectorAll('#runs tbody tr')]"
        f".map((row) => row.children[{column}].textContent)"
    )
    return cells


@needs_browser
@pytest.mark.whole
@pytest.mark.parametrize("name", ["comparison", "leaderboard"])
def test_a_thousand_runs(name: str, tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path, int], Path]] = {
        "comparison": many_runs_page, "leaderboard": leaderboard_page,
    }  # fmt: skip
    file = makers[name](tmp_path / "page.html", 1000)
    assert file.stat().st_size < {"comparison": 6_000_000, "leaderboard": 1_000_000}[name]
    with Page(file.as_uri()) as page:
        page.wait("document.querySelectorAll('.mark').length > 0")
        timing = "performance.getEntriesByType('navigation')[0].domComplete"
        assert page.evaluate(timing) < 15_000  # half a second on one free core
        assert page.evaluate("document.querySelectorAll('tr').length") < 200
        assert len(seen(page, 0)) == 50
        first = seen(page, 0)
        page.press("]", "]")
        assert not {*first} & {*seen(page, 0)}
        page.press("[", "[")
        assert seen(page, 0) == first
        page.evaluate("document.querySelector('#runs thead button').click()")
        assert seen(page, 0)[:2] == ["trial_0000", "trial_0001"]
        page.press("/", "/")
        for letter in "trial_077":
            page.press(letter, letter)
        assert seen(page, 0) == [f"trial_077{digit}" for digit in range(10)]
        assert "1–10 of 10, of 1,000 in all" in page.text("#runs")
        if name == "comparison":
            page.evaluate("document.querySelector('#all').click()")
            page.evaluate("document.querySelector('#singles').click()")
            assert page.evaluate("document.querySelectorAll('#curves .mean').length") == 250
        else:
            assert page.evaluate("document.querySelectorAll('#latency .mark').length") == 10
        assert page.text("#problem") == ""
        assert page.problems == []
