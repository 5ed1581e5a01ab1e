"""The command, and that the candidates do the work that is timed; their speed is nothing for a
test.
"""

from __future__ import annotations

import importlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from research import benchmark
from research.benchmarks import frames, input, loaders, measure, processes, readers, step, store
from research.benchmarks.options import BenchmarkOptions
from research.config.options import options
from research.utils.errors import UserError
from tests.conftest import SMALL, TINY, data_overrides


@pytest.fixture
def files(folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return sorted((folders / "train").rglob("*.jpg"))[:6]


def test_every_candidate_goes_over_every_file(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def counted(work: Any) -> measure.Candidate:
        def candidate() -> float:
            done.append(work())
            return 1.0

        return candidate

    for module in ("input", "readers", "loaders"):
        monkeypatch.setattr(f"research.benchmarks.{module}.per_unit", counted)
    with ExitStack() as stack:
        for found in (
            {name: route.candidate for name, route in input.routes(files, 32, stack).items()},
            readers.candidates(files),
            loaders.timm_candidates(files, 32, 6) | store.stores(files, stack),
            loaders.timm_candidates(files, 32, 6) | frames.stores(files, stack),
        ):
            assert len(found) >= 3
            assert list(found)[1] == f"{next(iter(found))} (control)"
            for candidate in found.values():
                candidate()
                assert done.pop() % 6 == 0
    assert done == []


def test_values_of_the_readers_are_compared(files: list[Path], tmp_path: Path) -> None:
    turned, other = tmp_path / "turned.jpg", tmp_path / "other.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(files[0]) as picture:
        picture.save(turned, exif=exif)
        picture.save(other)
    (result,) = input.run(BenchmarkOptions(size=64, rounds=1), [*files, turned, other], [])
    assert result.notes[0].startswith("6 of 8 files")
    largest = {row.name: row.columns["largest"] for row in result.rows if row.columns}
    mean = {row.name: row.columns["mean difference"] for row in result.rows if row.columns}
    assert largest["PIL + v2"] == largest["timm"] == 0
    assert largest["pixels"] <= 1
    assert mean["torchvision.io + v2"] == mean["simplejpeg + v2"] < 0.2
    assert mean["simplejpeg + cv2, not antialiased"] > 0.2
    windows = [mean[f"bitstream, window {window}"] for window in (8, 4, 2)]
    assert 0 < windows[0] < windows[1] < windows[2]
    assert "bitstream, window 8, integers" not in mean


def test_every_benchmark_has_a_module_and_a_line_of_help() -> None:
    for name, each in benchmark.BENCHMARKS.items():
        assert callable(importlib.import_module(f"research.benchmarks.{name}").run)
        assert f"\n  {name} " in benchmark.USAGE
        assert each.help.split()[0] in benchmark.USAGE


def steps(folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The command line of a run of seconds."""
    monkeypatch.chdir(tmp_path)
    return [*SMALL, *TINY, *data_overrides(folders)]


def test_the_same_steps_without_the_seam(
    folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = steps(folders, monkeypatch, tmp_path)
    found = processes.seam(words, 2, 1)
    assert [row.name for row in found.rows] == [
        "without the seam", "without (control)", "with",
    ]  # fmt: skip
    assert all(len(row.seconds) == 1 and row.median > 0 for row in found.rows)
    plain, usual = processes.WithoutSeam(words, 2), processes.Steps(words, 2)
    for each in (plain, usual):
        each.seconds()
    weights = [list(each.experiment.state.model.parameters()) for each in (plain, usual)]
    assert all(map(torch.equal, *weights))


@pytest.mark.whole
def test_processes_side_by_side(
    folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = processes.throughput(steps(folders, monkeypatch, tmp_path), 2, 2)
    assert [row.name for row in found.rows] == [
        "1 process", "1 process (control)", "2 processes, a run each", "2 processes, one run",
    ]  # fmt: skip
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in found.rows)


def test_the_command(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["readers", *map(str, files), "rounds=2", "out=found"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("6 files; 2 rounds; ")
    table = [line for line in printed if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "pyjpegio", "pyjpegio (control)", "jpeglib",
    ]  # fmt: skip
    content = json.loads(Path("found/readers.json").read_text())
    assert content["command"].startswith("python -m research.benchmark readers ")
    assert content["threads"] == torch.get_num_threads()
    assert content["hardware"]["cores"] >= 1
    assert content["packages"]["torch"] == torch.__version__.partition("+")[0]
    (result,) = content["results"]
    assert [len(row["seconds"]) for row in result["rows"]] == [2, 2, 2]
    with Image.open("found/readers.png") as picture:
        assert picture.format == "PNG"
    assert len(list(Path("found").iterdir())) == 2


def test_results_have_a_folder_of_their_own(files: list[Path]) -> None:
    benchmark.main(["readers", *map(str, files[:1]), "rounds=1"])
    (folder,) = Path("runs/benchmarks").iterdir()
    assert folder.name.startswith("readers_")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "pass a NAME"),
        (["store"], "store: pass IMAGES"),
        (["tracking", "x.jpg"], "x.jpg: tracking reads no IMAGES"),
        (["processes", "x.jpg"], "x.jpg: processes reads no IMAGES"),
        (["stores", "x.jpg"], "did you mean"),
        (["store", "x", "round=3"], "round"),
        (["loading", "x.jpg"], "python -m research.benchmark input"),
    ],
)
def test_mistakes(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        benchmark.main(words)


def test_steps_of_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """All those of ``conf/compression``, trained and evaluated on the same images."""
    words = ["dataset.image_size=32", "batch_size=2", "model.name=resnet10t"]
    sizes: dict[bool, list[int]] = {True: [], False: []}
    forward = torch.nn.Linear.forward

    def counted(self: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        sizes[self.training].append(len(inputs))
        return forward(self, inputs)

    networks = step.variants([*words, "compression.window=2"])
    monkeypatch.setattr(torch.nn.Linear, "forward", counted)
    names = [name for name in options("compression") if name != "none"]
    assert [*networks] == ["RGB", "RGB (control)", *names, step.CONTROL]
    weights = networks["block_stem"].network.state_dict()["stem.branches.luma.0.weight"].clone()
    for kind, train in (("training", True), ("inference", False)):
        found = step.compared(kind, networks, getattr(step.Network, kind), 1)
        assert sizes[train] == [2] * 2 * len(networks)  # a round for warm-up, and one
        assert all(row.median > 0 for row in found.rows)
        columns = {row.name: row.columns for row in found.rows}
        assert columns[step.CONTROL]["GFLOP"] < columns["RGB"]["GFLOP"]
        assert columns["RGB"]["batch"] == "2 × 32 px"
    moved = networks["block_stem"].network.state_dict()["stem.branches.luma.0.weight"]
    assert not torch.equal(moved, weights)
    for has_bf16 in (True, False):
        monkeypatch.setattr(step, "has_bf16", lambda device, has=has_bf16: has)
        formats = step.formats(words)
        assert formats["fp32"] is formats["fp32 (control)"]
        precisions = [each.config["precision"] for each in formats.values()]
        assert precisions.count("bf16") == 2 * has_bf16
