"""Helpers that do not depend on the project: errors, atomic files, logs, timing, weights."""
