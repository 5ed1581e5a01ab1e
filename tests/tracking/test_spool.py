"""The spool and the tables of a run folder, also damaged: nothing that is whole is lost."""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from research.tracking.files import FileTracker, read_rows
from research.tracking.mlflow import MLflowTracker
from research.tracking.spool import LONGEST_LINE, NAME, REFUSED, Spool, read_run_id
from research.tracking.tracker import Position, Run

AT_END = Position(9, step=9)


def row(step: int) -> dict[str, Any]:
    return {"epoch": 1, "step": step, "time": step, "metrics": {"batch/loss": step / 8}}


def filled(folder: Path, *lines: bytes) -> Spool:
    (folder / NAME).write_bytes(b"".join(line + b"\n" for line in lines))
    spool = Spool(folder)
    spool.load(AT_END)
    return spool


def line(step: int) -> bytes:
    return json.dumps(row(step)).encode()


DAMAGED = {
    "a byte": line(2).replace(b"loss", b"lo\xffs"),
    "NUL": b"\0" * 50,
    "not JSON": line(2)[:-3],
    "a list": b"[1, 2]",
    "a number": b"7",
    "no step": b'{"metrics": {}, "time": 1}',
    "a step in words": b'{"metrics": {}, "time": 1, "step": "1"}',
    "a large step": b'{"metrics": {}, "time": 1, "step": 99999999999999999999}',
    "a large value": b'{"metrics": {"a": %s}, "time": 1, "step": 1}' % (b"9" * 400),
    "too many digits": b'{"metrics": {"a": %s}, "time": 1, "step": 1}' % (b"9" * 5000),
    "a value in words": b'{"metrics": {"a": "x"}, "time": 1, "step": 1}',
    "a large epoch": b'{"epoch": 1e999, "metrics": {}, "time": 1, "step": 1}',
    "a path outside": b'{"file": "../x", "folder": null}',
    "a path with NUL": b'{"file": "a\\u0000b"}',
    "a folder that is a number": b'{"file": "a", "folder": 3}',
    "deep": b"[" * 100_000,
    "a long line": b'{"file": "' + b"x" * (2 * LONGEST_LINE) + b'"}',
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_set_aside_and_the_others_are_kept(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = filled(tmp_path, line(1), DAMAGED[kind], line(3))
    assert [record["step"] for record in spool.rows] == [1, 3]
    assert "damaged lines: 1" in caplog.text
    (kept,) = (tmp_path / REFUSED).read_text().splitlines()
    assert json.loads(kept)["reason"] == "damaged"
    assert (tmp_path / NAME).read_bytes().splitlines() == [line(1), line(3)]
    # It is kept, and said once.
    caplog.clear()
    spool.load(AT_END)
    assert (tmp_path / REFUSED).read_text().splitlines() == [kept]
    assert caplog.text == ""


def test_a_last_line_that_a_kill_cut_short_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_bytes(line(1) + b"\n" + line(2)[:20])
    spool = Spool(tmp_path)
    spool.load(AT_END)
    assert [record["step"] for record in spool.rows] == [1]
    (tmp_path / NAME).write_bytes(line(1) + b"\n" + line(2))  # whole, without its end of line
    spool.load(AT_END)
    assert [record["step"] for record in spool.rows] == [1, 2]
    assert caplog.text == ""
    assert not (tmp_path / REFUSED).exists()


def test_refused_records_wait_again_when_the_run_is_resumed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2, 3):
        spool.add(row(step))
    spool.add({"file": "pictures/a.png", "folder": "pictures"})
    spool.add({"file": "pictures/a.png", "folder": "pictures"})  # uploaded once
    assert len(spool) == 4
    spool.refuse({"tag": "a@b", "value": "1"}, "a name")
    spool.refuse_all("the run was deleted")
    assert (len(spool), spool.refused) == (0, 5)
    spool.save()
    assert not (tmp_path / NAME).exists()
    again = Spool(tmp_path)
    again.load(Position(0, step=2))
    assert [record["step"] for record in again.rows] == [1, 2]
    assert [record["file"] for record in again.files] == ["pictures/a.png"]
    assert again.reasons == {"a name", "the run was deleted"}
    assert not (tmp_path / REFUSED).exists()


def test_a_spool_that_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()
    spool = Spool(tmp_path)
    for step in (1, 2):
        spool.add(row(step))
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / NAME).rmdir()
    spool.add(row(3))
    assert (tmp_path / NAME).read_bytes().splitlines() == [line(1), line(2), line(3)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../x", b"a b", b"x" * 300, b"\0"])
def test_a_damaged_run_id_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mlflow_run_id").write_bytes(content)
    assert read_run_id(tmp_path) == ""
    (tmp_path / "mlflow_run_id").write_text("0123abcd\n")
    assert read_run_id(tmp_path) == "0123abcd"


# -- tables ---------------------------------------------------------------------------------------

HEAD = b"epoch,batch,loss"


def resumed(folder: Path, content: bytes) -> bytes:
    """The table of batches after a run with this one is resumed."""
    path = folder / "batch_metrics.csv"
    path.write_bytes(content)
    FileTracker().start(Run(folder, "run", {}, resumed=Position(2, step=4)))
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize(
    "bad",
    [b"1,\xff,0.5", b"\0\0\0", b"1,2", b"1,2,3,4", b"x,1,0.5", b',1,"0.5', b"9" * 5000 + b",1,2",
     b"1,1," + b"7" * 200_000, b"\xc2\xb2,1,2", b"1\r2,1,3"],
)  # fmt: skip
def test_a_damaged_row_is_moved_to_a_file_of_its_own(
    bad: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = HEAD + b"\n1,1,0.5\n%s2,1,0.25\n"
    assert resumed(tmp_path, whole % (bad + b"\n")) == whole % b""
    assert (tmp_path / "batch_metrics.csv.damaged").read_bytes() == bad + b"\n"
    assert "damaged lines: 1" in caplog.text


@pytest.mark.parametrize("head", [b"\xff", b"a,b,c", b"epoch,epoch,loss", b"", b"\0"])
def test_a_table_without_a_head_is_moved(head: bytes, tmp_path: Path) -> None:
    assert resumed(tmp_path, head + b"\n1,1,0.5\n") == b""
    assert (tmp_path / "batch_metrics.csv.damaged").read_bytes() == head + b"\n1,1,0.5\n"
    assert resumed(tmp_path, b"") == resumed(tmp_path, HEAD) == b""


def test_rows_of_a_damaged_table_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "epoch_metrics.csv"
    path.write_bytes(b'epoch,note\r\n1,"a,b"\r\n2,\xff\r\n3,c\r\n4')
    assert read_rows(path) == [{"epoch": "1", "note": "a,b"}, {"epoch": "3", "note": "c"}]
    assert caplog.messages == [f"{path}: damaged lines: 1, ignored"]
    assert read_rows(tmp_path) == []


# -- mutations ------------------------------------------------------------------------------------


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content after a few changes of any kind."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 40))
            case 3:
                data[at:at] = rng.choice([b"\0", b"\n", b'"', b"[" * 5000, b"{", b"1e999", b"-"])
            case 4:
                del data[at : at + rng.randint(1, 60)]
            case 5:
                data[at:at] = data[rng.randrange(len(data) + 1) :][:200]
            case _:
                data[at:at] = rng.choice([b"9" * 6000, b"null", b"NaN", b"\\ud800", b"\xf0\x9f"])
    return bytes(data)


def use(folder: Path, spool: bytes, refused: bytes, table: bytes, dead: str) -> None:
    """Resume the records of a run folder with these files, and add to them."""
    (folder / NAME).write_bytes(spool)
    (folder / REFUSED).write_bytes(refused)
    (folder / "mlflow_run_id").write_bytes(table[:30])
    for name in ("batch", "epoch"):
        (folder / f"{name}_metrics.csv").write_bytes(table)
    run = Run(
        folder, "run", {"a": 1}, resumed=Position(2, step=4), state={"mlflow_run_id": "0" * 32}
    )
    for tracker in (FileTracker(), MLflowTracker(dead, "x", system_metrics=False)):
        tracker.start(run)
        tracker.log("batch", 5, {"epoch": 3, "batch": 1, "loss": 0.5})
        tracker.log("epoch", 3, {"epoch": 3, "val/loss": 0.5})
        tracker.finish("FINISHED")
    read_rows(folder / "batch_metrics.csv")


def fuzz(seeds: range, folder: Path, dead: str) -> None:
    refused = b"".join(
        json.dumps({"reason": "a name", "record": json.loads(line(n))}).encode() + b"\n"
        for n in range(3)
    ) + b'{"reason": "damaged", "line": "x"}\n'  # fmt: skip
    spool = b"".join(line(n) + b"\n" for n in range(20)) + b'{"file": "a", "folder": null}\n'
    table = HEAD + b"".join(b"\n%d,%d,0.5" % (n // 5, n % 5) for n in range(20)) + b"\n"
    import mlflow.tracking  # noqa: F401 # which takes seconds

    for seed in seeds:
        rng = random.Random(seed)
        start, begin = time.process_time(), time.monotonic()
        use(folder, *(mutated(content, rng) for content in (spool, refused, table)), dead)
        assert time.process_time() - start < 2, seed
        assert time.monotonic() - begin < 30, seed  # other processes use the cores as well


def test_mutated_files(tmp_path: Path, dead: str) -> None:
    fuzz(range(20), tmp_path, dead)


@pytest.mark.whole
def test_two_thousand_mutated_files(tmp_path: Path, dead: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(range(20, 2020), tmp_path, dead)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 * 1024  # KiB
