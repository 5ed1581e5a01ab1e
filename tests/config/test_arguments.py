"""Keys of a node against the arguments of its class: by Python's rules, before data are read."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from inspect import Parameter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from research.config import arguments, check_jobs, compose_config, register, targets
from research.config.arguments import FilledIn, Given
from research.config.options import option_node, options
from research.utils.errors import UserError
from tests.conftest import ROOT, one_line_of, user_error

GROUPS = ("model", "dataset", "task", "optimizer", "scheduler", "logging")
NAMES = ("a", "b", "c", "d")
KINDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    """Parameters that keys can give, with and without defaults."""
    kinds = sorted(draw(st.lists(st.sampled_from(KINDS), max_size=4)))
    parameters, has_default = [], False
    for name, kind in zip(NAMES, kinds, strict=False):
        is_named = kind is Parameter.KEYWORD_ONLY
        has_default = draw(st.booleans()) or (has_default and not is_named)
        default = None if has_default else Parameter.empty
        parameters.append(Parameter(name, kind, default=default))
    if draw(st.booleans()):
        parameters.append(Parameter("more", Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


@given(signatures(), st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)),
       st.integers(0, 1), st.booleans())  # fmt: skip
def test_it_refuses_what_python_would(
    signature: inspect.Signature, keys: set[str], names: set[str], count: int, is_all: bool
) -> None:
    def make(**_: Any) -> None:
        raise AssertionError("it is not called")

    if count and not any(p.kind is KINDS[0] for p in signature.parameters.values()):
        return
    vars(make)["__signature__"] = signature
    bind = signature.bind if is_all else signature.bind_partial
    refused: Any = nullcontext()
    try:
        bind(*range(count), **dict.fromkeys({*keys, *names}))
    except TypeError:
        refused = pytest.raises(UserError, match="model")
    with refused:
        arguments.check("model", "my.Net", make, keys, Given((*names,), count, is_all))


def packaged() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for group in GROUPS:
        for option in options(group):
            yield group, option, option_node(group, option)


def test_every_packaged_option_fits_its_class_and_a_key_more_does_not() -> None:
    """With what ``build.experiment`` gives in addition; and with one key less than required."""
    required = 0
    for group, option, node in packaged():
        targets.check_arguments({group: node}, ())
        for path, part in targets.target_nodes({group: node}):
            changed = yaml.safe_load(yaml.safe_dump({group: node}))
            inner = changed
            for name in path.split("."):
                inner = inner[name]
            make = targets.locate(path, part, ())
            parameters = inspect.signature(make).parameters.values()
            if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
                continue
            inner["surplus"] = 1
            with user_error(f"{path}.surplus", part, "no such argument", "remove surplus"):
                targets.check_arguments(changed, ())
            del inner["surplus"]
            needed = [
                p.name for p in parameters if p.default is Parameter.empty and p.name in inner
            ]
            for name in needed[:1]:
                del inner[name]
                with user_error(f"{path}.{name}", part, "requires a value", f"add {name}: "):
                    targets.check_arguments(changed, ())
                required += 1
        assert option
    assert required > 20


def test_the_page_names_the_keys_that_are_filled_in() -> None:
    page = (ROOT / "docs/adding.md").read_text(encoding="utf-8")
    sentence = page[page.index("These keys are filled in") :].partition("\n- ")[0]
    assert re.findall(r"`(\w+)`", sentence) == [*FilledIn.__annotations__]


# -- a user's own classes ----------------------------------------------------------------------

MODULE = """
class Net:
    def __init__(self, num_classes, width, *, head=None): ...
class Head:
    def __init__(self, width, count, bias=True): ...
class Lines:
    def __init__(self, file): ...
