"""Recorded runs compared over seeds: reading, grouping, statistics, tables, a page. No torch."""
