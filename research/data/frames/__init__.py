"""Frames with boxes, from every layout that users bring: builder, checking, writing, rendering."""
