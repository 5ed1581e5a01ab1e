"""Checkpoints: whole or not at all, which of them stay, and nothing run that is in them."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file, save_file

import research
from research.config import compose_config, resolved
from research.engine import build, checkpoint, rng, weights_file
from research.engine import run as engine_run
from research.engine.checkpoint import Checkpoints
from research.utils import files, weights
from tests.conftest import TINY, run, user_error
from tests.test_train import assert_same

Compose = Callable[..., dict[str, Any]]


def content(epoch: int) -> dict[str, Any]:
    return {"state": {"epoch": epoch}, "model": {"weight": torch.full((3,), float(epoch))}}


def save(checkpoints: Checkpoints, epoch: int, *, is_best: bool = False) -> str:
    path = checkpoints.path_for(epoch, 1 / epoch, is_best=is_best)
    checkpoints.save(content(epoch), path, is_best=is_best)
    return path


def epoch_of(path: Path) -> int:
    saved = weights.read(path)
    assert torch.equal(saved["model"]["weight"], torch.full((3,), float(saved["state"]["epoch"])))
    return int(saved["state"]["epoch"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- which stay ---------------------------------------------------------------------------------


def test_cadence_and_keep(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, save_every=2, keep=2)
    reported = [save(checkpoints, epoch, is_best=epoch == 3) for epoch in range(1, 10)]
    assert names(folder) == [
        "best.pt", "epoch_006_loss_0.1667.pt", "epoch_008_loss_0.1250.pt", "last.pt", "previous.pt",
    ]  # fmt: skip
    assert [epoch_of(folder / name) for name in names(folder)] == [3, 6, 8, 9, 8]
    assert reported[:4] == [
        "checkpoints/last.pt",
        "checkpoints/epoch_002_loss_0.5000.pt",
        "checkpoints/best.pt",
        "checkpoints/epoch_004_loss_0.2500.pt",
    ]


def test_keep_counts_epochs_not_letters(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, save_every=1, keep=2)
    for epoch in (998, 999, 1000, 1001):
        save(checkpoints, epoch)
    kept = ["epoch_1000_loss_0.0010.pt", "epoch_1001_loss_0.0010.pt", "last.pt", "previous.pt"]
    assert names(tmp_path) == kept


def test_keep_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, save_every=1, keep=0)
    assert save(checkpoints, 1, is_best=True) == f"{tmp_path.name}/best.pt"
    assert save(checkpoints, 2) == f"{tmp_path.name}/last.pt"
    assert names(tmp_path) == ["best.pt", "last.pt", "previous.pt"]
    assert [epoch_of(tmp_path / name) for name in names(tmp_path)] == [1, 2, 1]


@pytest.mark.parametrize("links", [True, False])
def test_the_names_of_an_epoch_share_a_file_where_the_disk_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.EPERM, "no links on this disk")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    checkpoints = Checkpoints(tmp_path, save_every=1, keep=3)
    for epoch in (1, 2):
        save(checkpoints, epoch, is_best=True)
    assert names(tmp_path) == [
        "best.pt", "epoch_001_loss_1.0000.pt", "epoch_002_loss_0.5000.pt", "last.pt", "previous.pt",
    ]  # fmt: skip
    assert [epoch_of(tmp_path / name) for name in names(tmp_path)] == [2, 1, 2, 2, 1]
    assert (tmp_path / "last.pt").stat().st_nlink == (3 if links else 1)
    # A later epoch leaves what shared its file with the last one as it is.
    save(checkpoints, 3)
    assert epoch_of(tmp_path / "best.pt") == 2


# -- whole or not at all ------------------------------------------------------------------------


def full_disk(_: Any, path: Path, *__: Any) -> NoReturn:
    path.write_bytes(b"a part of it")
    raise OSError(errno.ENOSPC, "no space left on device")


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, save_every=9, keep=1)
    save(checkpoints, 1, is_best=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            save(checkpoints, 2, is_best=True)
    assert names(tmp_path) == ["best.pt", "last.pt"]
    assert [epoch_of(tmp_path / name) for name in names(tmp_path)] == [1, 1]
    with pytest.raises(TypeError, match="pickle"):
        checkpoints.save({"hook": (n for n in ())}, "last.pt", is_best=False)
    assert names(tmp_path) == ["best.pt", "last.pt"]
    assert epoch_of(tmp_path / "last.pt") == 1


def test_a_process_that_dies_between_two_names_loses_no_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    checkpoints = Checkpoints(tmp_path, save_every=1, keep=3)
    save(checkpoints, 1, is_best=True)
    replace = os.replace
    for survived in (0, 1, 2):
        left = iter(range(survived))

        def dying(source: Any, target: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", dying)
            with pytest.raises(Killed):
                save(checkpoints, 2, is_best=True)
        # Whoever goes on from last.pt does epoch 2 again, and writes the best one again.
        assert epoch_of(tmp_path / "last.pt") == 1
    save(checkpoints, 2, is_best=True)
    assert epoch_of(tmp_path / "best.pt") == epoch_of(tmp_path / "last.pt") == 2


def test_text_and_weights_are_written_whole_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, about = torch.nn.Linear(2, 3), {"transform": {}}
    weights_file.save(model.state_dict(), tmp_path / "final.safetensors", about)
    files.write_text(tmp_path / "summary.json", "old")
    monkeypatch.setattr(weights_file, "save_file", full_disk)
    monkeypatch.setattr(files, "_write", lambda path, text: full_disk(text, path))
    with pytest.raises(OSError, match="no space"):
        weights_file.save(model.state_dict(), tmp_path / "final.safetensors", about)
    with pytest.raises(OSError, match="no space"):
        files.write_text(tmp_path / "summary.json", "new")
    assert names(tmp_path) == ["final.safetensors", "summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"
    assert torch.equal(load_file(tmp_path / "final.safetensors")["weight"], model.weight)


# -- what comes back ----------------------------------------------------------------------------


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        normal = np.random.standard_normal(3).tolist()  # noqa: NPY002 - the global generator
        return [random.random(), random.gauss(0, 1), normal, torch.randn(3).tolist()]

    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    draw()  # leaves half a pair of normal numbers in two of the generators
    Checkpoints(tmp_path, 1, 0).save({"rng": rng.rng_state()}, "last.pt", is_best=False)
    first = draw()
    assert draw() != first
    rng.set_rng_state(weights.read(tmp_path / "last.pt")["rng"])
    assert draw() == first


def test_a_checkpoint_says_what_it_is_of(small: Compose) -> None:
    config = small(*TINY)
    folder = run(config)
    saved = checkpoint.load(folder / "checkpoints" / "last.pt")
    assert saved["config"] == config
    assert saved["data"] == {"name": "imagefolder", "classes": ["bars", "field", "spots"]}
    assert saved["state"]["epoch"] == 1
    assert saved["ema"] is None
    assert (saved["state"]["samples"], saved["state"]["epoch_losses"]) == (0, {})
    weights = load_file(folder / "checkpoints" / "final.safetensors")
    assert weights.keys() == saved["model"].keys()
    assert all(torch.equal(weights[name], saved["model"][name]) for name in weights)


def test_the_weights_are_a_checkpoint_of_their_own(small: Compose, tmp_path: Path) -> None:
    folder = run(small(*TINY, "epochs=2"))
    last = checkpoint.load(folder / "checkpoints" / "last.pt")
    alone = tmp_path / "elsewhere" / "mine.safetensors"
    alone.parent.mkdir()
    (folder / "checkpoints" / "final.safetensors").rename(alone)
    images = sorted((tmp_path / "data" / "val").rglob("*.jpg"))[::5]
    expected = research.load(folder / "checkpoints" / "last.pt", "cpu")(images)
    shutil.rmtree(folder)
    found = checkpoint.load(alone)
    assert found.keys() < last.keys()
    for part in ("format", "config", "data"):
        assert found[part] == last[part]
    for part in ("model", "transform"):
        assert_same(found[part], dict(last[part]))
    assert found["state"]["epoch"] == 2
    assert found["state"]["history"] == last["state"]["history"][-1:]
    model = research.load(alone, "cpu")
    assert model.classes == ["bars", "field", "spots"]
    assert torch.equal(model(images), expected)

    experiment = build.experiment(small(*TINY, f"init_from={alone}"))
    assert_same(dict(experiment.state.model.state_dict()), found["model"])
    with user_error("resume", "mine.safetensors contains only weights", "init_from="):
        engine_run.resume(alone, small(*TINY, "epochs=3"))


def test_foreign_weights_start_a_run_and_no_more(small: Compose, tmp_path: Path) -> None:
    config = small(*TINY)
    state = build.experiment(config).state.model.state_dict()
    state = {name: tensor + 1 for name, tensor in state.items()}
    foreign = tmp_path / "foreign.safetensors"
    save_file(state, foreign, {"format": "pt", "author": "somebody"})
    experiment = build.experiment({**config, "init_from": str(foreign)})
    assert_same(dict(experiment.state.model.state_dict()), state)
    assert checkpoint.read(foreign).keys() == state.keys()
    with user_error("checkpoint", "foreign.safetensors: not a checkpoint of this"):
        research.load(foreign)


@pytest.mark.parametrize(
    "about",
    ["", "no JSON", "[]", "{}", '{"format": 1, "transform": 3}', "[" * 100_000,
     '{"transform": {"a": {"dtype": "load", "shape": [1], "values": [1]}}}',
     '{"transform": {"a": {"dtype": "float32", "shape": [3], "values": [1]}}}',
     '{"transform": {"a": {"dtype": "float32", "shape": [1], "values": ["x"]}}}'],
)  # fmt: skip
def test_damaged_metadata_is_one_line(tmp_path: Path, about: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {weights_file.METADATA_KEY: about})
    with user_error("checkpoint", "a.safetensors: damaged file (its metadata or checksum)"):
        checkpoint.load(path)
    save_file(
        {"weight": torch.zeros(3)},
        path,
        {weights_file.METADATA_KEY: '{"format": 1, "transform": {}}'},
    )
    with user_error("checkpoint", "a.safetensors: not a checkpoint", "(format 2)"):
        checkpoint.load(path)


CONFIG = resolved(compose_config([])[0])
FLOATS = arrays(
    st.sampled_from([np.float32, np.float64]),
    array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)
WHOLE = arrays(st.sampled_from([np.int64, np.uint8, np.bool_]), array_shapes(max_side=3))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.one_of(FLOATS, WHOLE), max_size=3))
def test_the_transform_comes_back_bit_by_bit(tmp_path: Path, values: list[Any]) -> None:
    transform = {str(number): torch.from_numpy(np.array(v)) for number, v in enumerate(values)}
    path = tmp_path / "a.safetensors"
    state = {"epoch": 0, "step": 0, "best": None, "best_epoch": 0, "history": []}
    header = {"config": CONFIG, "data": {"classes": []}, "state": state, "transform": transform}
    weights_file.save(torch.nn.Linear(1, 1).state_dict(), path, header)
    found = checkpoint.load(path)["transform"]
    assert found.keys() == transform.keys()
    for name, tensor in transform.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].nan_to_num(7), tensor.nan_to_num(7))
        assert torch.equal(found[name].isnan(), tensor.isnan())


def test_find(tmp_path: Path) -> None:
    with user_error("checkpoint", f"no checkpoint in {tmp_path}", "checkpoints/best.pt"):
        checkpoint.find(tmp_path)
    save(Checkpoints(tmp_path / "checkpoints", 1, 1), 1)
    last = tmp_path / "checkpoints" / "last.pt"
    assert checkpoint.find(tmp_path) == checkpoint.find(tmp_path, "last") == last
    named = tmp_path / "checkpoints" / "epoch_001_loss_1.0000.pt"
    assert checkpoint.find(named) == named


# -- what is refused ----------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


class Custom:
    """A harmless object of a class of one's own."""


