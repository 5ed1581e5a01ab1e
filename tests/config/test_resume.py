"""What ``resume=RUN`` makes of a run's configuration and the words next to it; nothing trains."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from research.config import compose_config, resume
from research.config.compose import composed
from research.config.keys import differences, leaves
from research.config.options import option_node
from research.config.resume import compose, run_of, words_to_resume
from research.config.schema import RUN_RULES, register
from research.utils.errors import UserError
from tests.conftest import Train, user_error

Store = Callable[..., Path]
once = lru_cache(maxsize=None)(lambda words: composed(list(words)))
"""Composition is most of the time of these tests."""
WORDS = (
    "model=densenet121", "model.growth_rate=8", "dataset=cifar10", "dataset.root=data", "epochs=3",
    "tags.paper=a", "logging.mlflow.uri=sqlite:///runs/own.db", "seed=2",
)  # fmt: skip


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Writes the files of a run that was started with the words; ``edits`` by dotted key."""
    monkeypatch.chdir(tmp_path)
    register()
    monkeypatch.setattr(resume, "composed", lambda words: once(tuple(words)))

    def write(*words: str, folder: str = "runs/a", **edits: Any) -> Path:
        config = once(words).config
        for key, value in edits.items():
            group, _, name = key.partition("__")
            (config[group] if name else config)[name or key] = value
        path = Path(folder)
        (path / "checkpoints").mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (path / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
        (path / "summary.json").write_text('{"name": "its_name"}')
        (path / "checkpoints/last.pt").touch()
        return path

    return write


def changes(run: Path, *words: str, own: Path | None = None) -> dict[str, Any]:
    """What the words next to ``resume=RUN`` change in the run's configuration."""
    found = compose([f"resume={run}", *words], own).settings
    folder = run if run.is_dir() else run.parents[1]
    before = yaml.safe_load((folder / "config.yaml").read_text())
    return {key: new for key, (_, new) in differences(before, found, ("resume",)).items()}


def test_alone_it_is_the_runs_own(stored: Store) -> None:
    run = stored(*WORDS)
    found = compose([f"resume={run}"])
    assert changes(run) == {}
    words = ("epochs=9", "seed=2", "workers=3", "tags.paper=a", "tags={paper: a}")
    assert changes(run, *words) == {"epochs": 9, "workers": 3}
    assert found.name == "its_name"
    assert found.overrides == list(WORDS)
    assert changes(run / "checkpoints/last.pt") == {}
    assert changes(run, "run_dir=runs/elsewhere") == {}
    assert compose_config([f"resume={run}"]).config == found.settings


def test_the_words_of_the_run_say_nothing_new(stored: Store) -> None:
    """All of them, as before ``resume=RUN`` was enough, and any of them."""
    run = stored(*WORDS)
    for words in (WORDS, WORDS[:1], ["optimizer=sgd"]):
        assert changes(run, *words) == {}
    assert changes(run, *WORDS, "epochs=5") == {"epochs": 5}
    overrides = compose([f"resume={run}", *WORDS, "epochs=5"]).overrides
    assert sorted(overrides) == sorted({*WORDS, "epochs=5"} - {"epochs=3"})


@pytest.mark.long
def test_defaults_that_have_changed_since_do_not_count(stored: Store) -> None:
    run = stored(*WORDS, "optimizer=sgd", optimizer__lr=0.123, precision="bf16")
    assert changes(run, *WORDS, "optimizer=sgd") == {}
    today = option_node("optimizer", "sgd")["lr"]
    with user_error("resume", f"optimizer.lr is 0.123 in the run, {today} here"):
        compose([f"resume={run}", "optimizer=sgd", f"optimizer.lr={today}"])
    assert changes(run, "optimizer.lr=0.123", "precision=bf16") == {}


REFUSED = {
    "optimizer.lr=0.5": "optimizer.lr is 0.05 in the run, 0.5 here",
    "optimizer=adamw": "optimizer._target_ is torch.optim.SGD in the run",
    "model=resnet34_compressed dataset=demo": "model._target_ is research.models.densenet.densenet",
    "tags.paper=b": "tags.paper is a in the run, b here",
    "seed=1 grad_clip=1 ema=0.9 precision=bf16 monitor=val/loss:min": "and 2 more",
}
MORE_REFUSED = {
    "batch_size=7 accumulate=2": "batch_size is 128 in the run, 7 here; accumulate",
    "experiment=cifar10_fast": "precision is fp32 in the run, bf16 here",
    "dataset=cifar100 dataset.root=data": "dataset.name is cifar10 in the run, cifar100 here",
    "scheduler=step": "scheduler._target_ is research.engine.schedules.cosine in the run",
    "compression=block_stem": "compression.variant is none in the run",
    "task=ranking": "task._target_ is",
}


@pytest.mark.parametrize(
    "words", [*REFUSED, *(pytest.param(w, marks=pytest.mark.long) for w in MORE_REFUSED)]
)
def test_what_differs_is_refused(stored: Store, words: str) -> None:
    run = stored(*WORDS)
    said = {**REFUSED, **MORE_REFUSED}[words]
    with user_error("resume", f"resume={run}: ", said, "leave out what differs"):
        compose([f"resume={run}", *shlex.split(words)])


@pytest.mark.long
@pytest.mark.parametrize("start", [WORDS, ("experiment=cifar10_densenet121", "dataset.root=data")])
def test_the_advice_is_accepted(stored: Store, start: tuple[str, ...]) -> None:
    run = stored(*start)
    commands = 0
    for words in {**REFUSED, **MORE_REFUSED}:
        with pytest.raises(UserError) as caught:
            compose([f"resume={run}", *shlex.split(words)])
        hint = str(caught.value).rpartition("weights: ")[2]
        if hint.startswith("python"):
            assert shlex.split(hint)[-1] == f"init_from={run}"
            compose_config(shlex.split(hint)[2:])
            commands += 1
        else:
            assert hint.endswith("or train a new run without resume=")
    assert commands >= 4


OWN_OPTION = "_target_: my_models.Net\nnum_classes: null\nprovides: [logits]\nneeds: [images]\n"


@pytest.mark.parametrize("words", ["seed=1", "optimizer=adamw", "model=mine optimizer.lr=1"])
def test_the_advice_has_the_options_of_the_users_own(
    stored: Store, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_models.py").write_text("class Net:\n    def __init__(self, num_classes): ...\n")
    monkeypatch.syspath_prepend(".")
    Path("own/model").mkdir(parents=True)
    Path("own/model/mine.yaml").write_text(OWN_OPTION)
    monkeypatch.setattr(resume, "composed", composed)
    own = Path("own")
    run = stored("model=resnet34")
    found = compose_config(["model=mine"], own)
    (run / "config.yaml").write_text(yaml.safe_dump(found.config))
    (run / "overrides.yaml").write_text("- model=mine")
    with pytest.raises(UserError) as caught:
        compose([f"resume={run}", *words.split()], own)
    _, _, flag, folder, *typed = shlex.split(str(caught.value).partition("weights: ")[2])
    assert (flag, Path(folder)) == ("--config-dir", own.resolve())
    assert compose_config(typed, Path(folder)).config["init_from"] == str(run)
    # Without the folder, no command of these words would be accepted.
    with user_error("resume", "or train a new run without resume="):
        compose([f"resume={run}", "trust=[my_models.Net]", "seed=1"])
    sys.modules.pop("my_models", None)


OTHER: dict[str, Any] = {
    "name": "b", "tags": "{a: b}", "seed": 5, "epochs": 9, "device": "cpu", "precision": "bf16",
    "channels_last": "true", "compile": "true", "deterministic": "true", "cudnn_benchmark": "false",
    "accumulate": 3, "scale_lr": "sqrt", "scale_lr_batch": 7, "layer_decay": 0.5,
    "lr_backbone": 0.5, "decay_norms": "false", "ema": 0.5, "ema_warmup": "true", "grad_clip": 3,
    "patience": 4, "save_every": 5, "save_every_minutes": 3, "keep": 9, "monitor": "val/loss:min",
    "batch_size": 7, "workers": 2, "pin_memory": "true",
    "log_every": 7, "max_train_batches": 3, "max_val_batches": 3, "skip_nonfinite": 4,
    "evaluate_at_end": "test",
}  # fmt: skip
"""Another value of each setting of a run."""
OF_THE_COMMAND = {"resume", "init_from", "run_dir", "trust", "version"}
MAY_CHANGE = {
    "epochs", "device", "channels_last", "compile", "deterministic", "cudnn_benchmark", "patience",
    "save_every", "save_every_minutes", "keep", "log_every", "max_val_batches", "evaluate_at_end",
    "skip_nonfinite", "workers", "pin_memory",
}  # fmt: skip


def test_each_setting_may_change_or_not(stored: Store) -> None:
    """A new setting is refused unless its rule is ``changeable``: then it is added here."""
    run = stored("model=resnet34")
    assert {*RUN_RULES} - {*OTHER} - OF_THE_COMMAND <= {
        key for key in RUN_RULES if not RUN_RULES[key].may_change
    }
    assert {key for key in RUN_RULES if RUN_RULES[key].may_change} >= MAY_CHANGE
    for key, value in OTHER.items():
        words = [f"{key}={value}"]
        if key in MAY_CHANGE:
            assert [*changes(run, *words)] == [key]
        else:
            with user_error("resume", f"{key}"):
                compose([f"resume={run}", *words])


def test_trackers_may_change(stored: Store) -> None:
    run = stored(*WORDS)
    assert changes(run, "logging.mlflow.experiment=b") == {"logging.mlflow.experiment": "b"}
    found = compose([f"resume={run}", "logging=tensorboard"])
    assert [*found.settings["logging"]] == ["tensorboard"]
    assert found.overrides == [*(w for w in WORDS if w[:8] != "logging."), "logging=tensorboard"]


@pytest.mark.long
def test_several_trackers(stored: Store) -> None:
    run = stored(*WORDS)
    own = "sqlite:///runs/own.db"
    assert compose([f"resume={run}", "logging=csv"]).settings["logging"] == {}
    both = compose([f"resume={run}", "logging=[mlflow,tensorboard]"]).settings["logging"]
    assert both["mlflow"]["uri"] == own
    assert [*both] == ["mlflow", "tensorboard"]
    found = compose([f"resume={run}", "logging=tensorboard"])
    assert compose_config(found.overrides).config["logging"] == found.settings["logging"]


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        ("model.bogus=3", "model.bogus", "no key 'model.bogus'"),
        ("epochs=x", "epochs", "expected a whole number"),
        ("+epochs=3", "epochs", "with no +, ~ or @"),
        ("seed=0,1", "seed", "sets several values"),
        ("hydra.verbose=true", "hydra.verbose", "no effect"),
        ("sweep=tpe", "sweep", "its own command"),
        ("init_from=runs/a", "resume", "only one of them"),
        ("trust=[x]", "trust", "dotted names"),
        ("model=none_such", "model", "no model 'none_such'"),
        ("resume=runs/none", "resume", "no such run folder or checkpoint; pass a run folder"),
        ("resume=runs", "checkpoint", "no checkpoint in runs"),
        ("resume=alone/checkpoints/last.pt", "resume", "no config.yaml in alone"),
    ],
)
def test_mistakes(stored: Store, words: str, key: str, said: str) -> None:
    run = stored(*WORDS)
    Path("alone/checkpoints").mkdir(parents=True)
    Path("alone/checkpoints/last.pt").touch()
    with user_error(key, said):
        compose_config([f"resume={run}", *shlex.split(words)])


