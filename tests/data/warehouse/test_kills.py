"""Builds that are killed, and the builds after them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data.warehouse import shards
from research.data.warehouse.build import build
from research.data.warehouse.manifest import MANIFEST, Manifest
from research.data.warehouse.plan import BuildPlan
from tests.conftest import user_error
from tests.data.warehouse.conftest import content, make_frames, plan_of

FORK = multiprocessing.get_context("fork")
"""So that a build starts at once, with everything imported."""

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
"""What changes names on the disk, and what makes it last."""


@pytest.fixture
def plan(tmp_path: Path) -> BuildPlan:
    return plan_of(make_frames(tmp_path / "source"))


def killed(plan: BuildPlan, out: Path, prepare: Callable[[], Any], **settings: Any) -> bool:
    """Build in a process of its own; whether it was killed before the end."""

    def run() -> None:
        prepare()
        build(plan, out, **settings)

    process = FORK.Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def kill_at(step: int) -> None:
    """Let this process die at the n-th of ``STEPS`` that it takes, before taking it."""
    taken = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def kill_after(seconds: float) -> None:
    """Let this process die in the middle of whatever it does then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def assert_nothing_half(out: Path, whole: dict[str, str]) -> None:
    """A version that exists is complete; otherwise loading fails with an error."""
    if list(out.glob(f"v*/{MANIFEST}")):
        assert content(Manifest.load(out).folder) == whole
    else:
        assert not list(out.glob("v*"))
        with user_error("manifest", out):
            Manifest.load(out)


@pytest.mark.long
def test_killed_at_every_step_it_ends_with_the_same_bytes(plan: BuildPlan, tmp_path: Path) -> None:
    settings = {"shard_samples": 5, "workers": 1}
    whole = content(build(plan, tmp_path / "undisturbed", **settings).folder)
    steps = 0
    while True:
        out = tmp_path / f"killed_{steps}"
        if not killed(plan, out, lambda: kill_at(steps + 1), **settings):  # noqa: B023
            break
        steps += 1
        assert_nothing_half(out, whole)
        manifest = build(plan, out, **settings)
        assert content(manifest.folder) == whole
        assert sorted(path.name for path in out.iterdir()) == [".lock", manifest.folder.name]
    assert steps > 15


def test_killed_again_and_again_it_still_gets_there(plan: BuildPlan, tmp_path: Path) -> None:
    """Each build goes on where the one before was killed: a few steps each time are enough."""
    settings = {"shard_samples": 1, "workers": 1}
    whole = content(build(plan, tmp_path / "undisturbed", **settings).folder)
    out = tmp_path / "out"
    builds = 1
    while killed(plan, out, lambda: kill_at(24), **settings):
        builds += 1
        assert builds < 30
        assert_nothing_half(out, whole)
    assert builds > 2
    assert content(Manifest.load(out).folder) == whole


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    plan: BuildPlan, tmp_path: Path
) -> None:
    began = time.monotonic()
    whole = content(build(plan, tmp_path / "undisturbed", shard_samples=2, workers=1).folder)
    took = time.monotonic() - began
    rng = np.random.default_rng()  # other moments every time
    for number, fraction in enumerate(rng.uniform(0, 1, 8)):
        out = tmp_path / f"out_{number}"
        killed(plan, out, lambda: kill_after(fraction * took + 1e-3), shard_samples=2, workers=1)  # noqa: B023
        assert_nothing_half(out, whole)
        assert content(build(plan, out, shard_samples=2, workers=1).folder) == whole


@pytest.mark.long
def test_processes_of_a_killed_build_end_with_it(plan: BuildPlan, tmp_path: Path) -> None:
    """Killed while several processes write; resumed with another number of them."""
    whole = content(build(plan, tmp_path / "undisturbed", shard_samples=1, workers=1).folder)
    out = tmp_path / "out"

    def run() -> None:
        shards.MIN_PARALLEL_SECONDS = 0.0
        build(plan, out, shard_samples=1, workers=2)

    process = FORK.Process(target=run)
    process.start()
    assert process.pid is not None
    children: set[int] = set()
    give_up = time.monotonic() + 120
    while len(list(out.glob(".building-*/store/shard_*"))) < 2 and time.monotonic() < give_up:
        children |= _children(process.pid)
        time.sleep(0.001)
    process.kill()
    process.join()
    assert len(children) >= 2
    while any(_alive(child) for child in children) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not any(_alive(child) for child in children)
    assert_nothing_half(out, whole)
    assert content(build(plan, out, shard_samples=1, workers=1).folder) == whole


def _children(process: int) -> set[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return set()
    return {int(word) for word in text.split()}


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
