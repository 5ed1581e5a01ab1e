"""Files that were changed or made to do harm end in one line, soon, and in little memory."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from research import compare, leaderboard
from research.config import compose_config, resolved
from research.engine import checkpoint, run_folder
from research.engine import run as engine_run
from research.engine.run_record import read_record
from research.sweeps import record
from research.utils import documents, weights
from research.utils.errors import Damaged
from tests import fuzz
from tests.conftest import user_error
from tests.fuzz_files import ALIASES, DOCUMENTS, MADE
from tests.test_stored_runs import ASSETS, words_of


@pytest.mark.whole
@pytest.mark.parametrize("first", range(0, 10_000, 1000))
def test_ten_thousand_changed_files(first: int) -> None:
    """Of checkpoints, weights and run folders, by every reader; the figures are in SECURITY.md."""
    last, failed = fuzz.run("tests.fuzz_runs", str(first), "1000")
    assert not failed, failed
    print(last)
    assert last["inputs"] == 1000
    assert last["memory"] < 512


# -- checkpoints made to do harm ------------------------------------------------------------------


def archive(path: Path, pickle: bytes, *, kind: int = zipfile.ZIP_STORED, times: int = 1) -> None:
    """A file as of ``torch.save``, with this pickle and a storage of twelve bytes."""
    with zipfile.ZipFile(path, "w", kind) as file:
        records = {
            "data.pkl": pickle,
            "byteorder": b"little",
            "data/0": bytes(12),
            "version": b"3\n",
        }
        for name, content in records.items():
            for _ in range(times if name == "data/0" else 1):
                file.writestr(f"a/{name}", content)


def tensor(numbers: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The pickle of a dict with one tensor, whose storage claims this many float32 numbers."""

    def whole(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def group(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + whole(numbers)
        + b"tQ"
    )
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(0) + group(shape)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"\x80\x02}X\x01\x00\x00\x00w" + rebuilt + group(strides) + b"\x89" + hooks + b"tRs."


def called(function: bytes) -> bytes:
    """The pickle of a dict with what this function returns for 2^31 - 1."""
    return b"\x80\x02}X\x01\x00\x00\x00wc" + function + b"(J\xff\xff\xff\x7ftRs."


def nested(levels: int) -> bytes:
    """The pickle of lists in lists."""
    return b"\x80\x02}X\x01\x00\x00\x00w" + b"]" * levels + b"a" * (levels - 1) + b"s."


def doubled(times: int) -> bytes:
    """A list of lists of lists; each has the next one ten times."""
    more = b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(times))
    return b"\x80\x02]q\x00" + more + b"X\x01\x00\x00\x00wq\x99}h\x99h%c" % times + b"s."