def test_a_run_outside_runs_names_no_data(stored: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor addresses: it may be somebody else's. What conf/ names itself is not a question."""
    stored(*WORDS)
    stored("model=resnet34", folder="runs/demo_run")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert compose(["resume=../runs/demo_run"]).settings["dataset"]["demo"] is not None
    with user_error("resume", "outside runs/", "dataset.root=data", "own.db") as caught:
        compose(["resume=../runs/a"])
    hint = shlex.split(str(caught.value).partition("say where they are: ")[2])
    found = compose(["resume=../runs/a", *hint]).settings
    assert found["logging"]["mlflow"]["uri"] == "sqlite:///runs/own.db"
    found = compose(["resume=../runs/a", "dataset.root=there", "logging=csv"]).settings
    assert found["dataset"]["root"] == "there"
    assert found["logging"] == {}


def test_what_an_interrupted_run_outside_runs_needs_can_be_typed(stored: Store) -> None:
    run = stored(*WORDS, folder="elsewhere/a")
    config = compose_config([*WORDS, "dataset.cache_dir=there"]).config
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with user_error("resume", "outside runs/"):
        compose([f"resume={run}"])
    needed = words_to_resume(run, config)
    assert needed == ["dataset.root=data", "logging.mlflow.uri='sqlite:///runs/own.db'"]
    assert compose([f"resume={run}", *needed]).settings["dataset"]["root"] == "data"
    own = {**config, "model": {**config["model"], "_target_": "my_models.Net"}}
    assert words_to_resume(run, own) == ["trust=[my_models.Net]", *needed]
    assert words_to_resume(stored(*WORDS), config) == []


def test_lost_and_damaged_files(stored: Store) -> None:
    run = stored(*WORDS)
    before = (run / "overrides.yaml").read_text()
    for text in ("", "{", "- 3", "- model._target_=os.system", "- hydra.run.dir=x"):
        (run / "overrides.yaml").write_text(text)
        assert changes(run, "epochs=9") == {"epochs": 9}
    (run / "overrides.yaml").write_text(before)
    config = (run / "config.yaml").read_text()
    for text in ("", "{", "- 3", config.replace("torch.optim.SGD", "os.system"), "[" * 1500):
        (run / "config.yaml").write_text(text)
        with pytest.raises(UserError) as caught:
            compose([f"resume={run}"])
        assert str(run / "config.yaml") in str(caught.value)
    (run / "config.yaml").write_text(config)
    run = stored("model=resnet34", folder="runs/b")
    assert compose([f"resume={run}"]).name == "its_name"
    (run / "summary.json").write_text('{"name": "a/b"}')
    assert compose([f"resume={run}"]).name == "b"


@pytest.mark.long
def test_without_its_overrides(stored: Store) -> None:
    """Options are then compared in every setting."""
    run = stored(*WORDS)
    (run / "overrides.yaml").unlink()
    assert changes(run, *WORDS) == {}
    for words in (["model=resnet34"], ["model=densenet121"]):
        with user_error("resume", "model."):
            compose([f"resume={run}", *words])


def test_a_run_of_an_earlier_version(stored: Store) -> None:
    run = stored(*WORDS)
    path = run / "config.yaml"
    old = yaml.safe_load(path.read_text())
    now = old["scheduler"]["_target_"]
    old["scheduler"]["_target_"] = now.replace("research.engine.", "research.")
    del old["version"], old["save_every_minutes"]
    path.write_text(yaml.safe_dump(old))
    found = compose([f"resume={run}"]).settings
    assert found["scheduler"]["_target_"] == now
    assert found["save_every_minutes"] == 10.0


def test_options_of_the_users_own(stored: Store) -> None:
    run = stored("model=resnet34")
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"] = {"_target_": "my_models.Net", "width": 3}
    path.write_text(yaml.safe_dump(config))
    (run / "overrides.yaml").write_text("- model=mine")
    Path("options/model").mkdir(parents=True)
    Path("options/model/mine.yaml").write_text("_target_: my_models.Net\nwidth: 8\n")
    with user_error("model._target_", "refused", "add 'trust=[my_models.Net]'"):
        compose([f"resume={run}"])
    assert changes(run, "trust=[my_models.Net]") == {"trust": ["my_models.Net"]}
    for words in ([], ["model=mine"]):
        found = compose([f"resume={run}", *words], Path("options")).settings
        assert found["model"] == {"_target_": "my_models.Net", "width": 3}
        assert found["trust"] == ["my_models.Net"]
    with user_error("--config-dir", "no such folder"):
        compose([f"resume={run}"], Path("none"))


def test_which_words_resume_a_run() -> None:
    runs = {
        "resume=auto": None, "resume=null": None, "resume=": None, "epochs=3": None,
        "resume=a,b": None, "resume=[": None, "resume=a": "a", "resume='a b'": "a b",
        "resume=7": "7", "resume=runs/a/checkpoints/e=1.pt": None,
    }  # fmt: skip
    for word, expected in runs.items():
        assert run_of(["seed=1", word]) == expected, word
    assert run_of(["resume=a", "resume=b"]) == "b"


def test_the_configuration_is_shown(
    stored: Store, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored(*WORDS)
    train(f"resume={run}", "epochs=7", "--cfg", "job")
    shown = yaml.safe_load(capsys.readouterr().out)
    assert dict(leaves(shown)) == dict(leaves(compose([f"resume={run}", "epochs=7"]).settings))
    train(f"resume={run}", "epochs=7", "--cfg", "job", "--package", "model.growth_rate")
    assert capsys.readouterr().out == "8\n"
    train(f"resume={run}", "epochs=7", "--help")
    said = capsys.readouterr().out
    assert f"resume={run} continues this run" in said
    assert "model.growth_rate=8" in said
    assert "  epochs             7 " in said
    for key in (*MAY_CHANGE, "logging"):
        assert key in said.partition("Groups")[0]
    for flags in (["--cfg", "hydra"], ["--info"], ["--config-name", "x"]):
        with pytest.raises(SystemExit):
            train(f"resume={run}", *flags)
        assert capsys.readouterr().err.startswith("error: ")
