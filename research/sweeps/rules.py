"""Rules of the keys of ``conf/hydra/sweeper``: sweepers, samplers and pruners."""

from __future__ import annotations

from research.config.rules import (
    COUNT,
    FOLDER_NAME,
    FRACTION,
    MAPPING,
    TEXT,
    TRUTH,
    Rule,
    list_of,
    mapping_of,
    number,
    one_of,
    only,
    or_null,
    whole,
)

MAX_POPULATION = 10_000
MAX_STARTUP = 1_000_000

_EPOCHS_OR_AUTO = Rule(
    "a whole number at least 1, or auto",
    lambda value: value == "auto" or COUNT.is_valid(value),
    ("auto",),
)
_OBJECT = or_null(
    Rule("a mapping with a _target_", lambda value: MAPPING.is_valid(value) and "_target_" in value)
)
_NONE = Rule("null; it is a function or a list of trials of Optuna's", lambda value: value is None)
_PROBABILITY = number(at_least=0, at_most=1)

RULES: dict[str, Rule] = {
    "study_name": or_null(FOLDER_NAME),
    "storage": or_null(TEXT),
    "objectives": list_of(one_of("monitor", "latency_ms", "bytes_per_image"), min_length=1),
    "n_trials": or_null(COUNT),
    "seed": whole(0),
    "n_jobs": or_null(COUNT),
    "max_failure_rate": FRACTION,
    "retry_failed": TRUTH,
    # Hydra's own sweepers
    "direction": or_null(one_of("minimize", "maximize")),
    "max_batch_size": or_null(COUNT),
    # samplers
    "sampler.seed": or_null(whole(0, 2**32 - 1)),
    "sampler.n_startup_trials": whole(0, MAX_STARTUP),
    "sampler.n_ei_candidates": whole(1, MAX_POPULATION),
    "sampler.prior_weight": or_null(number(above=0)),
    "sampler.consider_prior": or_null(TRUTH),
    "sampler.consider_magic_clip": or_null(TRUTH),
    "sampler.consider_endpoints": or_null(TRUTH),
    "sampler.multivariate": TRUTH,
    "sampler.group": TRUTH,
    "sampler.constant_liar": TRUTH,
    "sampler.warn_independent_sampling": or_null(TRUTH),
    "sampler.warn_asynchronous_seeding": TRUTH,
    "sampler.constraints_func": _NONE,
    "sampler.independent_sampler": _OBJECT,
    "sampler.population_size": whole(2, MAX_POPULATION),
    "sampler.mutation": _OBJECT,
    "sampler.crossover": _OBJECT,
    "sampler.mutation_prob": or_null(_PROBABILITY),
    "sampler.crossover_prob": _PROBABILITY,
    "sampler.swapping_prob": _PROBABILITY,
    "sampler.reference_points": or_null(list_of(list_of(number(at_least=0)), min_length=1)),
    "sampler.dividing_parameter": whole(1, 100),
    "sampler.deterministic_objective": TRUTH,
    "sampler.qmc_type": one_of("sobol", "halton"),
    "sampler.scramble": TRUTH,
    "sampler.x0": or_null(mapping_of(number())),
    "sampler.sigma0": or_null(number(above=0)),
    "sampler.consider_pruned_trials": TRUTH,
    "sampler.restart_strategy": _NONE,
    "sampler.popsize": or_null(whole(2, MAX_POPULATION)),
    "sampler.inc_popsize": only(-1),
    "sampler.use_separable_cma": TRUTH,
    "sampler.with_margin": TRUTH,
    "sampler.lr_adapt": TRUTH,
    "sampler.source_trials": _NONE,
    # pruners
    "pruner.n_startup_trials": whole(0, MAX_STARTUP),
    "pruner.n_warmup_steps": whole(0),
    "pruner.interval_steps": COUNT,
    "pruner.n_min_trials": COUNT,
    "pruner.min_resource": _EPOCHS_OR_AUTO,
    "pruner.max_resource": _EPOCHS_OR_AUTO,
    "pruner.reduction_factor": whole(2, MAX_POPULATION),
    "pruner.min_early_stopping_rate": whole(0, 100),
    "pruner.bootstrap_count": whole(0),
}
"""Keys of ``hydra.sweeper``; those of its sampler and pruner are the same for every option."""
