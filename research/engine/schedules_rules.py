"""Rules of the keys of learning-rate schedules."""

from __future__ import annotations

from research.config.rules import BELOW_ONE, COUNT, Rule, list_of, number, one_of, whole

RULES: dict[str, Rule] = {
    "warmup_epochs": number(at_least=0),
    "warmup_steps": whole(0),
    "lr_end": number(at_least=0),
    "step_size": COUNT,
    "milestones": list_of(COUNT, increasing=True),
    "gamma": number(above=0),
    "pct_start": BELOW_ONE,
    "div_factor": number(at_least=1),
    "final_div_factor": number(at_least=1),
    "anneal": one_of("cos", "linear"),
}
