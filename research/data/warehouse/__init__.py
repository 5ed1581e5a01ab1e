"""Prepared data in one format: a manifest and memory-mapped shards."""
