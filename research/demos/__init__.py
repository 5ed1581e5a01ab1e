"""Rendered demo data, written in the formats that the real readers read.

``DataModule.prepare`` calls ``render`` of the data set's ``demo``; ``render_once`` creates the
files on first use.
"""
