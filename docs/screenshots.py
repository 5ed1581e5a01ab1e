"""Screenshots of real output: ``python -m docs.screenshots out=docs/pictures``.

Run from the root of the repository, with Chromium installed. Trains a sweep on rendered scenes and
a detector, of minutes, in a temporary folder, compares the runs, and opens the results in Chromium.
Writes the pictures of sweeps.md; with all=FOLDER also each page (MLflow's list of runs, comparison
and artifacts, the comparison, the leaderboard, the player, pages of the documentation) at the width
of a telephone, a tablet and a desk, light and dark.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from research.config import cli
from research.config.rules import PATH
from research.utils.errors import UserError
from research.utils.files import write_atomic
from tests.browser import PROGRAM, Page
from tests.comparison.recorded import many_runs_page
from tests.mlflow_ui import (
    choose_columns,
    choose_metric,
    compare_page,
    fold,
    follow_mode,
    mlflow_ui,
    run_page,
    runs_page,
    unfold,
)

ROOT = Path(__file__).resolve().parents[1]
STUDY = "windows"
SWEEP = (
    *("model=resnet34_compressed", "model.name=resnet18", "compression=luma_fusion", "name=demo"),
    *("compression.window=1,4", "seed=0,1,2", "epochs=3", "device=cpu", "batch_size=16"),
    *("dataset.demo.train_images=360", "dataset.demo.val_images=180", "optimizer.lr=0.02"),
    *("logging.mlflow.system_metrics=false", f"hydra.sweeper.study_name={STUDY}"),
)
DETECTOR = ("model=bigdet", "device=cpu", "epochs=3", "run_dir=runs/detector", "logging=csv")
COLUMNS = ("metrics.`val/top1`", "params.`compression.window`", "params.`seed`")
SITE = {
    "index": "Backbone Lab",
    "gallery": "Gallery",
    "results": "Results",
    "api": "API reference",
}
"""Pages of the documentation, and words on each."""
WIDTH, HEIGHT = 1400, 700
WIDTHS = (400, 800, 1600)
TALLEST = 3000
"""Pixels of a page that are on its screenshot."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    out: Path = cli.option(Path("docs/pictures"), PATH, "folder for the pictures")
    all: Path | None = cli.option(None, PATH, "folder for screenshots of all pages; else none")
    site: Path | None = cli.option(None, PATH, "the built documentation, for all=")
    work: Path | None = cli.option(
        None, PATH, "folder for the runs, which are used again if they are there; by default a "
        "temporary one",
    )  # fmt: skip


USAGE = cli.usage("python -m docs.screenshots key=value", __doc__ or "", Options)


@dataclass(frozen=True)
class Shown:
    """A page of which screenshots are taken.

    Attributes:
        name: of the pictures.
        url: its address.
        words: on it when it is ready.
        prepare: called before a picture is taken, with the page.
    """

    name: str
    url: str
    words: str
    prepare: Callable[[Page], object] = Page.still


def save(page: Page, file: Path) -> None:
    page.still()
    picture = Image.fromarray(page.screenshot())
    write_atomic(file, lambda path: picture.save(path, "PNG", optimize=True))
    print(f"{file}  {file.stat().st_size / 1024:.0f} KiB")