HARM: dict[str, Callable[[Path], object]] = {
    "more numbers than its record": lambda p: archive(p, tensor(2**31, (2**31,), (1,))),
    "numbers of another record": lambda p: archive(p, tensor(2**20, (2**20,), (1,))),
    "one number, many times": lambda p: archive(p, tensor(3, (10**12,), (0,))),
    "negative sizes": lambda p: archive(p, tensor(3, (-3, -1), (1, 1))),
    "a negative stride": lambda p: archive(p, tensor(3, (3,), (-1,))),
    "a tensor of any size": lambda p: archive(p, called(b"torch\nTensor\n")),
    "bytes of any number": lambda p: archive(p, called(b"builtins\nbytearray\n")),
    "bytes of Python 2": lambda p: archive(p, called(b"__builtin__\nbytearray\n")),
    "bytes without an archive": lambda p: p.write_bytes(called(b"builtins\nbytearray\n")),
    "lists in lists": lambda p: archive(p, nested(20_000)),
    "a list of itself": lambda p: archive(p, b"\x80\x02]q\x00h\x00a}X\x01\x00\x00\x00wh\x00s."),
    "lists that double": lambda p: archive(p, doubled(30)),
    "compressed": lambda p: archive(p, tensor(3, (3,), (1,)), kind=zipfile.ZIP_DEFLATED),
    "a record twice": lambda p: archive(p, tensor(3, (3,), (1,)), times=2),
    "a sparse tensor": lambda p: torch.save({"w": torch.zeros(3).to_sparse()}, p),
    "without data": lambda p: torch.save({"w": torch.zeros(3, device="meta")}, p),
    "no pickle": lambda p: archive(p, b""),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("harm", HARM)
def test_a_harmful_checkpoint_is_one_line(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    HARM[harm](path)
    for read in (weights.read, checkpoint.load, lambda p: weights.state_dict(p, "init_from")):
        verdict = fuzz.judged(lambda: read(path))  # noqa: B023 - at once
        assert verdict.outcome == "refused", verdict
        assert "a.pt" in verdict.where


def test_a_harmless_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    archive(path, tensor(3, (3,), (1,)))
    assert weights.read(path)["w"].tolist() == [0, 0, 0]


# -- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("text", DOCUMENTS)
def test_a_harmful_document_is_one_line(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(DOCUMENTS[text])
    verdict = fuzz.judged(lambda: documents.load(path, dict, "RUN"))
    assert verdict.outcome == "refused", verdict
    assert f"{path}: damaged (" in verdict.where


# -- folders under runs/ --------------------------------------------------------------------------


def rewrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        make(path)

    return change


NAMES = (
    "config.yaml",
    "summary.json",
    "overrides.yaml",
    "epoch_metrics.csv",
    "checkpoints",
    ".lock",
)
BROKEN: dict[str, Callable[[Path], object]] = {
    **{f"{name}: missing": instead(name, lambda path: None) for name in NAMES},
    **{f"{name}: {how}": instead(name, make) for name in NAMES for how, make in MADE.items()},
    **{
        f"{name}: {text}": rewrite(name, content)
        for name in ("config.yaml", "summary.json")
        for text, content in {**DOCUMENTS, "aliases": ALIASES.encode()}.items()
        if len(content) < 2**20 and text not in ("another kind", "digits", "no date")
    },
    "a summary of nothing": rewrite("summary.json", b"{}"),
    "a summary of other things": rewrite(
        "summary.json",
        b'{"status": 3, "epochs_done": "x", "best_epoch": [], "stopped_early": null}',
    ),
    "rows with NUL": rewrite("epoch_metrics.csv", b"epoch,val/loss\n1,\0\n\0,2\n"),
    "rows of no text": rewrite("epoch_metrics.csv", b"epoch,val/loss\n\xff,\xfe\n"),
    "rows without columns": rewrite("epoch_metrics.csv", b"\n1,2,3\n"),
    "a long row": rewrite("epoch_metrics.csv", b"epoch,val/loss\n" + b"x" * 2**21),
    "an open quote": rewrite("epoch_metrics.csv", b'epoch,val/loss\n1,"2\n3,4\n'),
}  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A project with one run, and the configuration of one more epoch of it."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ASSETS / "runs/classification", root / "runs/good")
    words = [*words_of(root / "runs/good"), "epochs=4", "resume=auto"]
    return root, {**resolved(compose_config(words)[0]), "run_dir": None}


def test_a_broken_folder_stops_no_other(
    healthy: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``resume=auto``, ``compare`` and sweeps; what reads the folder itself says one line."""
    config = healthy[1]
    monkeypatch.chdir(tmp_path)
    good = Path("runs/good")
    shutil.copytree(healthy[0] / good, good)
    for number, (broken, change) in enumerate(BROKEN.items()):
        bad = Path(f"runs/broken_{number}")
        shutil.copytree(good, bad)
        change(bad)
        own = {**config, "run_dir": str(bad)}
        for read, allowed in {
            lambda: run_folder.find_unfinished(own, 4): {"accepted"},  # noqa: B023 - at once
            lambda: record._run_keys(bad): {"accepted"},  # noqa: B023
            lambda: read_record(bad): {"accepted", "refused"},  # noqa: B023
        }.items():
            verdict = fuzz.judged(read)
            assert verdict.outcome in allowed, (broken, verdict)
    found = run_folder.find_unfinished(config, 4)
    assert found is not None
    verdict = fuzz.judged(lambda: compare.main(["runs", "out=seen"]), usual=3)
    assert verdict.outcome == "accepted", verdict
    runs = json.loads(Path("seen/comparison.json").read_text())["runs"]
    assert str(good) in [run["run"] for run in runs]
    begin = engine_run.start(config, "next")
    assert begin is not None
    assert begin.folder == found


def test_folders_of_other_things_stop_no_run(
    healthy: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config = healthy
    shutil.copytree(root / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/file").write_text("x")
    (tmp_path / "runs/nowhere").symlink_to("x")
    (tmp_path / "runs/loop").symlink_to("loop")
    (tmp_path / "runs/around").symlink_to(tmp_path / "runs")
    closed = tmp_path / "runs/closed"
    closed.mkdir(mode=0)
    try:
        assert run_folder.find_unfinished(config, 4) == Path("runs/good")
        assert fuzz.judged(lambda: compare.main(["runs", "out=seen"])).outcome == "accepted"
    finally:
        closed.chmod(0o755)


def test_a_damaged_run_among_several_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("stores/frames", "runs/tinydet"):
        shutil.copytree(ASSETS / name, tmp_path / name)
    shutil.copytree(tmp_path / "runs/tinydet", tmp_path / "runs/cut")
    monkeypatch.chdir(tmp_path)
    best = Path("runs/cut/checkpoints/best.pt")
    best.write_bytes(best.read_bytes()[:-99])
    Path("runs/empty").mkdir()
    words = ["rounds=1", "batch=1", "out=seen", "device=cpu"]
    leaderboard.main(["runs/cut", "runs/empty", "runs/tinydet", *words])
    assert len(json.loads(Path("seen/judged.json").read_text())["runs"]) == 1
    assert "skipping runs/cut: runs/cut/checkpoints/best.pt: damaged file" in caplog.text
    assert "use runs/cut/checkpoints/last.pt, which is intact" in caplog.text
    assert "skipping runs/empty: no checkpoint in runs/empty" in caplog.text
    with user_error("checkpoint", "runs/mistyped: no such run or checkpoint"):
        leaderboard.main(["runs/mistyped", "runs/tinydet", *words])
    with pytest.raises(Damaged, match=r"best\.pt: damaged file"):
        leaderboard.main(["runs/empty", "runs/cut", *words])
