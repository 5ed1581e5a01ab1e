"""Small helpers that know nothing of the project: errors, atomic files, logs, timing, weights."""