def run(folder: Path, *words: str) -> None:
    """A command of this repository in another working directory."""
    subprocess.run(  # noqa: S603 - words of this file
        [sys.executable, *words], cwd=folder, env=environment(), check=True
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def make(folder: Path) -> None:
    """The runs and what the commands make of them, unless they are there."""
    study = f"runs/sweeps/{STUDY}"
    trials = [f"{study}/trial_000{number}" for number in range(6)]
    for result, words in {
        f"{study}/final_summary.json": (str(ROOT / "train.py"), "-m", *SWEEP),
        "runs/detector/summary.json": (str(ROOT / "train.py"), *DETECTOR),
        "compared": ("-m", "research.compare", study, "out=compared"),
        "board": ("-m", "research.leaderboard", *trials, "device=cpu", "out=board"),
    }.items():
        if not (folder / result).exists():
            run(folder, *words)


def pictures(folder: Path, address: str, page: Page, out: Path) -> list[Shown]:
    """The pictures of sweeps.md, and MLflow's pages about the sweep."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'backbone-lab'")
    number = experiment.experiment_id
    found = client.search_runs([number])
    parent = next(run.info.run_id for run in found if run.info.run_name == STUDY)
    ids = [r.info.run_id for r in found if r.data.tags.get("mlflow.parentRunId") == parent]
    page.emulate(WIDTH, HEIGHT)
    page.go(runs_page(address, number), STUDY)
    choose_columns(page, COLUMNS)
    page.says("compression.window")
    page.still()
    fold(page)
    unfold(page, STUDY)
    save(page, out / "mlflow_tree.png")
    page.go(run_page(address, number, parent), "About this run")
    save(page, out / "mlflow_parent.png")
    page.go(compare_page(address, number, ids), f"Comparing {len(ids)} Runs")
    choose_metric(page, "val/top1")
    save(page, out / "mlflow_compare.png")
    shutil.copy(folder / "runs" / "sweeps" / STUDY / "pictures" / "slices.png", out)
    page.go((folder / "compared" / "comparison.html").as_uri(), "Learning curves")
    save(page, out / "compare.png")
    return [
        Shown("mlflow_runs", runs_page(address, number), STUDY, fold),
        Shown(
            "mlflow_compare", compare_page(address, number, ids), f"Comparing {len(ids)} Runs", fold
        ),
        Shown("mlflow_artifacts", run_page(address, number, ids[0], "artifacts"), "pictures", fold),
    ]


@contextmanager
def player(folder: Path) -> Iterator[str]:
    """Plays frames of the detector; gives its address."""
    words = ("runs/detector", "runs/demo/runs/run_005", "max_frames=12", "show=true", "device=cpu")
    shutil.rmtree(folder / "played", ignore_errors=True)
    process = subprocess.Popen(  # noqa: S603 - words of this file
        [sys.executable, "-m", "research.predict", *words, "out=played"],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("watch:"))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def found_box(page: Page) -> None:
    """Step back to a frame with a detection."""
    page.wait(
        "$('play').textContent === 'Play' && "
        "(document.querySelector('#boxes rect') !== null || go(shown - 1))"
    )


def each_width(page: Page, shown: Shown, out: Path) -> None:
    """A page at each width, light and dark, from its top to its end."""
    for mode in ("light", "dark"):
        for width in WIDTHS:
            page.emulate(width, 900, mode)
            page.command("Page.navigate", url="about:blank")
            page.go(shown.url, shown.words)
            page.still()
            shown.prepare(page)
            height = page.evaluate("document.documentElement.scrollHeight")
            page.emulate(width, min(TALLEST, max(900, height)), mode)
            save(page, out / f"{shown.name}_{width}_{mode}.png")


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(Options, words)
    cli.no_paths(paths)
    if PROGRAM is None:
        raise UserError("browser", "no browser is installed", "install Chromium")
    if options.site is not None and not (options.site / "index.html").is_file():
        raise UserError("site", f"site={options.site}: no index.html there", "build the site first")
    with ExitStack() as stack:
        folder = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
        make(folder)
        uri = f"sqlite:///{folder}/runs/mlflow.db"
        address = stack.enter_context(mlflow_ui(uri, folder / "ui.log", folder))
        page = stack.enter_context(Page(f"{address}/health"))
        follow_mode(page)
        shown = pictures(folder, address, page, options.out)
        if options.all is None:
            return
        options.all.mkdir(parents=True, exist_ok=True)
        many = many_runs_page(folder / "many.html")
        shown += [
            Shown("comparison", (folder / "compared/comparison.html").as_uri(), "Learning curves"),
            Shown("comparison_many", many.as_uri(), "1,000 runs"),
            Shown("leaderboard", (folder / "board/leaderboard.html").as_uri(), "against cost"),
            Shown("player", stack.enter_context(player(folder)), "12 / 12", found_box),
        ]
        if options.site is not None:
            for name, words_on_it in SITE.items():
                url = (options.site.resolve() / f"{name}.html").as_uri()
                shown.append(Shown(f"site_{name}", url, words_on_it))
        for one in shown:
            each_width(page, one, options.all)


if __name__ == "__main__":
    cli.command(USAGE, main)
