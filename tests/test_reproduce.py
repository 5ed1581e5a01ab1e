"""A run repeated from its folder, and what is different by now."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from research import reproduce
from research.config import compose_config
from research.config.overrides import override, train_command
from research.engine import run, run_folder
from research.engine.run_record import read_record
from research.utils.installation import VERSION
from tests.conftest import ROOT, SMALL, TINY, data_overrides, refusal, user_error
from tests.test_train import rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def described(folder: Path, words: Sequence[str], **changed: Any) -> Path:
    """The record of a run with these overrides, with some settings as if they had been others."""
    folder.mkdir()
    config = compose_config([w for w in words if not w.startswith("sweep=")]).config
    for key, value in changed.items():
        node = config
        *parts, last = key.split("__")
        for part in parts:
            node = node[part]
        if value is reproduce.MISSING:
            del node[last]
        else:
            node[last] = value
    run_folder.describe(folder, config, words, ("demo", "abc"))
    return folder


def environment(folder: Path, **changed: Any) -> None:
    """Edit what the folder says of its environment."""
    path = folder / "environment.json"
    content = json.loads(path.read_text())
    for key, value in changed.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def reported(folder: Path) -> tuple[list[str], list[str]]:
    """Lines of what is printed, and the commands."""
    text, steps = reproduce.report(read_record(folder))
    return [line.strip() for line in text.splitlines()], steps


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout at one commit without changes, whatever this one is."""
    clean = {"commit": COMMIT, "changed": False, "untracked": []}
    monkeypatch.setattr(run_folder, "_git", lambda: dict(clean))
    monkeypatch.setattr(run_folder, "changes", lambda: b"")


@pytest.mark.usefixtures("still")
def test_nothing_is_different(tmp_path: Path) -> None:
    words = ["model=densenet121", "seed=3", "run_dir=there", "resume=auto", "sweep=tpe"]
    folder = described(tmp_path / "r", words)
    (folder / "summary.json").write_text('{"status": "RUNNING", "best_epoch": 0}')
    lines, steps = reported(folder)
    assert steps == ["python train.py model=densenet121 seed=3"]
    assert lines[lines.index("different now:") + 1] == "nothing"
    assert lines[0] == f"run:        {folder} (RUNNING)"
    assert f"commit:     {COMMIT}" in lines
    assert "data:       demo, hash abc" in lines
    assert f"started in: {Path.cwd()}" in lines
    environment(folder, command=[], config_dir=None)
    assert reported(folder)[1] == steps


@pytest.mark.usefixtures("still")
def test_the_environment_has_moved_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = described(tmp_path / "r", ["tags.why='a b'"])
    environment(
        folder,
        python="3.9.1",
        git={"commit": "f" * 40, "changed": True, "untracked": ["new.py"]},
        packages={"torch": "1.0+cu101", "timm": "0.1", "mlflow": None, "gone": "1.2"},
        hardware={"cpu": "Z80", "gpus": ["GPU 9"]},
    )
    (folder / run_folder.PATCH).write_bytes(b"changes")
    lines, steps = reported(folder)
    now = run_folder.environment()
    for line in (
        f"python: 3.9.1 → {now['python']}",
        f"commit: {'f' * 40} → {COMMIT}",
        "uncommitted changes: true → false",
        f"torch: 1.0+cu101 → {now['packages']['torch']}",
        f"mlflow: none → {now['packages']['mlflow']}",
        "gone: 1.2 → none",
        f"cpu: Z80 → {now['hardware']['cpu']}",
    ):
        assert line in lines
    assert (
        f"commit:     {'f' * 40}; changes in changes.patch; untracked and not saved: new.py"
        in lines
    )
    checkout, apply, install, command = steps
    patch = str(folder / "changes.patch")
    assert checkout == f"git checkout {'f' * 40}"
    assert shlex.split(apply) == ["git", "apply", patch]
    monkeypatch.chdir(tmp_path)  # where git would take another repository, or none
    checkout, apply = map(shlex.split, reported(folder)[1][:2])
    assert checkout == ["git", "-C", str(ROOT), "checkout", "f" * 40]
    assert apply == ["git", "-C", str(ROOT), "apply", patch]
    assert install == (
        "pip install torch==1.0+cu101 timm==0.1 "  # of no package that only the file names
        "--extra-index-url https://download.pytorch.org/whl/cu101"
    )
    assert shlex.split(command) == ["python", "train.py", "tags.why='a b'", "seed=0"]


