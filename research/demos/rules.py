"""Rules of the keys of ``dataset.demo``."""

from __future__ import annotations

from research.config.rules import COUNT, PATH, Rule, whole

RULES: dict[str, Rule] = {
    "root": PATH,
    "runs": whole(2),
    "images": whole(13),
    "series": whole(10),
    "size": whole(64),
    "frames": COUNT,
    "image_size": whole(32),
    "max_boxes": COUNT,
    "train_images": COUNT,
    "val_images": COUNT,
    "seed": whole(0),
}