def poison(folder: Path, value: Any) -> None:
    """Put an object beside the weights of a run's checkpoints."""
    saved = checkpoint.load(folder / "checkpoints" / "last.pt")
    for name in ("best.pt", "last.pt"):
        (folder / "checkpoints" / name).unlink()
        torch.save({**saved, "note": value}, folder / "checkpoints" / name)


@pytest.mark.parametrize("kind", ["payload", "custom class", "path"])
def test_pickled_objects_are_refused_everywhere(small: Compose, tmp_path: Path, kind: str) -> None:
    folder = run(small(*TINY, "run_dir=poisoned"))
    executed = tmp_path / "executed"
    values = {"payload": Payload(executed), "custom class": Custom(), "path": Path("x")}
    poison(folder, values[kind])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    reads: list[Callable[[], Any]] = [
        lambda: checkpoint.load(folder / "checkpoints" / "last.pt"),
        lambda: run(small(*TINY, "epochs=2", f"resume={folder}")),
        lambda: run(small(*TINY, "epochs=2", "resume=auto", "run_dir=poisoned")),
        lambda: build.experiment(small(*TINY, f"init_from={folder}")),
        lambda: build.experiment(small(*TINY, f"init_from={folder}/checkpoints/best.pt")),
        lambda: research.load(folder),
    ]
    for read in reads:
        with user_error("checkpoint", "pickled objects", ".pt"):
            read()
    assert not executed.exists()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before  # the run's files are as they were


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_one_line(tmp_path: Path, share: float) -> None:
    save(Checkpoints(tmp_path, 1, 0), 1)
    path = tmp_path / "last.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with user_error("checkpoint", "last.pt: ", "damaged"):
        checkpoint.load(path)


def test_a_foreign_file_is_one_line(tmp_path: Path) -> None:
    bare = {"conv.weight": torch.zeros(3)}
    torch.save(bare, tmp_path / "weights.pt")
    torch.save({**bare, "format": 99}, tmp_path / "later.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "page.pt").write_text("<html>not found</html>\n" * 9)
    expected = {
        "weights.pt": ("not a checkpoint of this project", "model.pretrained"),
        "later.pt": ("not a checkpoint of this project",),
        "list.pt": ("no state dict",),
        "page.pt": ("pickled objects",),
        "none.pt": ("no file",),
    }
    for name, words in expected.items():
        with user_error("checkpoint", name, *words):
            checkpoint.load(tmp_path / name)
