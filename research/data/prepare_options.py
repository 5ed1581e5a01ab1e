"""Options of ``research.prepare``; torch-free."""

from __future__ import annotations

from research.compression import rules as compression_rules
from research.config.rules import COUNT, SHARE, TEXT, TRUTH, Rule, number, one_of, whole
from research.data import rules as data_rules

USAGE = """
python -m research.prepare KIND SOURCE OUT [key=value …]

KIND
  frames         SOURCE holds frames with boxes: capture runs, or a VOC, COCO or YOLO folder
  coefficients   SOURCE holds CLASS/image folders, or train, val and test folders of them
  rgbx           SOURCE holds a folder of pictures for each modality, and VOC, COCO or YOLO labels
  prune          copy the capture runs of SOURCE to OUT without unusable frames
  lint           prepare lint MANIFEST: check a prepared store
OUT gets a folder v<version>: a hash of data and settings; of rgbx, images/*.npy and labels/*.txt.
A command that was interrupted resumes when it is run again.

frames
  size=384              side of the square frames, in pixels
  max_boxes=16          slots for boxes in a frame
  val=0.2 test=0        fraction of the runs (groups) drawn for validation and test
  val_runs= test_runs=  names of these runs instead of a draw: a,b,c
coefficients
  image_size=256                size of the stored squares, a multiple of 16
  compression.window=8          1…8, corner of frequencies; smaller windows can be read from it
  compression.source=bitstream  bitstream: the files' own coefficients; pixels: decoded first
  val=0.1                       fraction of each class held out if SOURCE has no val folder
rgbx
  rgb= thermal= event=     names of the folders; by default rgb, visible, vis or images; thermal,
                           infrared, ir or lwir; event or events, of which one may be missing
  missing_labels=negative  a picture without a YOLO file has no objects; error: is refused
frames and rgbx
  max_invalid= max_missing= max_empty=                    largest number of such frames
  max_invalid_ratio= max_missing_ratio= max_empty_ratio=  the same as a fraction of all
frames and coefficients
  seed=0             seed of the draw
  shard_samples=256  samples per file
all three
  workers=           number of processes; one per core by default
prune
  empty=false missing=true invalid=true  which frames are left out
  runs= not_runs=                        only these runs; not these
lint
  out=               folder of its pictures; OUT/lint-v<version> by default
"""

Options = dict[str, tuple[str, Rule]]

BUILD: Options = {
    "seed": ("0", whole(0, 2**32 - 1)),
    "shard_samples": ("256", COUNT),
    "workers": ("", COUNT),
}
LIMITS: Options = {
    **{f"max_{kind}": ("", whole(0)) for kind in ("invalid", "missing", "empty")},
    **{
        f"max_{kind}_ratio": ("", number(at_least=0, at_most=1))
        for kind in ("invalid", "missing", "empty")
    },
}
OPTIONS: dict[str, Options] = {
    "frames": {
        "size": ("384", whole(32)),
        "max_boxes": ("16", COUNT),
        "val": ("0.2", SHARE),
        "test": ("0", SHARE),
        "val_runs": ("", TEXT),
        "test_runs": ("", TEXT),
        **LIMITS,
        **BUILD,
    },
    "coefficients": {
        "image_size": (
            "256",
            Rule("a multiple of 16, at least 32", lambda n: whole(32).holds(n) and n % 16 == 0),
        ),
        "compression.window": ("8", compression_rules.RULES["window"]),
        "compression.source": ("bitstream", compression_rules.RULES["source"]),
        "val": ("0.1", data_rules.RULES["val_fraction"]),
        **BUILD,
    },
    "rgbx": {
        "rgb": ("", TEXT),
        "thermal": ("", TEXT),
        "event": ("", TEXT),
        "missing_labels": ("negative", one_of("negative", "error")),
        **LIMITS,
        "workers": BUILD["workers"],
    },
    "prune": {
        "empty": ("false", TRUTH),
        "missing": ("true", TRUTH),
        "invalid": ("true", TRUTH),
        "runs": ("", TEXT),
        "not_runs": ("", TEXT),
    },
    "lint": {"out": ("", TEXT)},
}
"""Options by kind: the default as it would be typed, and the rule for values."""
