"""Trackers record the metrics, pictures and files of a run."""
