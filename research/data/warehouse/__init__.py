"""Everything prepared ahead of time, in one format: a manifest and memory-mapped shards."""