def function(**settings): ...
value = 3
"""
GOOD = {"_target_": "my_parts.Net", "num_classes": None, "width": 8}
HEAD = {"_target_": "my_parts.Head", "_partial_": True}
FAULTS: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "surplus": (
        "model", {**GOOD, "name": "x", "drop_rate": 0.1}, "model.name",
        ["model.name, model.drop_rate: my_parts.Net() has no such arguments",
         "takes num_classes, width, head); remove name, drop_rate from options/model/mine.yaml"],
    ),
    "missing": (
        "model", {"_target_": "my_parts.Net"}, "model.num_classes",
        ["model.num_classes, model.width: my_parts.Net() requires a value",
         "add num_classes: null, width: VALUE to options/model/mine.yaml"],
    ),
    "both": (
        "model", {"_target_": "my_parts.Net", "num_classes": None, "with": 8}, "model.with",
        ["model.with: my_parts.Net() has no such argument (it", "); model.width: my",
         "remove with from options/model/mine.yaml and add width: VALUE to options"],
    ),
    "in a node below": (
        "model", {**GOOD, "head": {**HEAD, "widht": 3}}, "model.head.widht",
        ["my_parts.Head() has no such argument"],
    ),
    "of a tracker": (
        "logging", {"mine": {"_target_": "my_parts.Lines", "_partial_": True}},
        "logging.mine.file", ["my_parts.Lines() requires a value"],
    ),
    "a task without classes": (
        "task", {"_target_": "my_parts.Lines", "file": "x"}, "task",
        ["my_parts.Lines() is called with classes"],
    ),
    "no class": (
        "model", {"_target_": "my_parts.value"}, "model._target_", ["int, not a class or function"],
    ),
    "a name that is not there": (
        "model", {"_target_": "my_parts.Gone"}, "model._target_", ["there is no such class"],
    ),
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    register()
    sys.path.append(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_parts", None)


def write(project: Path, group: str, node: dict[str, Any]) -> Path:
    file = project / "options" / group / "mine.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(node, sort_keys=False))
    return project / "options"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_in_an_option_is_one_line(fault: str, project: Path) -> None:
    group, node, key, words = FAULTS[fault]
    own = write(project, group, node)
    with user_error(key, *words):
        check_jobs([f"{group}=mine"], multirun=False, own=own)


@pytest.mark.parametrize(
    "node",
    [GOOD, {**GOOD, "head": HEAD}, {**GOOD, "head": {**HEAD, "bias": False}},
     {"_target_": "my_parts.function", "any": 1}],
)  # fmt: skip
def test_a_right_option_is_accepted(node: dict[str, Any], project: Path) -> None:
    check_jobs(["model=mine"], multirun=False, own=write(project, "model", node))


# -- where modules are found --------------------------------------------------------------------

LAB = "from research.lab import main; main()"
STARTS = {
    "train.py": [str(ROOT / "train.py")],
    "the console script": ["-c", f"import sys; del sys.path[0]; {LAB}", "train"],
    "another verb": ["-c", f"import sys; del sys.path[0]; {LAB}", "lr_find"],
}


@pytest.mark.parametrize("start", STARTS)
def test_a_module_of_the_current_folder_is_found(start: str, project: Path) -> None:
    """Last of all: it stands for no installed module. Torch and the data come later."""
    (project / "yaml.py").write_text("raise SystemExit('the wrong yaml')")
    node = {"_target_": "my_parts.Net", "num_classes": None, "widht": 8}
    write(project, "model", node)
    trusted = ["model=fastnet", "model._target_=my_parts.Net", "trust=[my_parts.Net]"]
    words = trusted if start == "another verb" else ["--config-dir", "options", "model=mine"]
    ended = subprocess.run(
        [sys.executable, *STARTS[start], *words],
        capture_output=True, text=True, cwd=project, check=False,
    )  # fmt: skip
    (line,) = ended.stderr.splitlines()
    assert "my_parts.Net() has no such argument" in line
    assert sorted(path.name for path in project.iterdir() if path.name != "__pycache__") == [
        "my_parts.py", "options", "yaml.py",
    ]  # fmt: skip


def test_python_can_be_asked_not_to_look_there(project: Path) -> None:
    code = "import sys; from research.utils.starting import find_modules_here as f; f(); f(); "
    code += "print(sys.path.count(__import__('os').getcwd()), sys.path[-1])"
    for flags, count in (([], 1), (["-P"], 0)):
        shown = subprocess.run(
            [sys.executable, *flags, "-c", code],
            capture_output=True, text=True, cwd=project, check=True,
        ).stdout.split()  # fmt: skip
        assert int(shown[0]) == count
        assert (shown[1] == str(project)) == bool(count)


def test_the_refusal_is_short_and_its_remedy_is_complete(project: Path) -> None:
    config = {
        "model": {**GOOD, "head": HEAD},
        "logging": {"mine": {"_target_": "my_parts.Lines"}, "bad": {"_target_": "os.system"}},
    }
    line = one_line_of(lambda: targets.check_targets(config, ()))
    assert line.endswith("add 'trust=[my_parts.Head,my_parts.Lines,my_parts.Net]'")
    assert len(line) < 200
    for name in ("os.system", "torch.load", "research.utils.files.write_text"):
        with user_error("model._target_", name) as refused:
            targets.check_targets({"model": {"_target_": name}}, ())
        assert "trust" not in str(refused.value)
        assert str(refused.value).count("research.models.") == 3  # of nine


def test_option_files_may_change_in_a_process(project: Path) -> None:
    """As in a notebook: what was read of them before, or of another folder, is not used."""
    for folder, node in (
        ("one", GOOD),
        ("two", {**GOOD, "head": None}),
        ("one", {"_target_": "my_parts.function", "num_classes": None}),
    ):
        own = write(project / folder, "model", node)
        assert compose_config(["model=mine"], own).config["model"] == node
