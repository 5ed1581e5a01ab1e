"""Evaluate a trained run on a split: ``python -m research.evaluate RUN split=test``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from research.config import cli, outputs
from research.config.rules import PATH, one_of
from research.tracking.evaluations import FOLDER
from research.utils.errors import UserError
from research.utils.files import to_json


@dataclass(frozen=True)
class EvaluateOptions(cli.RunOptions):
    """Options of the command."""

    split: str = cli.option(
        "val",
        one_of("val", "train", "test"),
        "val, train (with validation crops) or test (if the data set has one)",
    )
    out: Path | None = cli.option(
        None,
        PATH,
        "folder for the results; by default evaluations in the run folder",
        placeholder="FOLDER",
    )


USAGE = cli.usage(
    "python -m research.evaluate RUN [key=value …]",
    """
RUN is a run folder or a checkpoint file. Prints the metrics of a whole split as JSON, keeps them
with pictures and tables in evaluations/SPLIT.json of the run folder, and logs them to the run's
MLflow record (SPLIT/METRIC), once. A result under settings that change it has a name of its own and
is not logged.
""",
    EvaluateOptions,
    "Any setting of the run may follow, such as dataset.test_dir=FOLDER or batch_size=64.",
)


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(EvaluateOptions, words, others="")
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder or checkpoint first, then key=value settings")
    # Imported late: mistakes are reported before torch is imported.
    from research.engine.evaluation import load_eval_run
    from research.utils import logs

    logs.to_terminal()
    run, which, device = Path(paths[0]), options.checkpoint, options.device
    out = options.out or outputs.folder_in_run(run, FOLDER)
    loaded = load_eval_run(run, options.split, which, device, overrides, options.trust)
    evaluation, result = loaded.measure()
    # Printed before the files are written: a full disk must not lose it.
    print(to_json({**asdict(evaluation), "files": str(out / evaluation.name)}), end="")
    loaded.keep(evaluation, result, out)
    verb, then = "leaderboard", options.split
    if options.split != "test" and "test" in loaded.predictor.data.splits:
        verb, then = "evaluate", "test"
    following = [f"split={then}", *outputs.typed_options(options), *overrides]
    outputs.print_files(out, following=outputs.command_of(verb, run, *following))


if __name__ == "__main__":
    cli.command(USAGE, main)
