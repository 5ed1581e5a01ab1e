"""Checks of stored pictures: nearly the same picture in two splits, and how files were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from research.data.frames.letterbox import Letterbox
from research.data.warehouse.manifest import SPLITS
from research.data.warehouse.samples import Samples, decoded
from research.utils.progress import track
from research.utils.threads import map_threads

SIDE: Final = 32
"""Side of the grey picture that is compared, in pixels."""
BITS: Final = 64
DISTANCE: Final = 8
"""Largest number of bits in which the hashes of nearly equal pictures differ."""
BANDS: Final = DISTANCE + 1
"""Parts of a hash; of two that differ in ``DISTANCE`` bits, one part at least is the same."""
CORRELATION: Final = 0.98
"""Least correlation of nearly equal pictures."""
FLAT: Final = 4.0
"""Pictures whose grey values have a smaller standard deviation are not compared."""
CHUNK: Final = 1 << 22
"""Most pairs that are compared at once."""

Hashes = NDArray[np.uint64]


def readings(samples: Samples) -> list[str]:
    """How many files were not read by their stored pixels alone; a note for each way."""
    ways = Counter(record["reading"] for record in samples.records if record.get("reading"))
    return [
        f"{count} samples are turned by their orientation tag, transparent, or of more than 8 bits "
        f"(read {way}): a program that ignores this sees other pictures"
        for way, count in ways.items()
    ]


def near_duplicates(samples: Samples) -> Iterator[str]:
    """Samples that show nearly the same picture as one in an earlier split, not exactly the same.

    Pictures are compared by perceptual hashes and then by correlation. Each sample is compared with
    the one in ``train`` (or ``val``) whose hash is nearest. Flat pictures have no content to
    compare.
    """
    grey = list(
        map_threads(
            lambda position: grey_picture(samples, position),
            samples.positions.tolist(),
            None,
            "comparing pictures",
            "pictures",
        )
    )
    if not grey:
        return
    pictures = np.stack(grey)
    known = np.flatnonzero(pictures.std((1, 2)) >= FLAT)
    hashes = perceptual_hashes(pictures[known])
    splits = samples.splits[samples.positions[known]]
    for split in range(1, len(SPLITS)):
        mine, earlier = np.flatnonzero(splits == split), np.flatnonzero(splits < split)
        for one, other, bits in nearest(hashes[mine], hashes[earlier]):
            first, second = known[earlier[other]], known[mine[one]]
            pair = pictures[[first, second]].reshape(2, -1).astype(np.float64)
            if np.asarray(np.corrcoef(pair))[0, 1] < CORRELATION:
                continue
            positions = samples.positions[[first, second]].tolist()
            if not _is_same(samples, *positions):
                yield (
                    f"{samples.where(positions[1])}: nearly the same picture as "
                    f"{samples.where(positions[0])}, which is in "
                    f"{SPLITS[samples.splits[positions[0]]]}, this one in {SPLITS[split]} "
                    f"({bits} of {BITS} bits differ)"
                )


def grey_picture(samples: Samples, position: int) -> NDArray[np.uint8]:
    """[SIDE, SIDE] the stored picture in grey, without the padding of its letterbox."""
    manifest, store = samples.manifest, samples.store
    if manifest.kind == "coefficients":
        return _reduced(decoded(samples, position).astype(np.float32).mean(0))
    image = store.rows("images", position)
    height, width = store.rows("sizes", position).tolist()
    box = Letterbox.of(max(1, height), max(1, width), image.shape[0])
    inside = image[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width, :3]
    scale = 257.0 if inside.dtype == np.uint16 else 1.0
    return _reduced(inside.mean(2, dtype=np.float32) / scale)


def _reduced(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    small = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small).round().clip(0, 255).astype(np.uint8)


def perceptual_hashes(pictures: NDArray[np.uint8]) -> Hashes:
    """Hashes that change little with a picture: the signs of its lowest frequencies.

    Args:
        pictures: [N, SIDE, SIDE] grey.

    Returns:
        [N] one bit for each of 8 × 8 frequencies of the DCT, set if it exceeds their median. The
        first bit, of the mean, is never set.
    """
    basis = cosines()
    hashes = np.empty(len(pictures), np.uint64)
    for start in range(0, len(pictures), 4096):
        part = pictures[start : start + 4096].astype(np.float32)
        low = (basis @ part @ basis.T).reshape(-1, BITS)
        bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
        bits[:, 0] = False
        packed = np.packbits(bits, axis=1).view(">u8")[:, 0]
        hashes[start : start + len(part)] = packed
    return hashes


def cosines() -> NDArray[np.float32]:
    """[8, SIDE] the first eight functions of the DCT-II of ``SIDE`` values."""
    angles = np.arange(8)[:, None] * (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    return np.cos(angles).astype(np.float32)


def nearest(hashes: Hashes, others: Hashes) -> Iterator[tuple[int, int, int]]:
    """The nearest other hash of each hash, if it differs in at most ``DISTANCE`` bits.

    Only hashes are compared that agree in one of ``BANDS`` parts, so that time grows with the
    number of such pairs, not with that of all pairs; equal hashes are compared once.

    Yields:
        index of the hash, index of the other one, number of different bits; by the first index.
    """
    mine, own = np.unique(hashes, return_inverse=True)
    theirs, first = np.unique(others, return_index=True)
    best = np.full(len(mine), DISTANCE + 1)
    partner = np.zeros(len(mine), np.int64)
    edges = [BITS * band // BANDS for band in range(BANDS + 1)]
    for low, high in track(pairwise(edges), "searching near-duplicates", BANDS, "bands"):
        mask = np.uint64((1 << (high - low)) - 1)
        keys, other_keys = ((part >> np.uint64(low)) & mask for part in (mine, theirs))
        order, other_order = np.argsort(keys, kind="stable"), np.argsort(other_keys, kind="stable")
        sorted_keys, sorted_others = keys[order], other_keys[other_order]
        for key in np.intersect1d(sorted_keys, sorted_others):
            rows = order[slice(*np.searchsorted(sorted_keys, [key, key + np.uint64(1)]))]
            start, stop = np.searchsorted(sorted_others, [key, key + np.uint64(1)])
            columns = other_order[start:stop]
            step = max(1, CHUNK // len(columns))
            for begin in range(0, len(rows), step):
                part = rows[begin : begin + step]
                bits = np.bitwise_count(mine[part, None] ^ theirs[columns])
                column = bits.argmin(1)
                found = bits[np.arange(len(part)), column]
                better = found < best[part]
                best[part[better]] = found[better]
                partner[part[better]] = columns[column[better]]
    for index, row in enumerate(own.tolist()):
        if best[row] <= DISTANCE:
            yield index, int(first[partner[row]]), int(best[row])


def _is_same(samples: Samples, one: int, other: int) -> bool:
    """Whether two samples are the same file or have equal rows, which is reported elsewhere."""
    if samples.records[one]["sha256"] == samples.records[other]["sha256"]:
        return True
    names = ("images",) if samples.manifest.kind == "frames" else ("y", "cbcr")
    rows: list[tuple[Any, Any]] = [
        (samples.store.rows(name, one), samples.store.rows(name, other)) for name in names
    ]
    return all(np.array_equal(a, b) for a, b in rows)
