"""Select which of a block's 64 DCT coefficients a network receives.

Everywhere in this package frequencies are numbered row-major: f = 8·v + u with vertical frequency
v. Pure Python, because configurations are checked with this module before torch is imported.
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
    """The frequencies of a window×window corner in the order of prepared stores.

    They are ordered in shells, so that every smaller corner is a prefix and can be read alone.
    """
    corner = [8 * v + u for v in range(window) for u in range(window)]
    return tuple(sorted(corner, key=lambda f: (max(f // 8, f % 8), f)))


def select_frequencies(
    window: int | None, order: Order, count: int | None = None, plane: str = ""
) -> tuple[int, ...]:
    """The selected frequencies of one plane, in the order of the channels.

    Args:
        window: k in 1…8. ``corner`` selects the k×k lowest frequencies, row-major; ``zigzag`` the
            first k² entries of the zigzag scan. Ignored, and may be ``None``, if ``count`` is set.
        order: ``corner`` or ``zigzag``.
        count: select this many entries of the zigzag scan instead, 0…64; ``zigzag`` only.
        plane: suffix of the key in messages, such as ``_luma``.

    Raises:
        ValueError: for an invalid value, with a message of one line.
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
    """Selected frequencies of the luma plane and of both chroma planes; one may be empty."""

    luma: tuple[int, ...]
    chroma: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.luma and not self.chroma:
            raise ValueError(
                "count_luma=0 with count_chroma=0 selects nothing: increase one of them"
            )

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
        """Select each plane by its own count, else its own window, else the common window.

        Raises:
            ValueError: for an invalid value, or for both a count and a window of one plane.
        """
        return cls(
            luma=_plane(window, order, window_luma, count_luma, "_luma"),
            chroma=_plane(window, order, window_chroma, count_chroma, "_chroma"),
        )


def covering(selection: Selection) -> Selection:
    """The smallest corners that contain a selection, in stored order."""
    planes = (selection.luma, selection.chroma)
    return Selection(*(stored_order(_min_window(plane)) for plane in planes))


def _min_window(frequencies: tuple[int, ...]) -> int:
    return max((max(f // 8, f % 8) + 1 for f in frequencies), default=0)


ALL_FREQUENCIES = Selection(tuple(range(64)), tuple(range(64)))
"""All frequencies, row-major."""


def _plane(
    window: int | None, order: Order, own: int | None, count: int | None, plane: str
) -> tuple[int, ...]:
    if own is not None and count is not None:
        raise ValueError(
            f"window{plane}={own} and count{plane}={count} are both set: set only one of them"
        )
    if own is None:
        return select_frequencies(window, order, count, plane if count is not None else "")
    return select_frequencies(own, order, count, plane)
