"""In processes of their own: the setting stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

PROGRAM = """
import resource, sys, numpy as np
from research.utils.allocator import keep_freed_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(megabytes << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(sys.argv[1] == "keep" and keep_freed_memory())
sizes = 300, 70, 40, 33
first = sum(map(faults, sizes))
print(sum(map(faults, sizes)))
"""
PAGES = sum((300, 70, 40, 33)) << 8
"""Of 4 KiB; the system may give larger ones."""


def run(word: str, **environment: str) -> tuple[bool, int]:
    """Whether it was set, and the page faults of allocations after others of the same sizes."""
    clean: Mapping[str, str] = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("MALLOC_") and key != "GLIBC_TUNABLES"
    }
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, word],
        env={**clean, "NUMPY_MADVISE_HUGEPAGE": "0", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    was_set, faults = found.stdout.split()
    return was_set == "True", int(faults)


def test_freed_memory_is_used_again_without_new_pages() -> None:
    was_set, faults = run("leave")
    assert not was_set
    assert faults > PAGES / 2
    was_set, faults = run("keep")
    assert was_set
    assert faults < PAGES / 50


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_MAX_", "65536"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_a_choice_of_the_environment_stays(name: str, value: str) -> None:
    was_set, faults = run("keep", **{name: value})
    assert not was_set
    assert faults > PAGES / 2


def test_other_tunables_are_no_choice() -> None:
    was_set, _ = run("keep", GLIBC_TUNABLES="glibc.rtld.optional_static_tls=512")
    assert was_set
