"""Trackers: where a run's metrics, pictures and files go."""
