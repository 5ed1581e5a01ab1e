"""Frames with boxes, from every layout that users bring: reading, checking, writing, rendering."""