def test_changes_here_are_to_be_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"commit": COMMIT, "changed": True, "untracked": []}
    monkeypatch.setattr(run_folder, "_git", lambda: dict(state))
    monkeypatch.setattr(run_folder, "changes", lambda: b"one")
    folder = described(tmp_path / "r", [])
    assert (folder / run_folder.PATCH).read_bytes() == b"one"
    assert reported(folder)[1] == ["python train.py seed=0"]
    # Untracked files are in nobody's way, and a stash would take the user's own code away.
    state["untracked"] = ["mine.py"]
    monkeypatch.setattr(run_folder, "changes", lambda: b"")
    lines, steps = reported(folder)
    assert "untracked files: none → [mine.py]" in lines
    assert [step.split()[:2] for step in steps] == [
        ["git", "checkout"], ["git", "apply"], ["python", "train.py"],
    ]  # fmt: skip
    state["untracked"] = []
    monkeypatch.setattr(run_folder, "changes", lambda: b"two")
    lines, steps = reported(folder)
    assert "uncommitted changes: not those of the run" in lines
    assert steps[0].startswith("# first commit or stash")
    assert [step.split()[:2] for step in steps[1:]] == [
        ["git", "checkout"], ["git", "apply"], ["python", "train.py"],
    ]  # fmt: skip


def test_changes_are_kept_as_git_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(checkout), *who, *words], check=True, capture_output=True)

    checkout = tmp_path / "checkout"
    (checkout / "research").mkdir(parents=True)
    (checkout / "a.bin").write_bytes(b"\0one")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    for setting in (
        "diff.noprefix=true", "diff.relative=true", "diff.context=0",
        "status.showUntrackedFiles=no",
    ):  # fmt: skip
        git("config", *setting.split("="))
    (checkout / "a.txt").write_text("1\n2\n3\n")
    git("add", ".")
    git("commit", "-m", "b")
    monkeypatch.setattr(run_folder, "__file__", str(checkout / "research" / "runs.py"))
    (tmp_path / "r").mkdir()
    patch = tmp_path / "r" / run_folder.PATCH
    environment = run_folder.describe(tmp_path / "r", {"seed": 0}, [])
    assert (environment["git"]["changed"], patch.exists()) == (False, False)
    (checkout / "a.bin").write_bytes(b"\0two")
    (checkout / "a.txt").write_text("1\nchanged\n3\n")
    (checkout / "new").touch()
    environment = run_folder.describe(tmp_path / "r", {"seed": 0}, [])
    assert (environment["git"]["changed"], environment["git"]["untracked"]) == (True, ["new"])
    git("checkout", "a.bin", "a.txt")
    git("apply", str(patch))
    assert (checkout / "a.bin").read_bytes() == b"\0two"
    assert (checkout / "a.txt").read_text() == "1\nchanged\n3\n"
    # Too large a patch is none, and an older one goes.
    monkeypatch.setattr(run_folder, "LARGEST_PATCH", 10)
    run_folder.describe(tmp_path / "r", {"seed": 0}, [])
    assert not patch.exists()
    assert "bytes of uncommitted changes are not stored; commit them" in caplog.text


