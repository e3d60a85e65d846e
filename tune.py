"""Find an arm's best rate, or rate and weight decay, with Optuna: `python tune.py --optimizer adam --trials 20`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.options import (
    DEFAULT_SEARCH,
    PRUNERS,
    SAMPLERS,
    SEARCHES,
    arm_or_file,
    parse_sweep,
    positive,
    require_place,
    searched,
    seed,
    sweep_parser,
    typed,
)
from experiment.presets import ARMS, tuned_file
from experiment.process import importing, script

if TYPE_CHECKING:
    import optuna


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of tuning, and the rest, which goes on to every run."""
    parser = sweep_parser("tune.py", __doc__)
    add = parser.add_argument
    add("--optimizer", required=True, type=arm_or_file, metavar="ARM", help=f"{' '.join(ARMS)}, or a YAML file")
    add("--trials", type=positive, default=20, help="in all, those of an interrupted run included")
    search = f"what to search: {SEARCHES}; default: {DEFAULT_SEARCH}"
    add("--search", type=searched, nargs="+", metavar="OPTION=VALUES", help=search)
    add("--sampler", choices=SAMPLERS, default="tpe", help="of Optuna (default: tpe)")
    add("--pruner", choices=PRUNERS, default="none", help="default: none; it changes the compute spent")
    add("--seed", type=seed, default=0, help="of the sampler, where one worker proposes (default: 0)")
    add("--workers", type=positive, default=1, help="trials at once (default: 1, which finds most)")
    add("--timeout", type=positive, metavar="SECONDS", help="after which no trial is begun")
    add("--storage", metavar="URL", help="a database that several machines share: docs/scale.md")
    add("--output", type=Path, help="default: configs/tuned/ARM.yaml, if the runs are the arm's own")
    own, rest = parse_sweep(parser, args)
    own.search = dict(given := own.search or [])
    if len(own.search) < len(given):
        parser.error("--search names an option twice")
    if both := own.search.keys() & {argument.split("=")[0].removeprefix("--") for argument in rest}:
        parser.error(f"--{both.pop()} is searched: it has no value of its own")
    if not given and not rest and (own.seed, own.sampler, own.pruner) == (0, "tpe", "none"):  # the arm's own study
        own.output = own.output or tuned_file(own.optimizer)
    if own.output:
        require_place(parser, own.output)
    return own, rest


def main(args: list[str] | None = None) -> "optuna.Study":
    """Run the trials that are missing, keep them in MLflow, and write the best rate."""
    own, rest = parse(args)
    with importing():  # late: the help does not wait for torch
        from experiment.tuning import Tuning, tune
        from tracking.links import how_to_see
        from tracking.store import open_experiment

    settings = {name: value for name, value in vars(own).items() if name != "output"}
    tuned = tune(Tuning(arguments=tuple(rest), **settings), typed("tune.py", args))
    print(tuned.text, end="")
    if tuned.missing:
        print(f"{own.trials - tuned.missing} of {own.trials} trials: type the same again for the rest; not written")
    elif own.output:
        own.output.write_text(tuned.text)
        print(f"written to  {own.output}")
    else:
        print("not written: this is not the study that an arm reads its values from; name a file (--output)")
    print(f"see it      {how_to_see(open_experiment(), tuned.run_id)}")
    return tuned.study


if __name__ == "__main__":
    script(main)
