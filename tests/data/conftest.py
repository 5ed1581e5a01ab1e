"""Fixtures shared by the tests of data."""

from tests.compression.conftest import make_jpeg

__all__ = ["make_jpeg"]
