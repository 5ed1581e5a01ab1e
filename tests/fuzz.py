"""Mutations of files, and a judge of what is made of them; for tests of any reader of files.

``documents`` changes the structure of plain values and tensors, ``octets`` the bytes of a file,
``pickles`` the pickle in a file of ``torch.save`` with its checksums made right again; changes to
other files are in ``fuzz_files``. ``judged`` runs a reader and reports a traceback, too much time
or too much memory; ``campaign`` does so for many inputs.
"""

from __future__ import annotations

import copy
import faulthandler
import io
import json
import logging
import math
import os
import random
import resource
import struct
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from research.utils.errors import UserError

SECONDS = 2.0
"""Of processor time for one input, beyond what the reader needs for an intact one."""
MEMORY = 512 * 2**20
"""Bytes beyond what the process had."""
HANG = 60
"""Seconds of a clock after which a process ends with its traceback: a reader waits for ever."""

Reader = Callable[[], object]

NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, -1e-9,
    1e308, -1e308, 1e-320, math.nan, math.inf, -math.inf, True, False,
]  # fmt: skip
TEXTS: list[Any] = [
    "", "x", "0", "1e400", "nan", "\0", "\ud800", "\x1b[2J\n", "../../etc/passwd", "/etc", "${x}",
    "${oc.env:HOME}", "os.system", "x" * 20_000, "é" * 300, "null", "[", "val/loss:max", "-1",
]  # fmt: skip


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    node: Any = 1
    for _ in range(levels):
        node = [node]
    return node


PLAIN: list[Any] = [
    *NUMBERS, *TEXTS, None, [], {}, [None], [[]], {"": 0}, {"a": {"b": []}},
    {"_target_": "os.system"},
    deep(30), deep(200), list(range(3000)), {str(n): n for n in range(3000)}, ["x"] * 5000,
]  # fmt: skip
"""Values as JSON and YAML have them."""
PICKLED: list[Any] = [
    (), (1, 2), (None,), b"", b"\xff" * 9, set(), {1, 2}, {1: 2}, {None: 1}, {(1, 2): 3}, 1j,
    bytearray(3), torch.float16, torch.Size([2, 3]), torch.device("cpu"), torch.device("meta"),
]  # fmt: skip
"""More values that ``torch.load(weights_only=True)`` accepts."""


def tensors() -> list[Any]:
    """Tensors of many kinds, most of which no checkpoint has."""
    small = torch.zeros(3)
    return [
        small, torch.tensor(0.5), torch.tensor(-1.0), torch.tensor(math.nan), torch.tensor(10**18),
        torch.zeros(0), torch.zeros(0, 3), torch.zeros(2, 3, dtype=torch.float64), small.bool(),
        torch.zeros(3, dtype=torch.complex64), torch.zeros(1).expand(10**12), small.to_sparse(),
        torch.zeros(1).as_strided((2**31, 2**31), (0, 0)), torch.zeros(5056, dtype=torch.uint8),
        torch.full((5056,), 255, dtype=torch.uint8), torch.zeros(3, dtype=torch.bfloat16),
        torch.nn.Parameter(small), torch.zeros((1,) * 60), torch.zeros(3, device="meta"),
    ]  # fmt: skip


def places(node: Any, rng: random.Random) -> list[Any]:
    """A random path into a document: keys and indices."""
    path: list[Any] = []
    while isinstance(node, dict | list | tuple) and len(node) and (not path or rng.random() < 0.8):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append(key)
        node = node[key]
    return path


def documents(document: Any, rng: random.Random, *, pickled: bool = False) -> Any:
    """A copy of a document with one to three changes, which may have any values of JSON.

    Args:
        document: dicts, lists, plain values and tensors.
        rng: source of the changes.
        pickled: whether values that only a pickle has are put in as well.
    """
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = places(changed, rng)
        if not path:
            return rng.choice(PLAIN)
        changed = _replaced(changed, path, rng, pickled)
    return changed


def _replaced(node: Any, path: list[Any], rng: random.Random, pickled: bool) -> Any:
    key, *below = path
    if isinstance(node, tuple):
        return tuple(_replaced(list(node), path, rng, pickled))
    if below:
        node[key] = _replaced(node[key], below, rng, pickled)
        return node
    action = rng.random()
    if action < 0.15:
        del node[key]
    elif action < 0.25 and isinstance(node, dict):
        node[rng.choice([f"{key}x", 3 if pickled else "3", ""])] = node.pop(key)
    elif action < 0.3 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif action < 0.35 and isinstance(node, dict):
        node[rng.choice(("extra", "_target_", "version", "0"))] = copy.deepcopy(rng.choice(PLAIN))
    else:
        node[key] = _other(node[key], rng, pickled)
    return node


def _other(value: Any, rng: random.Random, pickled: bool) -> Any:
    """Another value: a near one, or any."""
    if isinstance(value, torch.Tensor) and rng.random() < 0.6:
        near: list[Callable[[], Any]] = [
            lambda: value.double() if value.is_floating_point() else value.float(),
            lambda: value.flatten()[:-1], lambda: value[None], lambda: value.flatten(),
            lambda: torch.full_like(value, 255), lambda: -value.float(),
            lambda: value * math.nan,
            lambda: value.flatten()[:1].expand(10**9), lambda: [value], lambda: value.tolist(),
        ]  # fmt: skip
        return rng.choice(near)()
    if type(value) in (int, float) and rng.random() < 0.5:
        decimal = float(value) if abs(value) < 1e300 else math.inf
        return rng.choice([value + 1, value - 1, -value, value * 1000, str(value), decimal])
    if isinstance(value, dict | list) and rng.random() < 0.3:
        return rng.choice([[value], {"a": value}, list(value)[:1], len(value)])
    kinds = [PLAIN, PLAIN, PICKLED, tensors()] if pickled else [PLAIN]
    return copy.deepcopy(rng.choice(rng.choice(kinds)))


