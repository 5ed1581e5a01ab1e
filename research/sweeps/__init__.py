"""Sweeps: many runs as the trials of one study."""
