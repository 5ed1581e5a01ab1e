"""The rules of docs/architecture.md that a parser can check: rooms, verbs, names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

ROOMS: tuple[tuple[str, ...], ...] = (
    ("commands",),
    ("benchmarks", "studies"),
    ("sweeps", "comparison"),
    ("engine",),
    ("tasks",),
    ("inference",),
    ("models",),
    ("demos",),
    ("data",),
    ("batch",),
    ("compression",),
    ("tracking",),
    ("config",),
    ("viz", "utils"),
)
"""From top to bottom; a module imports from its own room and from lower ones. Rooms in one row do
not import each other. ``commands`` are the modules at the top of ``research/``."""
FORMER_COMMANDS = {"judge"}
"""Commands that run under their former name and print the new one."""
VOCABULARY = {
    "": (
        "ABSENT Album BatchJournal Canvas DataSource FeatureLook Form Item Judge Judged Key "
        "LeftOut Lost Made Part Parts PhotoLook Plan Reading Recipe Report Rules Selected Stamp "
        "Standing State Then Trained Watch answer busy claim damage deep detour excuse facts "
        "floor going hold home journal judge judged kept leave mapped misfit move named "
        "objectness occupied panels place placed recall relight restore said share spread "
        "standing take tell there thinned told told_in_one_line trained true without"
    ),
    "data": "half look other RECIPE samples left_out",
    "demos": "RECIPE",
    "engine": "Trial trial report",
    "models": "look",
    "sweeps": "note",
    "tasks": "constant look report",
}
"""Names of classes, functions and constants that gave way to standard ones: in every room, and in
one room alone where the word is the standard one elsewhere."""


class Import(NamedTuple):
    """One import of a module of this project; ``str()`` is what a failing test shows."""

    importer: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def modules() -> dict[str, ast.Module]:
    """Every module below ``research/`` by its dotted name, parsed; packages by their own name."""
    files = sorted((ROOT / "research").rglob("*.py"))
    return {_dotted(file): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> tuple[Import, ...]:
    """All of them: at the top, inside functions, and under ``TYPE_CHECKING``."""
    return tuple(
        Import(importer, node.lineno, imported)
        for importer, tree in modules().items()
        for node in ast.walk(tree)
        for imported in _imported(importer, node)
        if imported != importer
    )


def _imported(importer: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules())
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{importer}:{node.lineno}: imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if inner in modules():
                yield inner
            elif node.module in modules():
                yield str(node.module)


def room(module: str) -> str:
    """``research.data.pairs.lists`` is in ``data``, ``research.train`` among the commands."""
    _, _, path = module.partition(".")
    top = path.partition(".")[0]
    return top if any(top in row for row in ROOMS) else "commands"


def rank(module: str) -> int:
    return next(number for number, row in enumerate(ROOMS) if room(module) in row)


def test_rooms_are_those_of_the_documentation() -> None:
    rooms = {entry.name for entry in (ROOT / "research").iterdir() if (entry / "").is_dir()}
    known = {name for row in ROOMS for name in row} - {"commands", "batch"}
    assert rooms - {"__pycache__"} == known
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^research/$(.*?)^conf/", page, re.MULTILINE | re.DOTALL)
    listed = re.findall(r"(?<=^  )(?:\w+/ {2})*\w+(?:/|\.py)", tree, re.MULTILINE)
    rows = [tuple(re.findall(r"\w+(?=/|\.py)", row)) for row in listed]
    assert rows == [("VERB",), *ROOMS[1:]]


def test_imports_run_downward() -> None:
    upward = [
        str(each)
        for each in imports()
        if room(each.importer) != room(each.imported) and rank(each.importer) >= rank(each.imported)
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for each in imports():
        below[each.importer].add(each.imported)
    # Those that import nothing that is left are taken away, until only cycles are left.
    while free := [name for name, imported in below.items() if not imported & below.keys()]:
        for name in free:
            del below[name]
    assert {name: sorted(imported & below.keys()) for name, imported in below.items()} == {}


def test_the_top_of_research_holds_commands() -> None:
    top = {path.stem for path in (ROOT / "research").glob("*.py")}
    commands = {name for name in top if _is_command(modules().get(f"research.{name}"))}
    assert top - commands == {"__init__", "batch", "lab"}
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (verbs,) = re.findall(r"one module per command: (.*?)\n  \w+/", page, re.DOTALL)
    assert set(re.findall(r"\w+", verbs)) == commands - FORMER_COMMANDS


def _is_command(tree: ast.Module | None) -> bool:
    """True for a module that ends in ``if __name__ == "__main__": cli.command(…)``."""
    last = tree.body[-1] if tree is not None else None
    return isinstance(last, ast.If) and any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.command"
        for node in ast.walk(last)
    )


def _defined() -> Iterator[tuple[str, str, int]]:
    """Name, module and line of every module, class, function and constant."""
    for module, tree in modules().items():
        yield module.rpartition(".")[2], module, 1
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, module, node.lineno
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, module, node.lineno


@pytest.mark.parametrize("scope", VOCABULARY)
def test_no_name_of_the_former_vocabulary_is_left(scope: str) -> None:
    former = set(VOCABULARY[scope].split())
    files = {f"research.{name}" for name in FORMER_COMMANDS} | _packages_of_readers()
    left = [
        f"{module}:{line} {name}"
        for name, module, line in _defined()
        if name.lstrip("_") in former and scope in ("", room(module)) and module not in files
    ]
    assert left == []


def _packages_of_readers() -> set[str]:
    """``data/*/samples.py`` hold the samples of a reader; the method ``samples()`` is gone."""
    return {name for name in modules() if name.endswith(".samples")}


def test_a_name_has_one_meaning() -> None:
    """Of public classes and type aliases; those of arrays are shorthands of their modules."""
    meanings: dict[str, set[str]] = {}
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                meanings.setdefault(node.name, set()).add(module)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                array = "NDArray" in ast.unparse(node.value)
                if name[0].isupper() and not name.isupper() and not array:
                    meanings.setdefault(name, set()).add(ast.unparse(node.value))
    several = {name: sorted(known) for name, known in meanings.items() if len(known) > 1}
    assert {name: known for name, known in several.items() if name[0] != "_"} == {}


def test_modules_and_functions_are_short() -> None:
    """The limits of CONTRIBUTING.md; the loop is read on one page."""
    limits = {"research/engine/loop.py": 260}
    long = []
    for path in sorted((ROOT / "research").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limits.get(name, 400):
            long.append(f"{name}: {lines} lines")
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 80:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert long == []
