"""Train every arm on every seed, and set them side by side: `python compare.py --seeds 5`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiment.options import (
    CORES,
    OF_ONE_RUN,
    arm_or_file,
    make_folder,
    parse_sweep,
    positive,
    rate,
    sweep_parser,
    typed,
)
from experiment.presets import ARMS, HEADLINE, RESULTS
from experiment.process import importing, script

if TYPE_CHECKING:
    import pandas as pd


def parse(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the comparison, and the rest, which goes on to every run."""
    parser = sweep_parser("compare.py", __doc__)
    add = parser.add_argument
    add("--seeds", type=positive, default=5, help="runs per arm: seeds 1 to SEEDS (seed 0 is used in tuning)")
    add("--data-seeds", type=positive, default=1, help="of the data: 0, the published, ... DATA_SEEDS - 1")
    arms = f"{' '.join(ARMS)}, or YAML files of your own"
    add("--optimizers", nargs="+", type=arm_or_file, default=HEADLINE, metavar="ARM", help=arms)
    add("--initial-lrs", nargs="+", type=rate, default=[None], metavar="LR", help="run every arm from each of these")
    add("--workers", type=positive, default=CORES, help="processes (default: the cores)")
    add("--storage", metavar="URL", help="a database: machines share the runs; see docs/scale.md")
    add("--output", type=Path, default=RESULTS / "compare", help="folder (default: results/compare)")
    own, rest = parse_sweep(parser, args)
    own.optimizers, own.initial_lrs = list(dict.fromkeys(own.optimizers)), list(dict.fromkeys(own.initial_lrs))
    for option, instead in OF_ONE_RUN.items():
        if any(argument.split("=")[0] == option for argument in rest):
            parser.error(f"{option} is of one run; here it is {instead}")
    if len({Path(arm).stem for arm in own.optimizers}) < len(own.optimizers):
        parser.error("--optimizers: two files of one name would be one row of the table; rename one")
    if own.initial_lrs != [None] and any(argument.split("=")[0] == "--model.lr" for argument in rest):
        parser.error("--model.lr and --initial-lrs are one thing: give one of them")
    make_folder(parser, own.output)
    return own, rest


def main(args: list[str] | None = None) -> "pd.DataFrame":
    """Train what is missing, write the figures, the table and the raw numbers, and say where they are."""
    own, rest = parse(args)
    with importing():  # late: the help does not wait for torch
        from experiment.comparison import Comparison, compare
        from tracking.links import how_to_compare, how_to_see
        from tracking.store import open_experiment

    runs, table, parent = compare(Comparison(arguments=tuple(rest), **vars(own)), typed("compare.py", args))
    print(f"{table}\nwritten to  {own.output}\nsee it      {how_to_see(open_experiment(), parent)}")
    print(f"charts      {how_to_compare(open_experiment(), parent)}")
    return runs


if __name__ == "__main__":
    script(main)
