"""Benchmarks of speed: ``python -m research.benchmark NAME``."""
