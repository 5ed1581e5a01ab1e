from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import jpegio
import pytest

from research.compression.selection import ZIGZAG, Selection, select_frequencies


def test_zigzag_is_the_scan_of_the_standard() -> None:
    assert tuple(jpegio.zigzag_order()) == ZIGZAG


def test_corner_is_a_square_row_by_row() -> None:
    assert select_frequencies(1, "corner") == (0,)
    assert select_frequencies(3, "corner") == (0, 1, 2, 8, 9, 10, 16, 17, 18)
    assert select_frequencies(8, "corner") == tuple(range(64))


def test_zigzag_has_as_many_as_the_corner_in_scan_order() -> None:
    assert select_frequencies(2, "zigzag") == (0, 1, 8, 16)
    assert select_frequencies(8, "zigzag") == ZIGZAG


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_count_selects_the_first_of_the_scan(count: int) -> None:
    assert select_frequencies(None, "zigzag", count) == ZIGZAG[:count]


def test_planes_fall_back_to_the_common_window() -> None:
    assert Selection.from_settings(4, "corner") == Selection(
        select_frequencies(4, "corner"), select_frequencies(4, "corner")
    )
    mixed = Selection.from_settings(4, "zigzag", window_luma=8, count_chroma=0)
    assert mixed == Selection(ZIGZAG, ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 9, "order": "corner"}, "window=9 is outside 1…8"),
        ({"window": 0, "order": "zigzag"}, "window=0 is outside 1…8"),
        ({"window": None, "order": "corner"}, "window=None is outside 1…8"),
        ({"window": 4, "order": "corner", "window_luma": 12}, "window_luma=12 is outside 1…8"),
        ({"window": 4, "order": "zigzag", "count_luma": 65}, "count_luma=65 is outside 0…64"),
        ({"window": 4, "order": "zigzag", "count_chroma": -1}, "count_chroma=-1 is outside 0…64"),
        ({"window": 4, "order": "corner", "count_luma": 3}, "count_luma=3 needs order=zigzag"),
        (
            {"window": 4, "order": "zigzag", "count_luma": 3, "window_luma": 2},
            "window_luma=2 and count_luma=3 are both set",
        ),
        ({"window": 4, "order": "zigzag", "count_luma": 0, "count_chroma": 0}, "selects nothing"),
        ({"window": 4, "order": "spiral"}, "order=spiral: choose corner or zigzag"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Selection.from_settings(**settings)
    assert "\n" not in str(error.value)


def test_the_module_does_not_import_torch() -> None:
    code = "import sys, research.compression.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