@pytest.mark.usefixtures("still")
def test_a_run_of_several_processes_is_repeated_by_as_many(tmp_path: Path) -> None:
    folder = described(tmp_path / "r", ["batch_size=64"])
    assert reported(folder)[1] == ["python train.py batch_size=64 seed=0"]
    environment(folder, processes=4, global_batch=256)
    lines, steps = reported(folder)
    assert steps == ["torchrun --nproc_per_node=4 train.py batch_size=64 seed=0"]
    assert "processes:  4" in lines
    same = "another number of processes than 4 has the same batches"
    assert f"{same} with global_batch_size=256 in place of batch_size" in lines
    (tmp_path / "s").mkdir()
    folder = described(tmp_path / "s/r", ["global_batch_size=256"])
    environment(folder, processes=4, global_batch=256)
    assert same in reported(folder)[0]
    environment(folder, machines=2)
    options = "--nnodes=2 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500"
    assert (
        "the run had its processes on 2 machines: type the command on each of them, with "
        f"{options} in place of --nproc_per_node=4; HOST is one of them"
    ) in reported(folder)[0]
    environment(folder, machines=3)
    assert "the run had its processes on 3 machines" in reported(folder)[0]
    environment(folder, machines=0)
    with user_error("RUN", "damaged (machines)"):
        read_record(folder)
    environment(folder, machines=1, processes="4; rm")
    with user_error("RUN", "damaged (processes)"):
        read_record(folder)


@pytest.mark.usefixtures("still")
def test_paths_of_the_folder_in_which_a_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        (folder / "pics").mkdir(parents=True)
    (there / "resnet34").touch()
    monkeypatch.chdir(there)
    words = [
        "model=resnet34", "dataset=imagefolder", "dataset.train_dirs=[pics,gone]",
        "dataset.val_dir=pics", f"dataset.test_dir={there}", f"tags.long={'x' * 300}",
    ]  # fmt: skip
    folder = described(tmp_path / "r", words)
    start = "start it in "
    assert not any(line.startswith(start) for line in reported(folder)[0])
    monkeypatch.chdir(here)
    assert [line for line in reported(folder)[0] if line.startswith(start)] == [
        f"{start}{there}, to which these paths belong: "
        "dataset.train_dirs=[pics,gone], dataset.val_dir=pics"
    ]


@pytest.mark.usefixtures("still")
def test_an_installed_copy_has_no_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = described(tmp_path / "r", [])
    monkeypatch.setattr(reproduce, "IS_COPY", True)
    monkeypatch.setattr(run_folder, "_git", dict)
    lines, steps = reported(folder)
    assert steps == ["python train.py seed=0"]
    assert f"it was run at commit {COMMIT}; this is an installed copy of {VERSION}" in lines


@pytest.mark.usefixtures("still")
def test_settings_whose_defaults_have_changed_are_written_out(tmp_path: Path) -> None:
    words = ["model=densenet121", "optimizer.lr=0.3"]
    folder = described(
        tmp_path / "r",
        words,
        seed=7,
        epochs=11,
        run_dir="somewhere",
        device="cuda:3",
        name="true",
        dataset__mean=[0.5, 0.25, 1e-05],
        optimizer__momentum=0.5,
        optimizer__gone=1,
        model__name=reproduce.MISSING,
    )
    lines, steps = reported(folder)
    for line in (
        "settings: epochs: 11 → 4",
        "settings: optimizer.momentum: 0.5 → 0.9",
        "settings: optimizer.gone: 1 → (none)",
        "settings: model.name: (none) → densenet121",
        "with today's files cannot be set: optimizer.gone=1",
        "with today's files new, and at their defaults: model.name=densenet121",
        "the run had device=cuda:3; the command uses the first available one",
    ):
        assert line in lines
    again = shlex.split(steps[0])[2:]
    assert again[:3] == [*words, "seed=7"]
    config = compose_config(again).config
    assert (config["seed"], config["epochs"], config["name"]) == (7, 11, "true")
    assert config["dataset"]["mean"] == [0.5, 0.25, 1e-05]
    assert (config["optimizer"]["lr"], config["optimizer"]["momentum"]) == (0.3, 0.5)
    assert (config["run_dir"], config["device"]) == (None, "auto")


