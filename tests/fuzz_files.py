"""Changes to the files of data sets: texts, tables, JSON, YAML, XML, pictures, shards, folders.

Each takes what an intact file holds and a generator; equal generators make equal changes.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tests import fuzz

Tree = dict[str, bytes]
"""The files of a folder by their relative names."""

BOMB = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""YAML of merges that double, nine times nine times …"""
ALIASES = BOMB.replace("<<: ", "y: ")
DOCUMENTS: dict[str, bytes] = {
    "nothing": b"", "no text": b"\xff\xfe\x00" * 30, "NUL": b"a: \0", "another kind": b"[1, 2]",
    "merges": BOMB.encode(), "deep": b"[" * 1100, "deep mappings": b'{"a":' * 1100,
    "a tag": b"a: !!python/object/apply:os.system [x]", "no date": b"a: 9999-99-99",
    "digits": b'{"a": ' + b"1" * 9000 + b"}", "large": b'{"a": "' + b"x" * 2**24 + b'"}',
    "itself": b"&a [*a]",
}  # fmt: skip
"""What no reader of JSON or YAML may fail on."""

WORDS = [
    "", "0", "-1", "1e400", "-1e400", "nan", "inf", "-inf", "1e-320", "1e308", "0x10", "1_000",
    "9" * 5000, "-" + "9" * 5000, "x" * 300, "x" * 20_000, "é" * 200, "\0", "\ufeff", "\u2028",
    "\x1b[2J", "\ud800", "\u0663", "²", "=1+1", "../../etc/passwd", "/etc/passwd", "~", "train",
    "C:\\x", "\\\\host\\x", "e\u0301", "a\nb", "a\rb", "#", '"', "'", ",", "0.5", "1", "2", "3.0",
    "18446744073709551616", "9223372036854775808", "2147483648", "True", "null", ".", "..",
    "./a", "x/" * 500, "*", "[!a]*", "%s", "{0}", "a\0.jpg", "-", "+5", "1.", ".5", "1e5",
]  # fmt: skip


def lines(text: str, rng: random.Random, separator: str | None = None) -> str:
    """Rows of words with one to three changes."""
    rows = [row.split(separator) for row in text.splitlines()] or [[""]]
    joint = " " if separator is None else separator
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(rows))
        row, kind = rows[at], rng.random()
        if kind < 0.6 and row:
            row[rng.randrange(len(row))] = rng.choice(WORDS)
        elif kind < 0.7 and row:
            del row[rng.randrange(len(row))]
        elif kind < 0.8:
            row.insert(rng.randrange(len(row) + 1), rng.choice(WORDS))
        elif kind < 0.85:
            rows.insert(at, list(row))
        elif kind < 0.9:
            rows[at : at + 1] = [list(row) for _ in range(rng.choice((0, 2, 3000)))] or [[]]
        else:
            rows.insert(at, [rng.choice(WORDS) for _ in range(rng.choice((1, 5, 6)))])
    return "\n".join(joint.join(row) for row in rows) + "\n"


def encoded(text: str, rng: random.Random) -> bytes:
    """Mostly UTF-8; sometimes another encoding, other line ends, or a mark at the beginning."""
    kind = rng.random()
    if kind > 0.2:
        return text.encode("utf-8", "surrogatepass" if kind > 0.25 else "replace")
    text = text.encode("utf-8", "replace").decode()
    other: list[Callable[[], bytes]] = [
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: b"\xef\xbb\xbf" * 2 + text.encode(),
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-16-be"),
        lambda: text.encode("utf-32"),
        lambda: text.encode("latin-1", "replace") + b"\xe9",
        lambda: text.replace("\n", "\r").encode(),
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: text.encode() + b"\0" * 5,
        lambda: text.encode() + b"\x1a",
    ]
    return rng.choice(other)()


