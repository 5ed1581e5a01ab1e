"""The page of a comparison: its data, safe against hostile names, working in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from research.comparison.collect import find_runs, select
from research.comparison.page import page
from research.comparison.verdicts import compare
from tests.browser import Page, needs_browser
from tests.comparison.recorded import config, record, study

HOSTILE = "</script><img src=x onerror=alert(1)>"


def written(root: Path, out: Path) -> Path:
    """The page of all runs below ``root``."""
    runs, skipped = select(find_runs([root]), "", ["FINISHED"])
    result = compare(runs, "val/top1", "max", [], "", 0.95, skipped)
    path = out / "comparison.html"
    out.mkdir(exist_ok=True)
    path.write_text(
        page(result, HOSTILE, "today", ["a warning"], ["a note"], out), encoding="utf-8"
    )
    return path


def content(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    [inner] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    result: dict[str, Any] = json.loads(inner)
    return result


def test_data_of_the_page(tmp_path: Path) -> None:
    study(tmp_path / "a")
    record(tmp_path / "a" / "pruned", config(), [0.1], status="PRUNED")
    data = content(written(tmp_path / "a", tmp_path / "out"))
    assert data["title"] == HOSTILE
    first, second = data["groups"]
    assert (first["label"], second["label"]) == ("resnet34", "densenet121")
    assert first["difference"] is None
    assert second["verdict"]["significant"] is False
    assert second["p"] == f"{second['verdict']['p']:.3f}"
    assert second["verdictText"].startswith("not distinguishable: needs about ")
    assert data["left_out"] == "1 PRUNED"
    assert data["metrics"][0] == "val/top1"
    assert "timestamp" not in data["metrics"]
    assert not {"train/n", "val/n"} & {*data["metrics"]}
    assert data["labels"]["val/top1"] == "val/top1 (n=480 images)"
    assert data["labels"]["train/loss"] == "train/loss (n=2040 images)"
    assert {data["groups"][0]["samples"], str(data["runs"][0]["samples"])} == {"480"}
    assert data["runs"][0]["curves"]["val/top1"] == [0.5, 0.9, 0.89]
    for run in data["runs"]:
        assert (tmp_path / "out" / unquote(run["href"]) / "summary.json").exists()
    assert data["runs"][0]["name"] == "resnet34_0"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    settings = [config(note=HOSTILE), config(note="__DATA__"), config(note="\u2028")]
    for index, one in enumerate(settings):
        record(tmp_path / "a" / f"javascript:alert({index})", one, [0.1 * index])
    path = written(tmp_path / "a", tmp_path)
    assert path.read_text(encoding="utf-8").count("</script>") == 2
    assert {group["settings"]["note"] for group in content(path)["groups"]} == {
        HOSTILE, "__DATA__", "\u2028",
    }  # fmt: skip
    assert all(run["href"].startswith("a/javascript%3A") for run in content(path)["runs"])


# -- in a browser -------------------------------------------------------------------------------


@pytest.mark.whole
@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    study(tmp_path / "a")
    one = config("vit", run_dir="x", note=HOSTILE)
    record(tmp_path / "a" / HOSTILE.replace("/", ""), one, [0.2, 0.4], overrides=["note=x"])
    with Page(written(tmp_path / "a", tmp_path / "out").as_uri()) as page:
        page.wait("document.querySelectorAll('#curves .mean').length === 3")
        assert page.evaluate("document.title") == HOSTILE
        assert page.text("#result") == (
            "Best: resnet34, 0.9133 ± 0.0153 over 3 seeds. Of 2 others, 0 are distinguishable from "
            "it; of 1 that is not known (one seed, or no spread)."
        )
        assert page.evaluate("document.images.length") == 0
        labels = "[...document.querySelectorAll('#groups tbody .key')].map((k) => k.textContent)"
        first = page.evaluate(labels)
        assert first[:2] == ["resnet34", "densenet121"]
        # Sorted by its mean, as by a key press on the header's button: worst first.
        page.evaluate(
            "[...document.querySelectorAll('#groups th button')]"
            ".find((b) => b.textContent.includes('mean')).click()"
        )
        assert page.evaluate(labels) == first[::-1]
        assert page.evaluate("document.querySelectorAll('[aria-sort=ascending]').length") == 1
        # A group is hidden in all charts.
        page.evaluate("document.querySelector('#groups input[data-group=\"1\"]').click()")
        for chart, marks in (("#curves .mean", 2), ("#cost .mark", 2), ("#forest .hollow", 1)):
            assert page.evaluate(f"document.querySelectorAll({chart!r}).length") == marks
        # Other metrics, costs and scales.
        for name, value in (("metric", "val/loss"), ("cost-of", "seconds")):
            page.evaluate(
                f"(() => {{ const s = document.querySelector('#{name}'); s.value = {value!r};"
                " s.dispatchEvent(new Event('change')); })()"
            )
        for box in ("singles", "late", "logy", "logx", "bands"):
            page.evaluate(f"document.querySelector('#{box}').click()")
        assert page.text("#h-cost") == "val/top1 against training time"
        assert "val/loss" in page.text("#curves svg")
        # The tooltip.
        page.evaluate(
            "(() => { const svg = document.querySelector('#curves svg');"
            " const box = svg.getBoundingClientRect(); svg.dispatchEvent(new PointerEvent("
            "'pointermove', {clientX: box.right - 20, clientY: box.top + 50})); })()"
        )
        assert page.text("#tip").startswith("epoch 3: mean ± sd (runs)resnet34")
        page.evaluate(
            "document.querySelector('#curves svg').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
        )
        assert page.text("#live").startswith("epoch 2: vit 0.6, resnet34 0.08667")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.text("#problem") == ""
        assert page.problems == []