@pytest.mark.usefixtures("still")
def test_settings_that_a_run_lacks_have_their_defaults(tmp_path: Path) -> None:
    """Not those that its recipe has today."""
    words = ["experiment=cifar10_fast", "seed=0"]
    lacks = {"task__views": reproduce.MISSING, "dataset__download": reproduce.MISSING}
    lines, steps = reported(described(tmp_path / "r", words, **lacks))
    assert [line for line in lines if "settings:" in line] == [
        "settings: task.views: none → flip_shift"
    ]
    assert shlex.split(steps[0])[2:] == [*words, "task.views=none"]


@pytest.mark.usefixtures("still")
def test_overrides_that_nothing_takes_any_more(tmp_path: Path) -> None:
    folder = described(tmp_path / "r", ["device=cpu"])
    (folder / "overrides.yaml").write_text("[device=cpu, model=alexnet, seed=0]")
    lines, steps = reported(folder)
    assert any(line.startswith("settings: today's conf/ refuses them") for line in lines)
    assert steps == ["python train.py device=cpu model=alexnet seed=0"]
    assert "device=cpu is that of the run; leave it out on a machine without it" in lines


@pytest.mark.usefixtures("still")
def test_results_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = described(tmp_path / "r", ["seed=1"])
    reproduce.main([str(folder), f"out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "reproduce.txt").read_text() == capsys.readouterr().out
    script = (tmp_path / "out" / "reproduce.sh").read_text()
    assert script == "set -e\npython train.py seed=1\n"


@pytest.mark.parametrize(
    "value",
    [
        "a b", "it's", "1", "null", "a,b", "{x}", "", "/a/b.c", "back\\slash", "end\\", "$HOME",
        "a:b", "\\'", "'", "True", "1e5", "data set/ä", None, True, 3, 1e-07,
        [0.5, "a b", [1, None]], {"a": 1, "b": ["x"]}, {},
    ],
)  # fmt: skip
def test_values_come_back_as_they_were(value: Any) -> None:
    word = override("key", value)
    assert OverridesParser.create().parse_override(word).value() == value
    command = train_command(["seed=1"], {"key": value}, multirun=True)
    assert shlex.split(command) == ["python", "train.py", "-m", "seed=1", word]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass one RUN folder"),
        (["r", "s"], "pass one RUN folder"),
        (["nowhere"], "nowhere: no such run"),
        (["empty"], "empty: no run here"),
        (["r", "outt=x"], "did you mean 'out'?"),
        (["no_environment"], "environment.json: missing"),
        (["broken"], "config.yaml: damaged"),
        (["list"], "overrides.yaml: damaged (expected a list)"),
        (["seedless"], "config.yaml: has no seed"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, config, overrides in (
        ("no_environment", "seed: 0", "[]"), ("broken", "a: [", "[]"), ("list", "seed: 0", "a: 1"),
        ("seedless", "a: 1", "[]"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config)
        (tmp_path / name / "overrides.yaml").write_text(overrides)
    assert message in refusal(reproduce.main, words)


@pytest.mark.whole
def test_the_command_gives_the_same_losses(
    small: Callable[..., dict[str, Any]], folders: Path, tmp_path: Path
) -> None:
    own = ["model.drop_rate=0.2", "seed=5", "run_dir=first"]
    words = [*SMALL, *data_overrides(folders), *TINY, *own]
    config = small(*TINY, *own)
    begin = run.start(config, "test")
    folder = begin.folder
    run.train(config, "test", words, begin)
    _, steps = reported(folder)
    command = shlex.split(steps[-1])
    assert command[:2] == ["python", "train.py"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command[2:], "run_dir=again"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, again = (rows(Path(name) / "batch_metrics.csv") for name in ("first", "again"))
    assert [row["loss"] for row in first] == [row["loss"] for row in again]
    assert yaml.safe_load(Path("again/config.yaml").read_text()) == {**config, "run_dir": "again"}