def json_text(content: bytes, rng: random.Random) -> bytes:
    """A JSON document, changed in structure or in its notation."""
    kind = rng.random()
    if kind < 0.15:
        return fuzz.octets(content, rng)
    try:
        text = json.dumps(fuzz.documents(json.loads(content), rng))
    except (ValueError, RecursionError):  # too large a number
        return fuzz.octets(content, rng)
    if kind > 0.3:
        return encoded(text, rng) if kind > 0.9 else text.encode()
    key = rng.choice(re.findall(r'"(\w+)":', text) or ["a"])
    value = json.dumps(rng.choice(fuzz.PLAIN))
    tricks: list[Callable[[], str]] = [
        lambda: text.replace("{", f'{{"{key}": {value}, ', 1),  # a key twice
        lambda: text.replace(f'"{key}": ', f'"{key}": {"[" * 3000}', 1),
        lambda: text.replace(f'"{key}": ', f'"{key}": {"[" * 900}{"]" * 900}, "y": ', 1),
        lambda: "[" * 100_000,
        lambda: '{"a":' * 100_000,
        lambda: re.sub(r"\d+", lambda m: "1" * 5000, text, count=1),
        lambda: text + text,
        lambda: text.replace('"', "'"),
        lambda: text.replace(f'"{key}"', rf'"{key}\u0000"'),
        lambda: text.replace(": ", ": -Infinity, ", 1),
        lambda: "",
    ]
    return rng.choice(tricks)().encode()


def yaml_text(content: bytes, rng: random.Random) -> bytes:
    """A YAML document, changed in structure or in its notation."""
    kind = rng.random()
    if kind < 0.3:
        return fuzz.octets(content, rng)
    if kind < 0.5:
        tricks = [
            *(text for text in DOCUMENTS.values() if len(text) < 2**20),
            b"names: " + b"[" * 3000, b"names:\n" + b"- " * 3000, b"names: {[1]: a, ? {a: b} : c}",
            ALIASES.encode(), b"names: &n [*n]", b"names: {0: &a [x], 1: *a}", b"---\na\n---\nb\n",
            b"names: {0: a, 0: b}", b"names: {0: a, '0': b}", b"names: {1e999: a, .nan: b}",
            b"names: 2001-99-99", b"names: !!binary x", b"names: [" + b"x," * 20_000 + b"]",
            b"nc: 1e999\nnames: [a]", b"train: [[[a]]]\nnames: [a]", b"path: \0\nnames: [a]",
            b"names: !!set {a, b}", b"names: !!omap [a: 1]", b"%YAML 9.9\n---\nnames: [a]",
            b"train: {a: b}\nval: 5\nnames: {0: a}", b"path: ~\ntrain: ~\nnames: ~",
        ]  # fmt: skip
        return content * rng.randrange(2) + rng.choice(tricks)
    changed = fuzz.documents(yaml.safe_load(content), rng)
    try:
        return encoded(yaml.safe_dump(changed), rng)
    except (ValueError, RecursionError):  # too deep, or too large a number
        return fuzz.octets(content, rng)


ENTITIES = '<!DOCTYPE a [<!ENTITY a "{word}">{more}]>'


def xml_text(content: bytes, rng: random.Random) -> bytes:
    """An XML document, changed in structure or in its notation."""
    kind = rng.random()
    if kind < 0.15:
        return fuzz.octets(content, rng)
    root = ElementTree.fromstring(content)  # noqa: S314 - our own
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = list(root.iter())
        node = rng.choice(nodes)
        action = rng.random()
        if action < 0.5:
            node.text = rng.choice(WORDS)
        elif action < 0.65 and len(node):
            node.remove(rng.choice(list(node)))
        elif action < 0.8 and len(node):
            node.extend([rng.choice(list(node))] * rng.choice((1, 1, 200)))
        elif action < 0.9:
            node.tag = rng.choice(("object", "name", "bndbox", "filename", "size", "x", "xmin"))
        else:
            node.set("a", rng.choice(WORDS))
    text = ElementTree.tostring(root, "unicode")
    if kind > 0.3:
        return encoded(text, rng) if kind > 0.9 else text.encode("utf-8", "surrogatepass")
    return _xml_tricks(text.encode("utf-8", "replace").decode(), rng)


