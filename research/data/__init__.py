"""Data sets: their files, readers, loading, augmentation and the prepared stores."""
