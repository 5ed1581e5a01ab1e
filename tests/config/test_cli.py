"""The language of the commands, in process; ``test_commands.py`` runs them for real."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from research import evaluate, inspect, summary
from research.config import cli
from research.config.rules import COUNT, DEVICE, TEXT, TRUTH, number
from research.utils.errors import UserError
from tests.conftest import TINY, refusal, run

Compose = Callable[..., dict[str, Any]]


def test_paths_first_then_settings() -> None:
    assert cli.split(["a", "b.jpg", "x=1", "y.z=[1,2]"]) == (["a", "b.jpg"], ["x=1", "y.z=[1,2]"])
    assert cli.split(["./a=b", "/c=d", "x=1"]) == (["./a=b", "/c=d"], ["x=1"])
    assert cli.split([]) == ([], [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "x=1", "b"], "b: paths come before key=value settings"),
        (["x=1", "./b=c"], "./b=c: paths come before key=value settings"),
        (["a", "-v"], "unknown flag -v; settings are written key=value"),
        (["--split=val"], "unknown flag --split=val; settings are written key=value"),
    ],
)
def test_the_wrong_order_and_flags_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.split(words)
    assert told in str(caught.value)


def test_a_command_of_settings_takes_no_path() -> None:
    assert cli.key_values(["a=1"]) == ["a=1"]
    with pytest.raises(UserError, match="resnet34: settings are written key=value"):
        cli.key_values(["resnet34", "a=1"])


def test_own_options_are_told_from_settings_of_the_configuration() -> None:
    known = {"split": "val", "out": "runs/x"}
    values, rest = cli.options(["split=test", "dataset.batch_size=3", "epochs=1"], known)
    assert values == {"split": "test", "out": "runs/x"}
    assert rest == ["dataset.batch_size=3", "epochs=1"]
    assert known == {"split": "val", "out": "runs/x"}
    assert cli.options(["out=a=b"], known)[0]["out"] == "a=b"


def test_a_misspelled_option_is_named() -> None:
    with pytest.raises(UserError, match="no key 'splt'; did you mean 'split'"):
        cli.options(["splt=val"], {"split": "val"})
    # A key of the configuration is none, however near.
    assert cli.options(["device=cpu"], {"devices": "1"}) == ({"devices": "1"}, ["device=cpu"])


def test_a_choice() -> None:
    assert cli.choose("split", "val", ["val", "train"]) == "val"
    with pytest.raises(UserError, match=r"split=vla; did you mean 'val'.*allowed: val, train"):
        cli.choose("split", "vla", ["val", "train"])
    with pytest.raises(UserError) as caught:
        cli.choose("split", "zzz", ["val", "train"])
    assert str(caught.value) == "split=zzz allowed: val, train"


def commanded(monkeypatch: pytest.MonkeyPatch, words: list[str], main: Any) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as stop:
        cli.command("the usage\n", main)
    return stop.value.code


def test_how_a_command_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken(words: list[str]) -> None:
        raise UserError("what", "what, where, what to do")

    def stopped(words: list[str]) -> None:
        raise KeyboardInterrupt

    def broken(words: list[str]) -> None:
        raise ZeroDivisionError

    assert commanded(monkeypatch, ["--help"], broken) == 0
    assert commanded(monkeypatch, ["a", "-h"], broken) == 0
    assert capsys.readouterr() == ("the usage\nthe usage\n", "")
    assert commanded(monkeypatch, [], broken) == 2
    assert capsys.readouterr().out == "the usage\n"
    assert commanded(monkeypatch, ["a"], mistaken) == 2
    assert capsys.readouterr() == ("", "error: what, where, what to do\n")
    assert commanded(monkeypatch, ["a"], stopped) == 130
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "argv", ["command", "a"])
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        cli.command("the usage", broken)


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        (evaluate, ["run", "splt=val"], "no key 'splt'; did you mean 'split'"),
        (evaluate, ["run", "split=vel"], "split=vel; did you mean 'val'"),
        (evaluate, ["run", "checkpoint=bst"], "checkpoint=bst; did you mean 'best'"),
        (evaluate, ["run", "devise=cpu"], "no key 'devise'; did you mean 'device'"),
        (evaluate, ["split=val"], "give one RUN"),
        (evaluate, ["a", "b"], "give one RUN"),
        (evaluate, ["nowhere"], "no checkpoint in nowhere"),
        (inspect, ["out=x"], "give IMAGES"),
        (inspect, ["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (inspect, ["nowhere.jpg", "ot=x"], "no key 'ot'; did you mean 'out'"),
        (inspect, ["data/val", "compresion.window=2"], "did you mean 'compression.window'"),
        (inspect, ["data/val", "compression.window=9"], "compression.window=9: expected"),
        (inspect, ["data/val", "model=resnet34"], "nothing to inspect"),
        (summary, ["modle=resnet34"], "no key 'modle'; did you mean 'model'"),
        (summary, ["model=resnet34,resnet43"], "no model 'resnet43'; did you mean 'resnet34'"),
        (summary, ["compression.window=1,9"], "compression.window=9: expected"),
        (summary, ["resnet34"], "resnet34: settings are written key=value"),
    ],
)
def test_mistakes(small: Compose, command: Any, words: list[str], told: str) -> None:
    assert told in refusal(command.main, words)


def test_settings_of_a_trained_run(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(small(*TINY, "dataset.max_val_images=6", "tags.a=b"))
    whole = evaluate.evaluate(folder, "val", "best", "cpu", ["dataset.max_val_images=null"])
    assert set(whole["logged"]) == {"loss", "top1", "ece"}
    assert whole["metrics"] != whole["logged"]  # of 12 images, where the run judged 6
    for word, told in (
        ("dataset.batch_sise=3", "did you mean 'dataset.batch_size'"),
        ("batch_size=3", "did you mean 'dataset.batch_size'"),
        ("dataset.batch_size=many", "dataset.batch_size=many: expected a whole number"),
        ("dataset.batch_size=null", "dataset.batch_size=null: expected a whole number"),
        ("dataset.train_dirs=[a", "not YAML"),
        ("dataset=demo", "the dataset of a run stays"),
        ("model._target_=os.system", "no key 'model._target_'"),
        ("compression.window=2", "the weights do not fit this model"),
        ("dataset.train_dirs=[nowhere]", "nowhere"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate.evaluate(folder, "val", "best", "cpu", [word])
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="device=tpu: expected one of auto, cpu"):
        evaluate.evaluate(folder, "val", "best", "tpu", [])
    assert capsys.readouterr().out == ""


def test_evaluate_prints_json_alone(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(small(*TINY))
    capsys.readouterr()
    evaluate.main([str(folder), "device=cpu", "split=train", "dataset.batch_size=5"])
    result = json.loads(capsys.readouterr().out)
    assert result["split"] == "train"
    assert result["epoch"] == 1
    assert set(result["metrics"]) == {"loss", "top1", "ece"}
    written = Path(result["files"])
    assert (written / "tables" / "per_class.csv").read_text().startswith("class,support,")
    assert (written / "pictures" / "confusion_matrix.png").stat().st_size > 0


def test_find_images(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "b/notes.txt", "a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = inspect.find_images([str(tmp_path / "a.webp"), str(tmp_path / "b")])
    assert [path.name for path in found] == ["a.webp", "1.JPG", "2.png"]
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="no image files"):
        inspect.find_images([str(tmp_path / "c")])


TYPED = {
    "share": ("0.5", number(at_least=0, at_most=1)),
    "most": ("", COUNT),
    "show": ("false", TRUTH),
    "device": ("auto", DEVICE),
    "out": ("", TEXT),
}


def test_typed_options() -> None:
    assert cli.typed([], TYPED, "it") == {
        "share": 0.5, "most": None, "show": False, "device": "auto", "out": "",
    }  # fmt: skip
    words = ["share=1", "most=3", "show=true", "device=cuda:1", "out=2024", "most=4"]
    assert cli.typed(words, TYPED, "it") == {
        "share": 1, "most": 4, "show": True, "device": "cuda:1", "out": "2024",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("share=1.5", "share=1.5: expected a number from 0 to 1"),
        ("share=", "share=: expected a number from 0 to 1"),
        ("share=[", "share=[: expected a number from 0 to 1"),
        ("share=nan", "share=nan: expected a number from 0 to 1"),
        ("most=0", "most=0: expected a whole number at least 1"),
        ("show=treu", "show=treu; did you mean 'true'? allowed: true, false"),
        ("shwo=true", "no key 'shwo'; did you mean 'show'? see --help"),
        ("epochs=3", "no key 'epochs'; it has share, most, show, device, out"),
    ],
)
def test_typed_options_refuse(word: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.typed([word], TYPED, "it")
    assert str(caught.value) == told
