"""Frames with boxes: readers and writers of all formats, letterboxing, augmentation."""