def _xml_tricks(text: str, rng: random.Random) -> bytes:
    more = "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    bomb = ENTITIES.format(word="ha", more=more) + re.sub("<name>[^<]*", "<name>&i;", text)
    long = ENTITIES.format(word="x" * 10_000, more="") + f"<a>{'&a;' * 10_000}</a>"
    outside = "<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>" + re.sub(
        "<name>[^<]*", "<name>&a;", text
    )
    tricks: list[Callable[[], bytes]] = [
        lambda: rng.choice((bomb, long, outside)).encode(rng.choice(("utf-8", "utf-16"))),
        lambda: rng.choice((bomb, long, outside)).encode("utf-16-be"),
        lambda: b"<a>" * 100_000,
        lambda: b"<a>" * 20_000 + b"</a>" * 20_000,
        lambda: text.replace("<name>", "<name>" + "<b>" * 3000 + "</b>" * 3000, 1).encode(),
        lambda: b'<?xml version="1.0" encoding="utf-7"?>' + text.encode(),
        lambda: b'<?xml version="1.0" encoding="idna"?>' + text.encode(),
        lambda: b'<?xml version="1.0" encoding="hex"?>' + text.encode(),
        lambda: b'<?xml version="1.0" encoding="latin-1"?>' + text.encode() + b"<!--\xe9-->",
        lambda: b'<?xml version="1.0" encoding="UTF-16"?>' + text.encode(),
        lambda: b'<?xml version="1.0" encoding="shift_jis"?>' + text.encode("utf-16"),
        lambda: text.replace("<name>", "<name><![CDATA[</object>]]>").encode(),
        lambda: text.replace("<annotation>", "<annotation xmlns='x'>").encode(),
        lambda: b"<a " + b" ".join(b'a%d="x"' % n for n in range(20_000)) + b"/>",
        lambda: b"",
    ]
    return rng.choice(tricks)()


# -- pictures -------------------------------------------------------------------------------------


def jpeg(content: bytes, rng: random.Random, others: Mapping[str, bytes]) -> bytes:
    """A JPEG file whose bytes, or whose segments, are changed."""
    if rng.random() < 0.35:
        return fuzz.octets(content, rng)
    parts = segments(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(1, len(parts)), rng.randrange(9)
        part = parts[at]
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(rng.randrange(1, len(parts)), part)
        elif kind == 2:
            parts.insert(at, rng.choice(segments(rng.choice(list(others.values())))))
        elif kind == 3:
            other = rng.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], part
        elif kind == 4:
            frames = [n for n, p in enumerate(parts) if p[1:2] in b"\xc0\xc1\xc2" and len(p) > 9]
            at = rng.choice(frames or [at])
            size = struct.pack(">HH", *rng.choices((0, 1, 7, 8, 9, 17, 64, 13_000, 65_535), k=2))
            parts[at] = parts[at][:5] + size + parts[at][9:]
        elif kind == 5:
            parts[at : at + 1] = [part] * rng.choice((2, 20, 120))
        elif kind == 6:
            body = rng.randbytes(rng.choice((0, 1, 6, 17, 64, 3000)))
            marker = rng.choice((0xC0, 0xC2, 0xC4, 0xC8, 0xDA, 0xDB, 0xDD, 0xDC, 0xE1, 0xEE, 0xFE))
            head = b"Exif\0\0" * (marker == 0xE1) + body
            parts.insert(at, struct.pack(">BBH", 255, marker, len(head) + 2) + head)
        else:
            parts[at] = part[:2] + fuzz.octets(part[2:], rng)
    return b"".join(parts)


def segments(content: bytes) -> list[bytes]:
    """The start marker, each segment with the entropy-coded data after it, and the end."""
    parts, at = [content[:2]], 2
    while at < len(content):
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        end = at + 2 + max(length, 2)
        while end < len(content) and not (
            content[end] == 0xFF
            and content[end + 1 : end + 2] not in b"\0\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7"
        ):
            end += 1
        parts.append(content[at:end])
        at = end
    return parts


