"""Rules of the keys of ``conf/hydra/sweeper/study.yaml``."""

from __future__ import annotations

from research.config.rules import (
    COUNT,
    FOLDER_NAME,
    FRACTION,
    TEXT,
    TRUTH,
    Rule,
    list_of,
    one_of,
    or_null,
    whole,
)

RULES: dict[str, Rule] = {
    "study_name": or_null(FOLDER_NAME),
    "storage": or_null(TEXT),
    "objectives": list_of(one_of("monitor", "latency_ms", "bytes_per_image"), min_length=1),
    "n_trials": or_null(COUNT),
    "seed": whole(0),
    "n_jobs": or_null(COUNT),
    "max_failure_rate": FRACTION,
    "retry_failed": TRUTH,
}
