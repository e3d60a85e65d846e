"""Find an arm's best rate, or rate and weight decay, with Optuna: `python tune.py --optimizer adam --trials 20`."""

import argparse
from typing import TYPE_CHECKING

from experiment import options
from experiment.process import importing, script
from experiment.space import DEFAULTS, EXAMPLES, dimension

if TYPE_CHECKING:
    import optuna


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of tuning, and the other ones, which apply to every run."""
    parser = options.many_runs("tune.py", __doc__)
    add, arms = parser.add_argument, f"{' '.join(options.ARMS)}, or a YAML file"
    add("--optimizer", required=True, type=options.arm_or_file, metavar="ARM", help=arms)
    add("--trials", type=options.positive, default=20, help="in all, those of an interrupted command included")
    search = f"what to search: {EXAMPLES}; default: {DEFAULTS}"
    add("--search", type=dimension, nargs="+", metavar="OPTION=VALUES", help=search)
    add("--seed", type=options.seed, default=0, help="of the sampler, if one worker proposes (default: 0)")
    add("--workers", type=options.positive, default=1, help="trials at once (default: 1, which finds most)")
    add("--storage", metavar="URL", help="a database that several machines share: docs/scale.md")
    add("--output", type=options.file, help="default: configs/tuned/ARM.yaml, if the study is the arm's own")
    own, rest = options.parse_many(parser, args, {})
    own.search = dict(given := own.search or [])
    if len(own.search) < len(given):
        parser.error("--search names an option twice")
    if both := own.search.keys() & {word.split("=")[0].removeprefix("--") for word in rest}:
        parser.error(f"--{both.pop()} is searched: it cannot have a value of its own")
    if not given and not rest and not own.seed:
        own.output = own.output or options.tuned_file(own.optimizer)
    return own, rest


def main(args: list[str] | None = None) -> "optuna.Study":
    """Run the missing trials, keep them in MLflow, and write the best values."""
    own, rest = parse(args)
    # late: the help does not wait for torch
    with importing():
        from experiment.tuning import Tuning, tune
        from tracking.links import how_to_see
        from tracking.store import open_experiment

    settings = {name: value for name, value in vars(own).items() if name != "output"}
    tuned = tune(Tuning(arguments=tuple(rest), **settings), options.typed("tune.py", args))
    print(tuned.text, end="")
    if own.output:
        own.output.write_text(tuned.text, encoding="utf-8")
        print(f"written to  {own.output}")
    else:
        print("not written: this is not the study that an arm reads its values from; name a file (--output)")
    print(f"see it      {how_to_see(open_experiment(), tuned.run_id)}")
    return tuned.study


if __name__ == "__main__":
    script(main)
