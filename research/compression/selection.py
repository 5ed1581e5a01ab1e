"""Which of a block's 64 DCT coefficients an experiment keeps.

Frequencies are numbered row-major, f = 8·v + u with v the vertical frequency, everywhere in this
package. Pure Python: the configuration is checked against these rules before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

Order = Literal["corner", "zigzag"]


def _zigzag() -> tuple[int, ...]:
    # Anti-diagonals in turn; odd ones run downwards (v grows), even ones upwards.
    cells = [(v, u) for v in range(8) for u in range(8)]
    cells.sort(key=lambda c: (c[0] + c[1], c[0] if (c[0] + c[1]) % 2 else c[1]))
    return tuple(8 * v + u for v, u in cells)


ZIGZAG: tuple[int, ...] = _zigzag()
"""Row-major index of each entry of the JPEG zigzag scan (ITU-T T.81, figure A.6)."""


def stored_order(window: int) -> tuple[int, ...]:
    """The frequencies of a window×window corner in the order in which a store holds them.

    Corners grow in shells, so that each smaller corner is a prefix and is read by itself.
    """
    corner = [8 * v + u for v in range(window) for u in range(window)]
    return tuple(sorted(corner, key=lambda f: (max(f // 8, f % 8), f)))


def kept_indices(
    window: int | None, order: Order, count: int | None = None, plane: str = ""
) -> tuple[int, ...]:
    """The kept frequencies of one plane, in the order in which they are stored as channels.

    Args:
        window: k in 1…8. ``corner`` keeps the k×k lowest frequencies, row-major; ``zigzag`` keeps
            the first k² entries of the zigzag scan. Not used, and may be ``None``, with a count.
        order: ``corner`` or ``zigzag``.
        count: 0…64 first entries of the zigzag scan instead of a window; zigzag only.
        plane: ending of the key named in messages, such as ``_luma``.

    Raises:
        ValueError: in one line, when the request is impossible.
    """
    if order not in ("corner", "zigzag"):
        raise ValueError(f"order={order}: choose corner or zigzag")
    if count is not None:
        if order != "zigzag":
            raise ValueError(f"count{plane}={count} needs order=zigzag; a corner takes window=1…8")
        if not 0 <= count <= 64:
            raise ValueError(f"count{plane}={count} is outside 0…64")
        return ZIGZAG[:count]
    if window is None or not 1 <= window <= 8:
        raise ValueError(f"window{plane}={window} is outside 1…8")
    if order == "zigzag":
        return ZIGZAG[: window * window]
    return tuple(8 * v + u for v in range(window) for u in range(window))


@dataclass(frozen=True)
class Selection:
    """Kept frequencies of the luma plane and of both chroma planes; either may be empty."""

    luma: tuple[int, ...]
    chroma: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.luma and not self.chroma:
            raise ValueError("count_luma=0 with count_chroma=0 keeps nothing: raise one of them")

    @classmethod
    def from_settings(
        cls,
        window: int | None,
        order: Order,
        window_luma: int | None = None,
        window_chroma: int | None = None,
        count_luma: int | None = None,
        count_chroma: int | None = None,
    ) -> Self:
        """Settles each plane: its own count, else its own window, else the common window.

        Raises:
            ValueError: in one line, when a plane's request is impossible or given twice.
        """
        return cls(
            luma=_plane(window, order, window_luma, count_luma, "_luma"),
            chroma=_plane(window, order, window_chroma, count_chroma, "_chroma"),
        )


def covering(selection: Selection) -> Selection:
    """The smallest corners, in stored order, that hold a selection."""
    return Selection(*(stored_order(_reach(plane)) for plane in (selection.luma, selection.chroma)))


def _reach(frequencies: tuple[int, ...]) -> int:
    return max((max(f // 8, f % 8) + 1 for f in frequencies), default=0)


EVERY = Selection(tuple(range(64)), tuple(range(64)))
"""All frequencies, row-major."""


def _plane(
    window: int | None, order: Order, own: int | None, count: int | None, plane: str
) -> tuple[int, ...]:
    if own is not None and count is not None:
        raise ValueError(
            f"window{plane}={own} and count{plane}={count} are both given: keep one of them"
        )
    if own is None:
        return kept_indices(window, order, count, plane if count is not None else "")
    return kept_indices(own, order, count, plane)
