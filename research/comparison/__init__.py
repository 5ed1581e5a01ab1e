"""Comparison of recorded runs over seeds, without torch: statistics, tables, HTML page."""
