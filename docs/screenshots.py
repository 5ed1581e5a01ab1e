"""The pictures of sweeps.md, taken anew: ``python -m docs.screenshots out=docs/pictures``.

Run from the root of the repository. Runs a sweep of minutes on rendered scenes in a temporary
folder, compares its runs, and opens MLflow's UI and the comparison in Chromium, which has to be
installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from research.config import cli
from research.config.rules import PATH
from research.utils.errors import UserError
from research.utils.files import write_atomic
from tests.browser import PROGRAM, Page
from tests.mlflow_ui import PATIENCE, mlflow_ui

ROOT = Path(__file__).resolve().parents[1]
STUDY = "windows"
SWEEP = (
    *("model=resnet34_compressed", "model.name=resnet18", "compression=luma_fusion", "name=demo"),
    *("compression.window=1,4", "seed=0,1,2", "epochs=3", "device=cpu", "batch_size=16"),
    *("dataset.demo.train_images=360", "dataset.demo.val_images=180", "optimizer.lr=0.02"),
    *("logging.mlflow.system_metrics=false", f"hydra.sweeper.study_name={STUDY}"),
)
COLUMNS = ("metrics.`val/top1`", "params.`compression.window`", "params.`seed`")
WIDTH, HEIGHT = 1400, 700


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    out: Path = cli.option(Path("docs/pictures"), PATH, "folder for the pictures")


USAGE = cli.usage("python -m docs.screenshots key=value", __doc__ or "", Options)


def runs_page(address: str, experiment: str) -> str:
    """Address of the table of an experiment's runs."""
    return f"{address}/#/experiments/{experiment}/runs"


def compare_page(address: str, experiment: str, runs: Sequence[str]) -> str:
    """Address of the comparison of runs, given by their ids."""
    chosen = {"runs": json.dumps([*runs]), "experiments": json.dumps([experiment])}
    return (
        f"{address}/#/compare-runs?{urllib.parse.urlencode(chosen, quote_via=urllib.parse.quote)}"
    )


def names(page: Page) -> list[str]:
    """Names of the runs in the table, from top to bottom."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('[role=gridcell] a[href*=\"/runs/\"]')]"
        ".map((link) => link.textContent)"
    )
    return found


def unfold(page: Page, run: str) -> None:
    """Open the tree below a run in the table."""
    cell = (
        "[...document.querySelectorAll('[role=gridcell] a')]"
        f".find((link) => link.textContent === {run!r})?.closest('[role=gridcell]')"
    )
    page.wait(f"{cell}?.querySelector('button') != null")
    page.evaluate(f"{cell}.querySelector('button').click()")


def go(page: Page, url: str, words: str) -> None:
    """Open another address and wait until its page says something."""
    page.command("Page.navigate", url=url)
    says(page, words)


def says(page: Page, words: str) -> None:
    """Wait until some words are on the page."""
    page.wait(f"document.body?.innerText.includes({json.dumps(words)})")


def resize(page: Page) -> None:
    page.command(
        "Emulation.setDeviceMetricsOverride",
        width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip


def fold(page: Page) -> None:
    """Put MLflow's side panels away."""
    for button in ("mlflow.assistant.chat_panel.close", "mlflow_header.toggle_sidebar_button"):
        page.evaluate(f"document.querySelector('[data-component-id=\"{button}\"]')?.click()")


def still(page: Page) -> None:
    """Until two pictures a second apart are the same."""
    give_up = time.monotonic() + PATIENCE
    before = page.screenshot()
    while True:
        time.sleep(1)
        now = page.screenshot()
        if (now == before).all() or time.monotonic() > give_up:
            return
        before = now


def choose_columns(page: Page, columns: Sequence[str]) -> None:
    """The table's columns, where the page keeps them."""
    page.evaluate(
        "(() => { const key = Object.keys(localStorage).find((key) =>"
        " key.includes('ExperimentPage') && key.endsWith('ReactComponentState'));"
        " const state = JSON.parse(localStorage[key]);"
        f" state.selectedColumns = {json.dumps([*columns])};"
        " localStorage[key] = JSON.stringify(state); location.reload(); })()"
    )


def choose_metric(page: Page, metric: str) -> None:
    """What the comparison draws, instead of the first metric by name."""
    page.wait("document.querySelectorAll('input[role=combobox]').length === 2")
    page.evaluate(
        "(() => { const input = document.querySelectorAll('input[role=combobox]')[1];"
        " const box = input.closest('[class*=select-selector]');"
        " box.querySelector('[class*=item-remove]').click();"
        " box.dispatchEvent(new MouseEvent('mousedown', {bubbles: true})); input.focus(); })()"
    )
    active = "document.querySelector('[class*=option-active]')?.textContent"
    give_up = time.monotonic() + PATIENCE
    while page.evaluate(active) != metric and time.monotonic() < give_up:
        press(page, "ArrowUp")
        time.sleep(0.1)
    press(page, "Enter")
    press(page, "Escape")


def press(page: Page, key: str) -> None:
    code = {"ArrowUp": 38, "Enter": 13, "Escape": 27}[key]
    for kind in ("keyDown", "keyUp"):
        page.command("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)


def save(page: Page, file: Path) -> None:
    still(page)
    picture = Image.fromarray(page.screenshot())
    write_atomic(file, lambda path: picture.save(path, "PNG", optimize=True))
    print(f"{file}  {file.stat().st_size / 1024:.0f} KiB")


def run(folder: Path, *words: str) -> None:
    """A command of this repository in another working directory."""
    subprocess.run(  # noqa: S603 - words of this file
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


def take(folder: Path, out: Path) -> None:
    """Pictures of the sweep that ran in ``folder``."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder}/runs/mlflow.db"
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'backbone-lab'")
    number = experiment.experiment_id
    found = client.search_runs([number])
    parent = next(run.info.run_id for run in found if run.info.run_name == STUDY)
    trials = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent]
    with mlflow_ui(uri, folder / "ui.log", folder) as address, Page(f"{address}/health") as page:
        resize(page)
        go(page, runs_page(address, number), STUDY)
        choose_columns(page, COLUMNS)
        says(page, "compression.window")
        still(page)
        fold(page)
        unfold(page, STUDY)
        save(page, out / "mlflow_tree.png")
        go(page, f"{runs_page(address, number)}/{parent}", "About this run")
        save(page, out / "mlflow_parent.png")
        ids = [run.info.run_id for run in trials]
        go(page, compare_page(address, number, ids), f"Comparing {len(ids)} Runs")
        choose_metric(page, "val/top1")
        save(page, out / "mlflow_compare.png")
    shutil.copy(folder / "runs" / "sweeps" / STUDY / "pictures" / "slices.png", out)
    with Page((folder / "compared" / "comparison.html").as_uri()) as page:
        resize(page)
        save(page, out / "compare.png")


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(Options, words)
    cli.no_paths(paths)
    if PROGRAM is None:
        raise UserError("browser", "no browser is installed; install Chromium")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(folder, str(ROOT / "train.py"), "-m", *SWEEP)
        run(folder, "-m", "research.compare", f"runs/sweeps/{STUDY}", "out=compared")
        take(folder, options.out)


if __name__ == "__main__":
    cli.command(USAGE, main)
