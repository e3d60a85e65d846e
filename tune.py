"""Find an arm's best rate, or rate and weight decay, with Optuna: `python tune.py --optimizer adam --trials 20`."""

from pathlib import Path
from typing import TYPE_CHECKING

from experiment import options
from experiment.process import importing, script

if TYPE_CHECKING:
    import optuna


def main(args: list[str] | None = None) -> "optuna.Study":
    """Run the missing trials, store them in MLflow, and write the best values."""
    parser = options.Parser("tune.py", description=__doc__, epilog=options.EVERY_RUN, allow_abbrev=False)
    add, arms = parser.add_argument, f"{' '.join(options.ARMS)}, or a YAML file"
    add("--optimizer", required=True, type=options.arm_or_file, metavar="ARM", help=arms)
    add("--trials", type=options.positive, default=20, help="total, with those of an interrupted command (default: 20)")
    values = "such as model.lr=log:1e-5:1e-1 data.batch_size=32:512 model.network.layers=1,2 (default: depends on ARM)"
    add("--search", nargs="+", metavar="OPTION=VALUES", help=values)
    add("--seed", type=options.seed, default=0, help="seed of the sampler; used only with one worker (default: 0)")
    add("--workers", type=options.positive, default=1, help="parallel trials (default: 1, which finds the best values)")
    add("--storage", metavar="URL", help="database shared by several machines: see docs/scale.md")
    add("--output", type=Path, help="file (default: configs/tuned/ARM.yaml, if no option changes the study)")
    add("--retrain", action="store_true", help=f"{options.RETRAIN}; with several machines, use it only on the first")
    own, rest = options.parse_many(parser, args, {})
    with importing():
        from experiment.tuning import Tuning, tune
        from tracking.links import how_to_see
        from tracking.store import client

    search = own.search and dict(word.partition("=")[::2] for word in own.search)
    tuning = Tuning(own.optimizer, tuple(rest), search, own.trials, own.seed, own.workers, own.storage)
    found = tune(tuning, options.command("tune.py", args), own.retrain)
    print(found.text, end="")
    file = own.output or (None if search or rest or own.seed else options.TUNED.get(own.optimizer))
    if file:
        file.write_text(found.text, encoding="utf-8")
    print(f"written to  {file}" if file else "not written: not the default study of a tuned arm; use --output FILE")
    print(f"see it      {how_to_see(client().get_run(found.run_id).info.experiment_id, found.run_id)}")
    return found.study


if __name__ == "__main__":
    script(main)
