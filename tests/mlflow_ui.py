"""MLflow's own server and its pages, for tests and pictures of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.browser import Page

PATIENCE = 180.0  # seconds
TRAINING = "workflowType=machine_learning"
"""The part of an address that chooses MLflow's view of training, not of generative AI."""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_ui(uri: str, log: Path, folder: Path | None = None) -> Iterator[str]:
    """A real ``mlflow ui``; gives its address. All its processes end with the block.

    It works in ``folder``, where it also puts artifacts; by default that of the log.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri),
                *("--workers", "1", "--port", str(port)),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder or log.parent,
        )
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The group is killed even when its leader is gone: workers may be left.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


def runs_page(address: str, experiment: str) -> str:
    """Address of the table of an experiment's runs."""
    return f"{address}/#/experiments/{experiment}/runs?{TRAINING}"


def run_page(address: str, experiment: str, run: str, tab: str = "") -> str:
    """Address of a run, given by its id, or of a tab of it, such as ``artifacts``."""
    path = "/".join(filter(None, (run, tab)))
    return f"{address}/#/experiments/{experiment}/runs/{path}?{TRAINING}"


def compare_page(address: str, experiment: str, runs: Sequence[str]) -> str:
    """Address of the comparison of runs, given by their ids."""
    chosen = {"runs": json.dumps([*runs]), "experiments": json.dumps([experiment])}
    query = f"{urllib.parse.urlencode(chosen, quote_via=urllib.parse.quote)}&{TRAINING}"
    return f"{address}/#/compare-runs?{query}"


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


def follow_mode(page: Page) -> None:
    """MLflow has a setting of its own for dark mode: from now on that of the browser."""
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    page.command(
        "Page.addScriptToEvaluateOnNewDocument",
        source="if (location.protocol === 'http:')"
        f" localStorage.setItem('_mlflow_dark_mode_toggle_enabled', {dark});",
    )


def fold(page: Page) -> None:
    """Put MLflow's side panels away."""
    for button in ("mlflow.assistant.chat_panel.close", "mlflow_header.toggle_sidebar_button"):
        page.evaluate(f"document.querySelector('[data-component-id=\"{button}\"]')?.click()")


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
        page.press("ArrowUp")
        time.sleep(0.1)
    page.press("Enter")
    page.press("Escape")
