"""Rendered demo data, written in the formats that the real readers read."""
