"""Rules of the keys of learning-rate schedules."""

from __future__ import annotations

from research.config.rules import BELOW_ONE, COUNT, Rule, list_of, number, one_of, whole

EPOCHS = list_of(COUNT, increasing=True)
FRACTIONS = list_of(number(above=0, below=1), increasing=True)

RULES: dict[str, Rule] = {
    "warmup_epochs": number(at_least=0),
    "warmup_steps": whole(0),
    "lr_end": number(at_least=0),
    "step_size": COUNT,
    "milestones": Rule(
        "an increasing list of epochs, such as [30,60], or of fractions of the run, such as "
        "[0.5,0.75]",
        lambda value: EPOCHS.is_valid(value) or FRACTIONS.is_valid(value),
    ),
    "gamma": number(above=0),
    "pct_start": BELOW_ONE,
    "div_factor": number(at_least=1),
    "final_div_factor": number(at_least=1),
    "anneal": one_of("cos", "linear"),
}
