"""Trackers record the metrics, pictures and files of a run.

A file in ``conf/logging`` adds a tracker to a run; those of ``files``, ``console`` and ``summary``
belong to every run.
"""
