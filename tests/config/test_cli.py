"""Command lines of the commands, in this process; ``test_commands.py`` runs them in their own."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from research import inspect, summary
from research.config import cli, outputs
from research.config.rules import COUNT, DEVICE, PATH, TEXT, TRUTH, number
from research.utils.errors import UserError
from tests.conftest import ROOT, TINY, evaluated, run, user_error, verb

Compose = Callable[..., dict[str, Any]]


def test_paths_first_then_settings() -> None:
    assert cli.split(["a", "b.jpg", "x=1", "y.z=[1,2]"]) == (["a", "b.jpg"], ["x=1", "y.z=[1,2]"])
    assert cli.split(["./a=b", "/c=d", "x=1"]) == (["./a=b", "/c=d"], ["x=1"])
    assert cli.split([]) == ([], [])


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["a", "x=1", "b"], "b", "b: paths come before"),
        (["x=1", "./b=c"], "./b=c", "./b=c: paths come before"),
        (["a", "-v"], "-v", "unknown flag -v"),
        (["--split=val"], "--split=val", "unknown flag --split=val"),
    ],
)
def test_the_wrong_order_and_flags_are_refused(words: list[str], key: str, message: str) -> None:
    with user_error(key, message):
        cli.split(words)


def test_a_command_of_settings_takes_no_path() -> None:
    cli.no_paths([])
    with user_error("resnet34", "key=value"):
        cli.no_paths(["resnet34"])


def test_a_choice() -> None:
    assert cli.choose("split", "val", ["val", "train"]) == "val"
    with user_error("split", "split=vla", "did you mean 'val'", "val, train"):
        cli.choose("split", "vla", ["val", "train"])
    with user_error("split", "split=zzz", "val, train") as caught:
        cli.choose("split", "zzz", ["val", "train"])
    assert "did you mean" not in str(caught.value)


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
    assert capsys.readouterr() == ("", "interrupted by SIGINT\n")
    monkeypatch.setattr(sys, "argv", ["command", "a"])
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        cli.command("the usage", broken)


@pytest.mark.parametrize(
    ("command", "words", "key", "message"),
    [
        (verb("evaluate"), ["run", "splt=val"], "splt", "'split'"),
        (verb("evaluate"), ["run", "split=vel"], "split", "'val'"),
        (verb("evaluate"), ["run", "checkpoint=bst"], "checkpoint", "'best'"),
        (verb("evaluate"), ["run", "devise=cpu"], "devise", "'device'"),
        (verb("evaluate"), ["split=val"], "RUN", "one RUN"),
        (verb("evaluate"), ["a", "b"], "RUN", "one RUN"),
        (verb("evaluate"), ["nowhere"], "checkpoint", "nowhere"),
        (inspect, ["out=x"], "IMAGES", "IMAGES"),
        (inspect, ["nowhere.jpg"], "IMAGES", "nowhere.jpg"),
        (inspect, ["nowhere.jpg", "ot=x"], "ot", "'out'"),
        (inspect, ["data/val", "compresion.window=2"], "compresion.window", "'compression.window'"),
        (inspect, ["data/val", "compression.window=9"], "compression.window", "from 1 to 8"),
        (inspect, ["data/val", "model=resnet34"], "compression", "nothing to inspect"),
        (summary, ["modle=resnet34"], "modle", "'model'"),
        (summary, ["model=resnet34,resnet43"], "model", "'resnet34'"),
        (summary, ["compression.window=1,9"], "compression.window", "compression.window=9"),
        (summary, ["resnet34"], "resnet34", "key=value"),
    ],
)
def test_mistakes(small: Compose, command: Any, words: list[str], key: str, message: str) -> None:
    with user_error(key, message):
        command.main(words)


def test_settings_of_a_trained_run(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(small(*TINY, "dataset.max_val_images=6", "tags.a=b"))
    whole = evaluated(folder, "val", "best", "dataset.max_val_images=null")
    assert set(whole.logged) == {"loss", "top1", "ece"}
    assert whole.metrics != whole.logged  # of 12 images; the run used 6
    for word, message in (
        ("dataset.batch_sise=3", "'batch_size'"),
        ("batch_sise=3", "'batch_size'"),
        ("batch_size=many", "a whole number"),
        ("batch_size=null", "a whole number"),
        ("dataset.train_dirs=[a", "not YAML"),
        ("dataset=demo", "dataset.KEY=value"),
        ("model._target_=os.system", "allowed here are"),
        ("dataset.train_dirs=[nowhere]", "nowhere"),
    ):
        with user_error(word.partition("=")[0], message):
            evaluated(folder, "val", "best", word)
    with user_error("checkpoint", "the weights do not fit"):
        evaluated(folder, "val", "best", "compression.window=2")
    with user_error("device", "device=tpu", "auto, cpu"):
        verb("evaluate").main([str(folder), "device=tpu"])
    assert capsys.readouterr().out == ""


def test_evaluate_prints_json_alone(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(small(*TINY))
    capsys.readouterr()
    verb("evaluate").main([str(folder), "device=cpu", "split=train", "batch_size=5"])
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
    images = inspect.find_images([str(tmp_path / "a.webp"), str(tmp_path / "b")])
    assert [path.name for path in images] == ["a.webp", "1.JPG", "2.png"]
    (tmp_path / "c").mkdir()
    with user_error("IMAGES", "no image files", "c"):
        inspect.find_images([str(tmp_path / "c")])


# -- options ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    device: str = cli.option("auto", DEVICE, "where")


@dataclass(frozen=True)
class Options(Shared):
    fraction: float = cli.option(0.5, number(at_least=0, at_most=1), "of all")
    rate: float = cli.option(1e-6, number(above=0), "small")
    most: int | None = cli.option(None, COUNT, "limit", placeholder="N")
    show: bool = cli.option(False, TRUTH, "play")
    title: str = cli.option("", TEXT, "text")
    out: Path | None = cli.option(None, PATH, "folder " * 20)
    sizes: tuple[int, ...] = cli.option((1, 8), COUNT, "sizes")
    names: tuple[str, ...] = cli.option((), TEXT, "names", key="split.names")


def test_defaults() -> None:
    paths, options, rest = cli.parse(Options, [])
    assert (paths, rest) == ([], [])
    assert options == Options(
        "auto", 0.5, 1e-6, most=None, show=False, title="", out=None, sizes=(1, 8), names=()
    )


def test_typed_options() -> None:
    words = [
        *("a", "b.jpg", "fraction=1", "rate=2e-5", "most=3", "show=true", "device=cuda:1"),
        *("title=2024", "out=7=b", "sizes=[2, 4]", "split.names=x,y,", "most=4"),
    ]
    assert cli.parse(Options, words) == (
        ["a", "b.jpg"],
        Options(
            "cuda:1", 1, 2e-5, most=4, show=True, title="2024", out=Path("7=b"), sizes=(2, 4),
            names=("x", "y"),
        ),
        [],
    )  # fmt: skip
    for unset in ("most=", "most=null", "out=", "split.names=", "split.names=[]"):
        assert cli.parse(Options, [unset])[1] == Options()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fraction=1.5", "fraction=1.5: expected a number from 0 to 1"),
        ("fraction=", "fraction=: expected a number from 0 to 1"),
        ("fraction=[", "fraction=[: expected a number from 0 to 1"),
        ("fraction=nan", "fraction=nan: expected a number from 0 to 1"),
        ("most=0", "most=0: expected a whole number at least 1"),
        ("most=1e3", "most=1e3: expected a whole number at least 1"),
        ("show=treu", "show=treu; did you mean 'true'? allowed: true, false"),
        ("shwo=true", "no key 'shwo'; did you mean 'show'? see --help"),
        ("sizes=", "sizes=: expected a whole number at least 1, or several separated by commas"),
        ("sizes=2,x", "sizes=2,x: expected a whole number at least 1, or several separated by"),
        ("epochs=3", "no key 'epochs'; the options are fraction, rate, most, show, title, out"),
    ],
)
def test_options_that_are_refused(word: str, message: str) -> None:
    with user_error(word.partition("=")[0], message):
        cli.parse(Options, [word])


def test_settings_of_the_configuration_are_handed_on() -> None:
    words = ["title=a", "dataset.fold=3", "epochs=1"]
    _, options, rest = cli.parse(Options, words, others="")
    assert (options.title, rest) == ("a", words[1:])
    with user_error("epochs", "split.names, device and dataset.KEY"):
        cli.parse(Options, words, others="dataset.")
    # A key of the configuration is no misspelled option, however near.
    assert cli.parse(Options, ["name=a"], others="")[2] == ["name=a"]


@pytest.mark.parametrize(
    "options",
    [
        cli.RunOptions(),
        cli.RunOptions(trust=("own.Net", "own.Loss"), checkpoint="last"),
        cli.RunOptions(device="cuda:1"),
    ],
)
def test_options_are_written_as_they_are_typed(options: cli.RunOptions) -> None:
    words = outputs.typed_options(options)
    assert len(words) == sum(value != usual for value, usual in zip(
        vars(options).values(), vars(cli.RunOptions()).values(), strict=True
    ))  # fmt: skip
    assert cli.parse(cli.RunOptions, words) == ([], options, [])
    typed = shlex.split(outputs.command_of("evaluate", "runs/my run", *words))
    assert typed == ["python", "-m", "research.evaluate", "runs/my run", *words]


def test_the_help_has_every_option_with_its_default() -> None:
    printed = cli.usage("it PATH", "Does it.", Options, "More.").splitlines()
    assert printed[:3] == ["it PATH", "", "Does it."]
    assert printed[3:8] == [
        "  fraction=0.5  of all",
        "  rate=1e-6     small",
        "  most=N        limit",
        "  show=false    play",
        "  title=        text",
    ]
    assert [line[:16].strip() for line in printed[8:]] == [
        "out=", "", "sizes=1,8", "split.names=", "device=auto", "More.",
    ]  # fmt: skip
    assert max(map(len, printed)) <= cli.WIDTH
    assert "\nboth\n  device=auto  where" in cli.usage("it", "Does it.", {"both": Shared})


@pytest.mark.parametrize("command", sorted(path.stem for path in (ROOT / "research").glob("*.py")))
def test_every_line_of_help_fits(command: str) -> None:
    usage = getattr(verb(command), "USAGE", "")
    assert max(map(len, usage.splitlines()), default=0) <= cli.WIDTH
