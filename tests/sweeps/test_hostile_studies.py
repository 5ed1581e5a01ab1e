"""Mutated files of a study: every one is read, or refused in one line."""

from __future__ import annotations

import json
import logging
import random
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.samplers import RandomSampler

from research.config import compose_config
from research.sweeps import job, record
from research.sweeps.opening import open_study
from research.sweeps.parent import trial_tags
from research.sweeps.study import Study
from research.utils.errors import UserError
from tests.conftest import SMALL
from tests.sweeps.test_identity import never, search

CONFIG = compose_config([*SMALL, "dataset.train_dirs=[data]", "optimizer.lr=0.1"]).config
SEARCH = search("optimizer.lr=0.1,0.2", "seed=0,1,2", configuration=CONFIG)
SECONDS = 2.0
MEGABYTES = 512
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**9, 2**70, 1e308, float("nan"), "", "x" * 5000, "${oc.env:HOME}", "../..",
    "/etc/passwd", "\0", "trial_9999", [], [[]], {}, {"_target_": "os.system"}, ["a"] * 300,
    "range(0,1e300,0.1)", "9" * 5000,
)  # fmt: skip


def trained(study: Study) -> None:
    """Trials of every kind, as sweeps leave them, without training."""
    for number in range(5):
        claim = study.claim_trial(SEARCH.space, 6, 0, set(), grid=True)
        assert claim is not None
        run = study.run_folder(number, 1)
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "seed": claim.point["seed"]}))
        (run / "checkpoints" / "last.pt").touch()
        summary = {
            "model": "resnet18", "parameters": 1, "epochs_done": 2, "best_epoch": 1,
            "best_value": 0.5, "monitor": ["val/top1", "max"], "total_time_sec": 1.0,
            "paths": {"run": str(run)},
        }  # fmt: skip
        (run / "summary.json").write_text(json.dumps(summary))
        study.set_attrs(number, run=str(run), beginnings=1, attempts=1, seconds=1.0, reason="")
        for epoch in (1, 2):
            study.resume_trial(number).report(0.1 * epoch, epoch)
        if number == 1:
            study.fail(number, "an error")
        elif number == 2:
            study.prune(number, "MedianPruner at epoch 2")
        elif number < 4:
            study.report(number, [0.1 * number])
        claim.lock.release()


def opened() -> Study:
    return open_study(SEARCH, None, "grid", never, sampler=RandomSampler, n_trials=6)


@pytest.fixture
def project(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study whose last trial is unfinished."""
    monkeypatch.setattr("research.sweeps.plots.pictures", lambda summary: {})
    study = opened()
    trained(study)
    record.update(study, CONFIG)
    (study.folder / "multirun.yaml").write_text(yaml.safe_dump(CONFIG))
    (study.folder / "mlflow_run_id").write_text("0123456789abcdef0123456789abcdef")
    shutil.copytree("runs", "kept")
    return study_folder


def restart() -> None:
    """What a sweep does with the files of a study before it trains."""
    study = opened()
    with record.recorded(study, CONFIG):
        trial_tags(study.folder, 0)
        claim = study.claim_trial(SEARCH.space, 6, 0, {1}, grid=True)
        if claim is None:
            return
        try:
            with ExitStack() as stack:
                config = {**CONFIG, "seed": claim.point["seed"]}
                job._open_run(study, claim.number, config, "run", stack)
            record.update(study, CONFIG)
        finally:
            claim.lock.release()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One change of a file's bytes, lines or values."""
    kind = chance.choice(("bytes", "bytes", "cut", "empty", "lines", "values", "values", "values"))
    if not content or kind == "empty":
        return b""
    place = chance.randrange(len(content))
    if kind == "bytes":
        few = bytes(chance.randrange(256) for _ in range(chance.choice((1, 1, 4, 64))))
        return content[:place] + few + content[place + chance.choice((0, len(few))) :]
    if kind == "cut":
        return content[:place]
    lines = content.split(b"\n")
    line = chance.randrange(len(lines))
    if kind == "lines":
        other = chance.randrange(len(lines))
        changed = chance.choice(([], [lines[line]] * 2, [lines[other]], [b"[" * 10_000]))
        return b"\n".join([*lines[:line], *changed, *lines[line + 1 :]])
    try:
        return json.dumps(with_other_value(json.loads(content), chance)).encode()
    except ValueError:
        pass
    try:
        changed_line = json.dumps(with_other_value(json.loads(lines[line]), chance)).encode()
    except ValueError:
        return content[:place] + chance.choice((b"null", b"-1", b'"', b"{", b"\xff"))
    return b"\n".join([*lines[:line], changed_line, *lines[line + 1 :]])


def with_other_value(document: Any, chance: random.Random) -> Any:
    """A JSON document with one value replaced or removed."""
    nodes = list(containers(document))
    if not nodes:
        return chance.choice(VALUES)
    node = chance.choice(nodes)
    key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
    if chance.random() < 0.2:
        del node[key]
    else:
        node[key] = chance.choice(VALUES)
    return document


def containers(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list) and node:
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from containers(child)


def survives(project: Path, name: str, content: bytes) -> str:
    """How a sweep begins when one of its files has other content."""
    shutil.rmtree(project / "runs")
    shutil.copytree(project / "kept", project / "runs")
    (project / "runs" / name).write_bytes(content)
    # Of this process: others share the machine.
    start = time.process_time()
    try:
        restart()
        outcome = "opened"
    except UserError as error:
        outcome = str(error)
    assert "\n" not in outcome
    assert time.process_time() - start < SECONDS, f"{name}: {time.process_time() - start:.1f} s"
    return outcome


def files(project: Path) -> list[str]:
    every = (path for path in (project / "kept").rglob("*") if path.is_file())
    names = (str(path.relative_to(project / "kept")) for path in every)
    return sorted(n for n in names if not n.endswith((".lock", ".pt", ".png")))


@pytest.mark.whole
def test_two_thousand_mutations(
    project: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.disable(logging.INFO)
    names = files(project)
    assert len(names) >= 15
    weights = [6 if "trial_" not in name else 1 for name in names]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: dict[str, int] = {}
    for seed in range(2000):
        chance = random.Random(seed)
        (name,) = chance.choices(names, weights)
        content = mutated((project / "kept" / name).read_bytes(), chance)
        try:
            outcome = survives(project, name, content)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}: {content[:2000]!r}") from error
        outcomes[outcome[:40]] = outcomes.get(outcome[:40], 0) + 1
        assert "Traceback" not in caplog.text, f"seed {seed}, {name}: {caplog.text[-3000:]}"
        caplog.clear()
    logging.disable(logging.NOTSET)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES
    with capsys.disabled():
        print(outcomes, f"{grown:.0f} MB more")