def octets(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a file after damage: flips, a cut, a hole, an insertion, a part twice."""
    changed = bytearray(data)
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 7, 64, 512, 4096))
    kind = rng.randrange(8)
    if kind < 3 and changed:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del changed[at:]
    elif kind == 4:
        changed[at : at + size] = bytes(len(changed[at : at + size]))
    elif kind == 5:
        changed[at:at] = rng.randbytes(size)
    elif kind == 6:
        changed[at:at] = changed[at : at + size]
    else:
        del changed[at : at + size]
    return bytes(changed)


def pickles(data: bytes, rng: random.Random) -> bytes:
    """A file of ``torch.save`` whose pickle or whose other records are damaged, checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        records = {info.filename: old.read(info) for info in old.infolist()}
        pickle = next(name for name in records if name.endswith("/data.pkl"))
        name = pickle if rng.random() < 0.8 else rng.choice(list(records))
        content = records[name]
        if name == pickle and rng.random() < 0.3:  # a size: four bytes, after BININT
            spots = [at for at in range(len(content) - 5) if content[at : at + 1] in b"JKM"]
            at = rng.choice(spots)
            wrong = struct.pack("<i", rng.choice((0, -1, 1, 2**20, 2**31 - 1, -(2**31))))
            content = content[:at] + b"J" + wrong + content[at + 5 :]
        else:
            content = octets(content, rng)
        if rng.random() < 0.1:
            records.pop(rng.choice(list(records)))
        records[name] = content
        for each, text in records.items():
            new.writestr(zipfile.ZipInfo(each), text)
    return out.getvalue()


@dataclass
class Verdict:
    """What a reader made of an input.

    Attributes:
        outcome: ``accepted``, ``refused``, or how it failed.
        seconds: of processor time.
        where: the line of a refusal, or the last lines of a traceback.
    """

    outcome: str
    seconds: float
    where: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome not in ("accepted", "refused")


def judged(read: Callable[[], object], usual: float = 0.0) -> Verdict:
    """Run a reader, and judge what it does.

    Args:
        read: reads a file that may have been changed.
        usual: seconds that it needs for an intact file.
    """
    said, where, before = io.StringIO(), "", peak()
    start = time.process_time()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            read()
        outcome = "accepted"
    except UserError as error:
        where = str(error)
        outcome = "refused" if "\n" not in where else "several lines"
    except SystemExit:
        outcome, where = "refused", said.getvalue().strip().rpartition("\n")[2]
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:120]}"
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "research" in f.filename]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    seconds = time.process_time() - start
    if seconds > usual + SECONDS:
        outcome = f"{outcome}, after {seconds:.1f} s"
    if peak() - before > MEMORY:
        outcome = f"{outcome}, with {(peak() - before) / 2**20:.0f} MB"
    return Verdict(outcome, seconds, where)


def peak() -> int:
    """Most bytes of memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def limited_memory(more: int = MEMORY) -> Iterator[None]:
    """Allow this process the address space that it has and ``more`` bytes, not more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def seeds(first: int, count: int) -> Iterator[tuple[int, random.Random]]:
    """Numbers, and the generator of each."""
    for seed in range(first, first + count):
        yield seed, random.Random(seed)


def campaign(
    case: Callable[[random.Random], tuple[str, Reader]],
    intact: Callable[[], Mapping[str, float]],
    first: int,
    count: int,
) -> None:
    """Judge many inputs in a process of its own, and print a JSON object a line.

    The objects are the seed before each input, what came of it if it failed, and at the end the
    counts, the longest time and the memory.

    Args:
        case: makes an input and a reader of it, named ``KIND: READER``.
        intact: runs all readers on intact input, which they must accept; seconds by READER.
        first: the first seed.
        count: number of seeds.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "w")

    def say(**words: Any) -> None:
        print(json.dumps(words), file=out, flush=True)

    intact()  # imports libraries
    usual = intact()
    say(intact=usual)
    before, outcomes, longest = peak(), Counter[str](), 0.0
    start = time.time()
    with limited_memory():
        for seed, rng in seeds(first, count):
            say(seed=seed)
            faulthandler.dump_traceback_later(HANG, exit=True)
            name, read = case(rng)
            verdict = judged(read, usual.get(name.rpartition(": ")[2], 0.5))
            faulthandler.cancel_dump_traceback_later()
            outcomes["failed" if verdict.failed else verdict.outcome] += 1
            longest = max(longest, verdict.seconds)
            if verdict.failed:
                say(failed=seed, case=name, **vars(verdict))
        memory, seconds = (peak() - before) // 2**20, round(time.time() - start)
        intact()  # in what memory is left
    say(inputs=count, **outcomes, longest=round(longest, 2), memory=memory, seconds=seconds)


def run(module: str, *words: str) -> tuple[dict[str, Any], str]:
    """Run a campaign in a process; returns its last object, and its failures as text.

    Args:
        module: its ``main`` calls ``campaign``.
        words: arguments of the module.
    """
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    return lines[-1], "\n".join(str(line) for line in lines if "case" in line)