def png(content: bytes, rng: random.Random) -> bytes:
    """A PNG file with a changed chunk, its checksum made right again."""
    if rng.random() < 0.3:
        return fuzz.octets(content, rng)
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at + 4 : at + 8 + length])
        at += 12 + length
    for _ in range(rng.choice((1, 1, 2))):
        at, kind = rng.randrange(len(chunks)), rng.randrange(6)
        if kind == 0 and len(chunks) > 1:
            del chunks[at]
        elif kind == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        elif kind == 2 and len(chunks[0]) > 12:
            sides = struct.pack(">II", *rng.choices((0, 1, 8, 40, 9000, 2**31 - 1, 2**32 - 1), k=2))
            chunks[0] = chunks[0][:4] + sides + chunks[0][12:]
        elif kind == 3:
            name = rng.choice((b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL"))
            body = rng.choice((b"", rng.randbytes(30), b"a\0\0" + zlib.compress(bytes(10**7))))
            chunks.insert(rng.randrange(len(chunks)), name + body)
        else:
            chunks[at] = chunks[at][:4] + fuzz.octets(chunks[at][4:], rng)
    return content[:8] + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
        if len(chunk) >= 4
    )


# -- shards ---------------------------------------------------------------------------------------


def shard(content: bytes, rng: random.Random) -> bytes:
    """A file of safetensors with another header, or with damaged bytes."""
    if rng.random() < 0.3:
        return fuzz.octets(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if rng.random() < 0.5:
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        end = len(data)
        numbers = (0, 1, -1, 3, end, end + 1, end // 2, 2**31, 2**32, 2**63, 2**64, 0.5, "1")
        if rng.random() < 0.5:
            entry["data_offsets"] = rng.choices(numbers, k=rng.choice((2, 2, 2, 1, 3)))
        elif rng.random() < 0.7:
            entry["shape"] = rng.choices(numbers, k=rng.choice((0, 1, 2, 4)))
        else:
            entry["dtype"] = rng.choice(("F64", "U8", "BOOL", "BF16", "F8_E4M3", "X", "", 5))
    else:
        header = fuzz.documents(header, rng)
    text = json.dumps(header).encode()
    size = rng.choice((len(text),) * 6 + (0, len(text) + 9, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", size) + text + data


# -- folders --------------------------------------------------------------------------------------


def write(folder: Path, tree: Mapping[str, bytes]) -> None:
    """Write files into an empty folder."""
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def sparse(path: Path, size: int) -> None:
    """A file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


MADE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo, "a folder": Path.mkdir, "empty": Path.touch,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to the folder above": lambda path: path.symlink_to(".."),
    "huge": lambda path: sparse(path, 2**33),
    "large": lambda path: sparse(path, 100 * 2**20),
}  # fmt: skip
NAMES: list[str | bytes] = [
    "x" * 240, "a\nb.jpg", b"\xff\xfe.jpg", b"\xff.txt", "\ufeff.jpg", " ", "..a", "=1+1.jpg",
    "-rf.jpg", "e\u0301.jpg", "\u00e9.jpg", "a\x1b[2J.png", "NUL", "con.jpg", "\u202egpj.exe",
]  # fmt: skip


def disturb(folder: Path, rng: random.Random) -> str:
    """Change a file below a folder to something else, or its name; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, kind = rng.choice(files), rng.random()
    if kind < 0.5:
        what = rng.choice(list(MADE))
        path.unlink()
        MADE[what](path)
        return what
    if kind < 0.9:
        name = rng.choice(NAMES)
        keep = path.suffix if rng.random() < 0.5 and isinstance(name, str) else ""
        new = os.path.join(os.fsencode(path.parent), os.fsencode(name) + keep.encode())
        (shutil.copy if rng.random() < 0.5 else os.replace)(os.fsencode(path), new)
        return "another name"
    (path.parent / "loop").symlink_to(rng.choice((path.parent, folder)))
    return "a loop"
